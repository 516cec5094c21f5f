//! One pre-norm Transformer layer: of the backbone, and of each TAMIP branch.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::Model;

use super::Parameters;
use crate::ops::{self, AttentionLayout, TIME_BUCKETS};

/// Seeds of a training step's dropout; `None` when nothing is dropped (evaluation).
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// Share of the elements dropped.
    pub p: f64,
    /// Seed of the step.
    pub seed: u64,
}

impl Dropout {
    pub(super) fn apply(dropout: Option<Self>, x: &Tensor, place: &str) -> Result<Tensor> {
        match dropout {
            Some(Self { p, seed }) => ops::dropout(x, p, crate::random::derived(seed, place, 0)),
            None => Ok(x.clone()),
        }
    }
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
        let qkv = self.attention_norm.forward(x)?.matmul(&self.qkv)?;
        let attended = ops::attention(&qkv, &self.bias, &self.log_temperature, layout, self.max_distance)?
            .matmul(&self.out)?;
        let x = (x + Dropout::apply(dropout, &attended, &format!("{}.attention", self.name))?)?;
        let inner = self.feed_forward_norm.forward(&x)?.matmul(&self.up)?.broadcast_add(&self.up_bias)?;
        let outer = ops::gelu(&inner)?.matmul(&self.down)?.broadcast_add(&self.down_bias)?;
        x + Dropout::apply(dropout, &outer, &format!("{}.feed_forward", self.name))?
    }
}
