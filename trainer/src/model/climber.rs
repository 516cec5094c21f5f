//! The layer of Climber-Pilot (§3.2.1): a pre-norm Transformer layer whose attention has a learned temperature for
//! each head, a position bias and a time bias.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::Model;

use super::Parameters;
use super::layer::{FeedForward, SelfAttention};
use crate::ops::{AttentionLayout, Dropout};

/// `x + attention(norm(x))`, then `x + feed-forward(norm(x))`. The temperatures are `√d_k` at first (Climber's adaptive
/// temperature).
#[derive(Debug, Clone)]
pub(super) struct Layer {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

impl Layer {
    pub(super) fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        // What is added to the residual stream starts smaller the more layers add to it, a branch's included.
        let residual = (2.0 * (model.layers + 1) as f64).sqrt();
        Ok(Self {
            attention: SelfAttention::relative(parameters, &format!("{name}.attention"), model, residual)?,
            feed_forward: FeedForward::new(parameters, &format!("{name}.feed_forward"), model, residual)?,
        })
    }

    /// `[T, d]` → `[T, d]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layout: &Arc<AttentionLayout>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        self.feed_forward.forward(&self.attention.forward(x, layout, dropout)?, dropout)
    }
}
