//! One pre-norm Transformer layer: of the backbone, and of each TAMIP branch.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::Model;

use super::Parameters;
use crate::ops::{self, AttentionLayout, Dropout, TIME_BUCKETS};

/// The dropout of one place in the model, from that of the step.
pub(super) fn at(dropout: Option<Dropout>, place: &str) -> Option<Dropout> {
    dropout.map(|Dropout { p, seed }| Dropout { p, seed: crate::random::derived(seed, place, 0) })
}

/// γ and β of a layer norm.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    gamma: Tensor,
    beta: Tensor,
}

impl Norm {
    pub(super) fn new(parameters: &mut Parameters, name: &str, d: usize) -> Result<Self> {
        Ok(Self {
            gamma: parameters.constant(&format!("{name}.gamma"), &[d], 1.0)?,
            beta: parameters.constant(&format!("{name}.beta"), &[d], 0.0)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.gamma, &self.beta)
    }
}

/// `x + attention(norm(x))`, then `x + feed-forward(norm(x))`.
#[derive(Debug, Clone)]
pub(super) struct Block {
    name: String,
    attention_norm: Norm,
    /// Queries, keys and values in one product, `[d, 3 d]`.
    qkv: Tensor,
    /// `b_pos` and, where configured, `b_time` of each head.
    bias: Tensor,
    /// `log T_h`: the learned temperature of each head, `√d_k` at first (Climber's adaptive temperature).
    log_temperature: Tensor,
    out: Tensor,
    feed_forward_norm: Norm,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    max_distance: usize,
}

impl Block {
    pub(super) fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        let (d, heads, inner) = (model.d, model.heads, model.d * model.feed_forward);
        let std = |inputs: usize| (1.0 / inputs as f64).sqrt();
        // What is added to the residual stream starts smaller the more layers add to it.
        let residual = (2.0 * (model.layers + 1) as f64).sqrt();
        let columns = model.max_distance + if model.time_bias { TIME_BUCKETS } else { 0 };
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            attention_norm: Norm::new(parameters, &of("attention.norm"), d)?,
            qkv: parameters.normal(&of("attention.qkv"), &[d, 3 * d], std(d))?,
            bias: parameters.constant(&of("attention.bias"), &[heads, columns], 0.0)?,
            log_temperature: parameters.constant(
                &of("attention.log_temperature"),
                &[heads],
                (((d / heads) as f64).sqrt().ln()) as f32,
            )?,
            out: parameters.normal(&of("attention.out"), &[d, d], std(d) / residual)?,
            feed_forward_norm: Norm::new(parameters, &of("feed_forward.norm"), d)?,
            up: parameters.normal(&of("feed_forward.up"), &[d, inner], std(d))?,
            up_bias: parameters.constant(&of("feed_forward.up_bias"), &[inner], 0.0)?,
            down: parameters.normal(&of("feed_forward.down"), &[inner, d], std(inner) / residual)?,
            down_bias: parameters.constant(&of("feed_forward.down_bias"), &[d], 0.0)?,
            max_distance: model.max_distance,
            name: name.to_owned(),
        })
    }

    /// `[T, d]` → `[T, d]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layout: &Arc<AttentionLayout>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let place = |part: &str| at(dropout, &format!("{}.{part}", self.name));
        let qkv = ops::linear(&self.attention_norm.forward(x)?, &self.qkv, None)?;
        let attended = ops::attention(&qkv, &self.bias, &self.log_temperature, layout, self.max_distance)?;
        let x = ops::add_dropped(x, &ops::linear(&attended, &self.out, None)?, place("attention"))?;
        let inner = ops::linear(&self.feed_forward_norm.forward(&x)?, &self.up, Some(&self.up_bias))?;
        let outer = ops::linear(&ops::gelu(&inner)?, &self.down, Some(&self.down_bias))?;
        ops::add_dropped(&x, &outer, place("feed_forward"))
    }
}
