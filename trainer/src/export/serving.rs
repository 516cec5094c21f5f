//! The serving graph (§3.4.2): one user's history and `P` conditions in, branch 1 and the scores of all items out.
//!
//! ```text
//! history, times ─► tokens ─► backbone ─► keys and values of branch 1 ──┐
//!                                    └─► last row + e_c, P times ─► queries ─► hidden [P, d] ─► scores [P, items]
//! ```
//!
//! The backbone is computed once for all conditions. Rows and columns of the attention are the tokens: the start token,
//! then the history. All constants bear the names of the checkpoint, but for the items, which are whole vectors.

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use schemas::config::{Model, Paradigm};

use super::graph::{Builder, Value, float, int};
use super::proto::{self, DataType, Size};
use super::vectors::{ITEM_VECTORS_NPY, Items, npy_header};
use crate::model::ClimberPilot;
use crate::ops::{GELU_CUBIC, GELU_SCALE, NORM_EPSILON, TIME_BUCKETS, UNIT_EPSILON, time_bucket};

/// The version of ONNX's operators: the first with layer norms.
pub(super) const OPSET: i64 = 17;
/// The version of the file format that came with it.
const IR_VERSION: i64 = 8;

/// How conditions enter the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conditioning {
    /// A learned embedding is added to the query.
    embedding: bool,
    /// The query sees matching items only (Eq. 5).
    mask: bool,
}

impl Conditioning {
    /// Of a model with one of the paradigms that the graph knows; `None` where nothing depends on conditions.
    fn of(model: &ClimberPilot) -> Option<Self> {
        let mask = match model.paradigm()? {
            Paradigm::Cgsa => true,
            Paradigm::Pinrec => false,
            Paradigm::Unconditional | Paradigm::Lum | Paradigm::AdalnZero => return None,
        };
        Some(Self { embedding: model.condition_embedding().is_some(), mask })
    }
}

/// The graph of `model`, whose settings are `settings`. With `external`, it refers to the item vectors in
/// [`ITEM_VECTORS_NPY`] instead of holding them.
pub(super) fn model(
    model: &ClimberPilot,
    settings: &Model,
    items: &Items,
    external: bool,
) -> Result<proto::Model> {
    let serving = Serving {
        builder: Builder::new("climber-pilot"),
        tensors: model.tensors(),
        settings,
        items,
        conditioning: Conditioning::of(model),
    };
    let entry = |key: &str, value: String| proto::Entry { key: key.into(), value };
    Ok(proto::Model {
        ir_version: IR_VERSION,
        producer_name: "trainer".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: "Branch 1 of a Climber-Pilot model: one user's history in, the scores of all items out."
            .into(),
        graph: Some(serving.graph(external)?),
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: OPSET }],
        metadata_props: vec![
            entry("items", items.len().to_string()),
            entry("conditions", model.vocabulary().conditions().len().to_string()),
        ],
    })
}

