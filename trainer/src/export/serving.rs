//! The serving graph (§3.4.2): one user's history and `P` conditions in, branch 1 and the scores of all items out.
//!
//! ```text
//! history, times ─► tokens ─► backbone ─► keys and values of branch 1 ──┐
//!                                    └─► last row + √d e_c, P times ─► queries ─► hidden [P, d] ─► scores [P, items]
//! ```
//!
//! The backbone is computed once for all conditions. Rows and columns of the attention are the tokens: the start token, then the
//! history. Constants have their names in the checkpoint, except the items, which enter as whole vectors.

mod layers;
mod layout;

use std::collections::HashMap;

use candle_core::{Result, Tensor};
use ragged::UNIT_EPSILON;
use schemas::config::{Model, Paradigm};

use super::graph::{Builder, Value, int};
use super::proto::{self, DataType, Size};
use super::vectors::{ITEM_VECTORS_NPY, Items, npy_header};
use crate::models::SequenceModel;
use layout::Layout;
#[cfg(test)]
pub(super) use layout::time_thresholds;

/// Version of the ONNX operators: the first with LayerNormalization.
pub(super) const OPSET: i64 = 17;
/// Version of the file format that belongs to [`OPSET`].
const IR_VERSION: i64 = 8;

/// How conditions enter the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Conditioning {
    /// A learned embedding is added to the query.
    embedding: bool,
    /// The query attends to matching items only (Eq. 5).
    mask: bool,
}

impl Conditioning {
    /// Returns the conditioning of a model with a supported paradigm; `None` if its output does not depend on conditions.
    fn of(model: &SequenceModel) -> Option<Self> {
        let mask = match model.paradigm()? {
            Paradigm::Cgsa => true,
            Paradigm::Pinrec => false,
            Paradigm::Unconditional | Paradigm::Lum | Paradigm::AdalnZero => return None,
        };
        Some(Self { embedding: model.condition_embedding().is_some(), mask })
    }
}

/// Builds the graph of `model` with its `settings`. With `external`, the graph refers to the item vectors in [`ITEM_VECTORS_NPY`]
/// instead of containing them.
pub(super) fn model(
    model: &SequenceModel,
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

struct Serving<'a> {
    builder: Builder,
    tensors: HashMap<String, Tensor>,
    settings: &'a Model,
    items: &'a Items,
    conditioning: Option<Conditioning>,
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
        let mut hidden = self.branch(&x, &layout, &rows_read, seen.as_deref())?;
        if let Some((conditions, _)) = &conditions {
            hidden = self.sharpened(&hidden, conditions)?;
        }
        let scored = vec![int("transB", 1)];
        let scores = self.builder.node_with("Gemm", &[&hidden, Items::VECTORS], scored);

        let b = &mut self.builder;
        let about = "what is multiplied with the rows of item_vectors.npy for a score";
        b.output("hidden", &hidden, DataType::Float, &[rows.clone(), d], about);
        let about = "of the item with item_index i in column i - 1, items that are not active included";
        b.output("scores", &scores, DataType::Float, &[rows, items], about);
        Ok(self.builder.finish())
    }

    /// Returns a parameter of the checkpoint as a constant.
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

    /// Returns the start token and the items of the history, `[N, d]`.
    fn tokens(&mut self, history: &str, external: bool) -> Result<Value> {
        let (items, d) = (self.items.len(), self.settings.d);
        let b = &mut self.builder;
        b.enter("tokens");
        let table = if external {
            b.external_floats(Items::VECTORS, &[items, d], ITEM_VECTORS_NPY, npy_header(items, d).len())
        } else {
            b.floats(Items::VECTORS, &[items, d], self.items.vectors())
        };
        // Gather counts negative rows from the end, so an index below 1 is mapped out of range, where Gather fails.
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

    /// Multiplies `hidden` by the factor of each condition, if the model has such factors.
    fn sharpened(&mut self, hidden: &str, conditions: &str) -> Result<Value> {
        let name = "conditions.sharpness";
        if !self.tensors.contains_key(name) {
            return Ok(hidden.into());
        }
        let logarithms = self.parameter(name)?;
        let b = &mut self.builder;
        b.enter("sharpness");
        let (zero, nothing) = (b.integer(0), b.float(0.0));
        let without = b.node("Less", &[conditions, &zero]);
        let without = b.unsqueeze(&without, &[1]);
        let index = b.node("Max", &[conditions, &zero]);
        let logarithms = b.gather(&logarithms, &index, 0);
        let logarithms = b.node("Where", &[&without, &nothing, &logarithms]);
        let factors = b.node("Exp", &[&logarithms]);
        Ok(b.node("Mul", &[hidden, &factors]))
    }

    /// Returns the query rows and the tokens they attend to, `[P, N]`; `None` if all.
    fn queries(
        &mut self,
        x: &str,
        layout: &Layout,
        conditions: Option<&(Value, Option<Value>)>,
    ) -> Result<(Value, Option<Value>)> {
        self.builder.enter("queries");
        let row = self.builder.slice(x, 0, -1, i64::MAX);
        let Some((conditions, mask)) = conditions else { return Ok((row, None)) };
        let d = self.settings.d as f64;
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
                let scale = b.float(d.sqrt() as f32);
                let embedded = b.node("Mul", &[&embedded, &scale]);
                let nothing = b.float(0.0);
                b.node("Where", &[&without, &nothing, &embedded])
            }
            // A zero per condition gives the result `P` rows.
            None => {
                let nothing = b.node("Mul", &[conditions, &zero]);
                let nothing = b.cast(&nothing, DataType::Float);
                b.unsqueeze(&nothing, &[1])
            }
        };
        let rows = b.node("Add", &[&row, &added]);
        let seen = mask.as_ref().map(|mask| {
            // The start token is always seen, the last token sees itself, and without a condition everything is seen.
            let start = b.node("Equal", &[&without, &without]);
            let matching = b.concat(&[&start, mask], 1);
            let seen = b.node("Or", &[&matching, &without]);
            let own = b.node("Equal", &[&layout.column, &layout.last]);
            b.node("Or", &[&seen, &own])
        });
        Ok((rows, seen))
    }

    /// Returns branch 1 at the query rows as scored, `[P, d]`.
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
}
