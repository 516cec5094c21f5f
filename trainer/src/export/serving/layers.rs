//! Layers of Climber-Pilot as nodes of the graph: the computation of `crate::models::layers`, operator by operator.

use candle_core::Result;
use ragged::{GELU_CUBIC, GELU_SCALE, NORM_EPSILON};

use super::Serving;
use super::layout::Layout;
use crate::export::graph::{Value, float, int};

impl Serving<'_> {
    /// Applies a layer of the backbone: `[N, d]` → `[N, d]`.
    pub(super) fn layer(&mut self, x: &str, layout: &Layout, name: &str) -> Result<Value> {
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

    pub(super) fn norm(&mut self, x: &str, name: &str) -> Result<Value> {
        let gamma = self.parameter(&format!("{name}.gamma"))?;
        let beta = self.parameter(&format!("{name}.beta"))?;
        let attributes = vec![int("axis", -1), float("epsilon", NORM_EPSILON)];
        Ok(self.builder.node_with("LayerNormalization", &[x, &gamma, &beta], attributes))
    }

    /// Splits `[rows, PARTS · d]` by part and head: `[H, rows, d / H]` each.
    pub(super) fn heads<const PARTS: usize>(&mut self, x: &str) -> [Value; PARTS] {
        let (heads, d) = (self.settings.heads as i64, self.settings.d as i64);
        let b = &mut self.builder;
        let x = b.reshape(x, &[0, PARTS as i64, heads, d / heads]);
        let x = b.transpose(&x, &[1, 2, 0, 3]);
        std::array::from_fn(|part| {
            let part = b.integer(part as i64);
            b.gather(&x, &part, 0)
        })
    }

    /// Returns `b_pos + b_time`, `[H, rows, N]`.
    pub(super) fn bias(&mut self, columns: &[Value], attention: &str) -> Result<Value> {
        let bias = self.parameter(&format!("{attention}.bias"))?;
        let b = &mut self.builder;
        let mut sum = b.gather(&bias, &columns[0], 1);
        for columns in &columns[1..] {
            let further = b.gather(&bias, columns, 1);
            sum = b.node("Add", &[&sum, &further]);
        }
        Ok(sum)
    }

    /// Returns `q·k / T_h + bias`, `[H, rows, N]`.
    pub(super) fn scores(&mut self, q: &str, k: &str, bias: &str, attention: &str) -> Result<Value> {
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

    /// Returns `x + W_o softmax(scores) v`.
    pub(super) fn attended(&mut self, x: &str, scores: &str, v: &str, attention: &str) -> Result<Value> {
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

    /// Returns `x + W₂ GELU(W₁ norm(x) + b₁) + b₂`.
    pub(super) fn feed_forward(&mut self, x: &str, name: &str) -> Result<Value> {
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

    /// Applies GELU in its tanh form, `x · σ(2 √(2/π) (x + 0.044715 x³))`.
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