/// For each bucket of `b_time` the shortest time in milliseconds that belongs to it or to a higher one. Bucket 0 is the
/// start token's, and whatever is not after the earlier event belongs to bucket 1.
pub(super) fn time_thresholds() -> [i64; TIME_BUCKETS] {
    std::array::from_fn(|bucket| {
        let (mut from, mut to) = (0, i64::MAX);
        while from < to {
            let middle = from + (to - from) / 2;
            if usize::from(time_bucket(middle, 0)) < bucket {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        if bucket < 2 { i64::MIN } else { from }
    })
}

struct Serving<'a> {
    builder: Builder,
    tensors: HashMap<String, Tensor>,
    settings: &'a Model,
    items: &'a Items,
    conditioning: Option<Conditioning>,
}

/// What attention knows of the tokens, whatever the layer: `N = n + 1` rows and columns.
struct Layout {
    /// The columns, `[1, N]`.
    column: Value,
    /// The last row, one number.
    last: Value,
    /// Whether a column comes after a row, `[N, N]`.
    future: Value,
    /// For each row and column the columns of a layer's bias: of `b_pos` and, where there is one, of `b_time`.
    biases: Vec<Value>,
}

impl Serving<'_> {
    fn graph(mut self, external: bool) -> Result<proto::Graph> {
        let (n, p) = (Size::Named("n".into()), Size::Named("P".into()));
        let (d, items) = (Size::Fixed(self.settings.d as i64), Size::Fixed(self.items.len() as i64));
        let b = &mut self.builder;
        let history = b.input(
            "history",
            DataType::Int64,
            std::slice::from_ref(&n),
            "item_index of each item that the user interacted with, the oldest first; may be empty",
        );
        let times = b.input(
            "times",
            DataType::Int64,
            std::slice::from_ref(&n),
            "when, in milliseconds since 1970 (UTC); ascending",
        );
        let rows = if self.conditioning.is_some() { p.clone() } else { Size::Fixed(1) };
        let conditions = self.conditioning.map(|conditioning| {
            let b = &mut self.builder;
            let conditions = b.input(
                "conditions",
                DataType::Int64,
                std::slice::from_ref(&p),
                "rows of conditions.json; -1 asks without a condition",
            );
            let mask = conditioning.mask.then(|| {
                let about =
                    "whether each item of the history carries the condition; not read where that is -1";
                b.input("condition_mask", DataType::Bool, &[p, n], about)
            });
            (conditions, mask)
        });

        let x = self.tokens(&history, external)?;
        let layout = self.layout(&history, &times);
        let x = (0..self.settings.layers)
            .try_fold(x, |x, l| self.layer(&x, &layout, &format!("backbone.{l}")))?;
        let (rows_read, seen) = self.queries(&x, &layout, conditions.as_ref())?;
        let hidden = self.branch(&x, &layout, &rows_read, seen.as_deref())?;
        let scored = vec![int("transB", 1)];
        let scores = self.builder.node_with("Gemm", &[&hidden, Items::VECTORS], scored);

        let b = &mut self.builder;
        let about = "what is multiplied with the rows of item_vectors.npy for a score";
        b.output("hidden", &hidden, DataType::Float, &[rows.clone(), d], about);
        let about = "of the item with item_index i in column i - 1, items that are not active included";
        b.output("scores", &scores, DataType::Float, &[rows, items], about);
        Ok(self.builder.finish())
    }

    /// A parameter of the checkpoint as a constant.
    fn parameter(&mut self, name: &str) -> Result<Value> {
        if self.builder.has(name) {
            return Ok(name.into());
        }
        let Some(tensor) = self.tensors.get(name) else {
            candle_core::bail!("the model has no parameter `{name}`");
        };
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        Ok(self.builder.floats(name, tensor.dims(), &values))
    }

    /// The start token and the items of the history, `[N, d]`.
    fn tokens(&mut self, history: &str, external: bool) -> Result<Value> {
        let (items, d) = (self.items.len(), self.settings.d);
        let b = &mut self.builder;
        b.enter("tokens");
        let table = if external {
            b.external_floats(Items::VECTORS, &[items, d], ITEM_VECTORS_NPY, npy_header(items, d).len())
        } else {
            b.floats(Items::VECTORS, &[items, d], self.items.vectors())
        };
        // Negative rows would count from the end: an index below 1 becomes one that cannot be gathered.
        let (one, out_of_range) = (b.integer(1), b.integer(items as i64));
        let below = b.node("Less", &[history, &one]);
        let index = b.node("Sub", &[history, &one]);
        let index = b.node("Where", &[&below, &out_of_range, &index]);
        let mut vectors = b.gather(&table, &index, 0);
        if let Some(lengths) = self.items.lengths() {
            let lengths = b.floats("item_lengths", &[items, 1], lengths);
            let lengths = b.gather(&lengths, &index, 0);
            vectors = b.node("Mul", &[&vectors, &lengths]);
        }
        let start = self.parameter("start")?;
        let b = &mut self.builder;
        let tokens = b.concat(&[&start, &vectors], 0);
        let scale = b.float((d as f64).sqrt() as f32);
        Ok(b.node("Mul", &[&tokens, &scale]))
    }

    fn layout(&mut self, history: &str, times: &str) -> Layout {
        let max_distance = self.settings.max_distance as i64;
        let b = &mut self.builder;
        b.enter("layout");
        let (zero, one) = (b.integer(0), b.integer(1));
        let last = b.node("Size", &[history]);
        let end = b.node("Add", &[&last, &one]);
        let tokens = b.node("Range", &[&zero, &end, &one]);
        let (row, column) = (b.unsqueeze(&tokens, &[1]), b.unsqueeze(&tokens, &[0]));
        let future = b.node("Greater", &[&column, &row]);
        let distance = b.node("Sub", &[&row, &column]);
        let farthest = b.integer(max_distance - 1);
        let mut biases = vec![b.node("Clip", &[&distance, &zero, &farthest])];
        if self.settings.time_bias {
            // The start token has no time, and its column no bucket but 0.
            let no_time = b.list(&[0]);
            let times = b.concat(&[&no_time, times], 0);
            let (later, earlier) = (b.unsqueeze(&times, &[1]), b.unsqueeze(&times, &[0]));
            let since = b.node("Sub", &[&later, &earlier]);
            let bucket = self.time_buckets(&since);
            let b = &mut self.builder;
            let start = b.node("Equal", &[&column, &zero]);
            let bucket = b.node("Where", &[&start, &zero, &bucket]);
            let first = b.integer(max_distance);
            biases.push(b.node("Add", &[&bucket, &first]));
        }
        Layout { column, last, future, biases }
    }

    /// [`time_bucket`] of times in milliseconds: a binary search among the thresholds, each step written out.
    fn time_buckets(&mut self, since: &str) -> Value {
        let b = &mut self.builder;
        let thresholds = b.integers("time_thresholds", &[TIME_BUCKETS], &time_thresholds());
        let mut bucket = b.integer(0);
        let mut step = TIME_BUCKETS as i64 / 2;
        while step > 0 {
            let width = b.integer(step);
            let next = b.node("Add", &[&bucket, &width]);
            let threshold = b.gather(&thresholds, &next, 0);
            let reached = b.node("GreaterOrEqual", &[since, &threshold]);
            bucket = b.node("Where", &[&reached, &next, &bucket]);
            step /= 2;
        }
        bucket
    }

    /// A layer of the backbone: `[N, d]` → `[N, d]`.
    fn layer(&mut self, x: &str, layout: &Layout, name: &str) -> Result<Value> {
        let attention = format!("{name}.attention");
        self.builder.enter(&attention);
        let normal = self.norm(x, &format!("{attention}.norm"))?;
        let qkv = self.parameter(&format!("{attention}.qkv"))?;
        let qkv = self.builder.node("MatMul", &[&normal, &qkv]);
        let [q, k, v] = self.heads(&qkv);
        let bias = self.bias(&layout.biases, &attention)?;
        let scores = self.scores(&q, &k, &bias, &attention)?;
        let b = &mut self.builder;
        let nothing = b.float(f32::NEG_INFINITY);
        let scores = b.node("Where", &[&layout.future, &nothing, &scores]);
        let x = self.attended(x, &scores, &v, &attention)?;
        self.feed_forward(&x, &format!("{name}.feed_forward"))
    }

    /// The rows that ask, and what they see `[P, N]`, where that is not everything.
    fn queries(
        &mut self,
        x: &str,
        layout: &Layout,
        conditions: Option<&(Value, Option<Value>)>,
    ) -> Result<(Value, Option<Value>)> {
        self.builder.enter("queries");
        let row = self.builder.slice(x, 0, -1, i64::MAX);
        let Some((conditions, mask)) = conditions else { return Ok((row, None)) };
        let embedding = match self.conditioning {
            Some(Conditioning { embedding: true, .. }) => Some(self.parameter("conditions.embedding")?),
            _ => None,
        };
        let b = &mut self.builder;
        let zero = b.integer(0);
        let without = b.node("Less", &[conditions, &zero]);
        let without = b.unsqueeze(&without, &[1]);
        let added = match embedding {
            Some(embedding) => {
                let index = b.node("Max", &[conditions, &zero]);
                let embedded = b.gather(&embedding, &index, 0);
                let nothing = b.float(0.0);
                b.node("Where", &[&without, &nothing, &embedded])
            }
            // One zero for each condition: as many rows as there are conditions.
            None => {
                let nothing = b.node("Mul", &[conditions, &zero]);
                let nothing = b.cast(&nothing, DataType::Float);
                b.unsqueeze(&nothing, &[1])
            }
        };
        let rows = b.node("Add", &[&row, &added]);
        let seen = mask.as_ref().map(|mask| {
            // The start token carries no condition; the last token sees itself; without a condition all is seen.
            let matching = b.concat(&[&without, mask], 1);
            let seen = b.node("Or", &[&matching, &without]);
            let own = b.node("Equal", &[&layout.column, &layout.last]);
            b.node("Or", &[&seen, &own])
        });
        Ok((rows, seen))
    }

    /// Branch 1 at the rows that ask: `[P, d]`, as it is scored.
    fn branch(&mut self, x: &str, layout: &Layout, rows: &str, seen: Option<&str>) -> Result<Value> {
        let d = self.settings.d as i64;
        let attention = "branch.1.attention";
        self.builder.enter(attention);
        let norm = format!("{attention}.norm");
        let (asking, asked) = (self.norm(rows, &norm)?, self.norm(x, &norm)?);
        let qkv = self.parameter(&format!("{attention}.qkv"))?;
        let b = &mut self.builder;
        let (to_q, to_kv) = (b.slice(&qkv, 1, 0, d), b.slice(&qkv, 1, d, 3 * d));
        let (q, kv) = (b.node("MatMul", &[&asking, &to_q]), b.node("MatMul", &[&asked, &to_kv]));
        let biases: Vec<Value> =
            layout.biases.iter().map(|columns| b.slice(columns, 0, -1, i64::MAX)).collect();
        let [q] = self.heads(&q);
        let [k, v] = self.heads(&kv);
        let bias = self.bias(&biases, attention)?;
        let mut scores = self.scores(&q, &k, &bias, attention)?;
        if let Some(seen) = seen {
            let b = &mut self.builder;
            let nothing = b.float(f32::NEG_INFINITY);
            scores = b.node("Where", &[seen, &scores, &nothing]);
        }
        let rows = self.attended(rows, &scores, &v, attention)?;
        let rows = self.feed_forward(&rows, "branch.1.feed_forward")?;
        self.builder.enter("branch.1");
        let hidden = self.norm(&rows, "branch.1.norm")?;
        if self.settings.score_temperature == 0.0 {
            return Ok(hidden);
        }
        let b = &mut self.builder;
        let columns = b.list(&[1]);
        let squares = b.node("Mul", &[&hidden, &hidden]);
        let square = b.node("ReduceSum", &[&squares, &columns]);
        let epsilon = b.float(UNIT_EPSILON);
        let square = b.node("Add", &[&square, &epsilon]);
        let length = b.node("Sqrt", &[&square]);
        let temperature = b.float(self.settings.score_temperature as f32);
        let length = b.node("Mul", &[&length, &temperature]);
        Ok(b.node("Div", &[&hidden, &length]))
    }

    fn norm(&mut self, x: &str, name: &str) -> Result<Value> {
        let gamma = self.parameter(&format!("{name}.gamma"))?;
        let beta = self.parameter(&format!("{name}.beta"))?;
        let attributes = vec![int("axis", -1), float("epsilon", NORM_EPSILON)];
        Ok(self.builder.node_with("LayerNormalization", &[x, &gamma, &beta], attributes))
    }

    /// `[rows, PARTS d]` by part and head: `[H, rows, d / H]` each.
    fn heads<const PARTS: usize>(&mut self, x: &str) -> [Value; PARTS] {
        let (heads, d) = (self.settings.heads as i64, self.settings.d as i64);
        let b = &mut self.builder;
        let x = b.reshape(x, &[0, PARTS as i64, heads, d / heads]);
        let x = b.transpose(&x, &[1, 2, 0, 3]);
        std::array::from_fn(|part| {
            let part = b.integer(part as i64);
            b.gather(&x, &part, 0)
        })
    }

    /// `b_pos + b_time`: `[H, rows, N]`.
    fn bias(&mut self, columns: &[Value], attention: &str) -> Result<Value> {
        let bias = self.parameter(&format!("{attention}.bias"))?;
        let b = &mut self.builder;
        let mut sum = b.gather(&bias, &columns[0], 1);
        for columns in &columns[1..] {
            let further = b.gather(&bias, columns, 1);
            sum = b.node("Add", &[&sum, &further]);
        }
        Ok(sum)
    }

    /// `q·k / T_h + bias`: `[H, rows, N]`.
    fn scores(&mut self, q: &str, k: &str, bias: &str, attention: &str) -> Result<Value> {
        let log_temperature = self.parameter(&format!("{attention}.log_temperature"))?;
        let b = &mut self.builder;
        let scale = b.node("Neg", &[&log_temperature]);
        let scale = b.node("Exp", &[&scale]);
        let scale = b.reshape(&scale, &[-1, 1, 1]);
        let q = b.node("Mul", &[q, &scale]);
        let k = b.transpose(k, &[0, 2, 1]);
        let products = b.node("MatMul", &[&q, &k]);
        Ok(b.node("Add", &[&products, bias]))
    }

    /// `x + W_o softmax(scores) v`.
    fn attended(&mut self, x: &str, scores: &str, v: &str, attention: &str) -> Result<Value> {
        let out = self.parameter(&format!("{attention}.out"))?;
        let d = self.settings.d as i64;
        let b = &mut self.builder;
        let weights = b.softmax(scores);
        let mixed = b.node("MatMul", &[&weights, v]);
        let mixed = b.transpose(&mixed, &[1, 0, 2]);
        let mixed = b.reshape(&mixed, &[-1, d]);
        let attended = b.node("MatMul", &[&mixed, &out]);
        Ok(b.node("Add", &[x, &attended]))
    }

    /// `x + W₂ GELU(W₁ norm(x) + b₁) + b₂`.
    fn feed_forward(&mut self, x: &str, name: &str) -> Result<Value> {
        self.builder.enter(name);
        let normal = self.norm(x, &format!("{name}.norm"))?;
        let inner = self.linear(&normal, &format!("{name}.up"))?;
        let inner = self.gelu(&inner);
        let outer = self.linear(&inner, &format!("{name}.down"))?;
        Ok(self.builder.node("Add", &[x, &outer]))
    }

    fn linear(&mut self, x: &str, name: &str) -> Result<Value> {
        let weight = self.parameter(name)?;
        let bias = self.parameter(&format!("{name}_bias"))?;
        let product = self.builder.node("MatMul", &[x, &weight]);
        Ok(self.builder.node("Add", &[&product, &bias]))
    }

    /// GELU in its tanh form, `x · σ(2 √(2/π) (x + 0.044715 x³))`.
    fn gelu(&mut self, x: &str) -> Value {
        let b = &mut self.builder;
        let (cubic, one, scale) = (b.float(GELU_CUBIC), b.float(1.0), b.float(2.0 * GELU_SCALE));
        let square = b.node("Mul", &[x, x]);
        let square = b.node("Mul", &[&square, &cubic]);
        let factor = b.node("Add", &[&square, &one]);
        let inner = b.node("Mul", &[x, &factor]);
        let inner = b.node("Mul", &[&inner, &scale]);
        let gate = b.node("Sigmoid", &[&inner]);
        b.node("Mul", &[x, &gate])
    }
}
