//! The layer of Climber-Pilot (§3.2.1): a pre-norm Transformer layer whose attention has a learned temperature for
//! each head, a position bias and a time bias.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::Model;

use super::Parameters;
use super::layer::{FeedForward, Norm, at, linear_std};
use crate::ops::{self, AttentionLayout, Dropout, TIME_BUCKETS};

/// `x + attention(norm(x))`, then `x + feed-forward(norm(x))`.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    name: String,
    norm: Norm,
    /// Queries, keys and values in one product, `[d, 3 d]`.
    qkv: Tensor,
    /// `b_pos` and, where configured, `b_time` of each head.
    bias: Tensor,
    /// `log T_h`: the learned temperature of each head, `√d_k` at first (Climber's adaptive temperature).
    log_temperature: Tensor,
    out: Tensor,
    feed_forward: FeedForward,
    max_distance: usize,
}

impl Layer {
    pub(super) fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        let (d, heads) = (model.d, model.heads);
        // What is added to the residual stream starts smaller the more layers add to it, a branch's included.
        let residual = (2.0 * (model.layers + 1) as f64).sqrt();
        let columns = model.max_distance + if model.time_bias { TIME_BUCKETS } else { 0 };
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm: Norm::new(parameters, &of("attention.norm"), d)?,
            qkv: parameters.normal(&of("attention.qkv"), &[d, 3 * d], linear_std(d))?,
            bias: parameters.constant(&of("attention.bias"), &[heads, columns], 0.0)?,
            log_temperature: parameters.constant(
                &of("attention.log_temperature"),
                &[heads],
                (((d / heads) as f64).sqrt().ln()) as f32,
            )?,
            out: parameters.normal(&of("attention.out"), &[d, d], linear_std(d) / residual)?,
            feed_forward: FeedForward::new(parameters, &of("feed_forward"), model, residual)?,
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
        let parameters = ops::SelfAttentionParameters {
            gamma: &self.norm.gamma,
            beta: &self.norm.beta,
            qkv: &self.qkv,
            out: &self.out,
            bias: &self.bias,
            log_temperature: &self.log_temperature,
            max_distance: self.max_distance,
        };
        let x = ops::self_attention(x, parameters, layout, at(dropout, &format!("{}.attention", self.name)))?;
        self.feed_forward.forward(&x, dropout)
    }
}
