//! The layer of Climber-Pilot (§3.2.1): a pre-norm Transformer layer whose attention has a learned temperature for
//! each head, a position bias and a time bias.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{AttentionLayout, Dropout, Queries};
use schemas::config::Model;

use super::Parameters;
use super::layer::{FeedForward, Modulated, SelfAttention};

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

    /// The layer at single rows of `x` `[T, d]`: `[R, d]`. Each query is the row it stands at, plus its row of `condition`
    /// `[R, d]`; keys and values are without.
    pub(super) fn forward_at(
        &self,
        x: &Tensor,
        layout: &Arc<AttentionLayout>,
        queries: &Arc<Queries>,
        condition: Option<&Tensor>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let mut rows = ragged::gather(x, &queries.tokens)?;
        if let Some(condition) = condition {
            rows = (rows + condition)?;
        }
        let asked = self.attention.norm(x)?;
        let attended = self.attention.ask(&self.attention.norm(&rows)?, &asked, layout, queries)?;
        let rows = self.attention.add(&rows, &attended, dropout)?;
        self.feed_forward.forward(&rows, dropout)
    }

    /// The same with a modulation of norms and halves: every query has a sequence of its own in `x`.
    pub(super) fn forward_modulated(
        &self,
        x: &Tensor,
        layout: &Arc<AttentionLayout>,
        queries: &Arc<Queries>,
        modulated: Modulated<'_>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let rows = ragged::gather(x, &queries.tokens)?;
        let asking = modulated.at_reads(&self.attention.norm(&rows)?, 0)?;
        let asked = modulated.at_tokens(&self.attention.norm(x)?, 0)?;
        let attended = self.attention.ask(&asking, &asked, layout, queries)?;
        let rows = self.attention.add(&rows, &modulated.gated(&attended, 0)?, dropout)?;
        let inner = self.feed_forward.inner(&modulated.at_reads(&self.feed_forward.norm(&rows)?, 1)?)?;
        self.feed_forward.add(&rows, &modulated.gated(&inner, 1)?, dropout)
    }
}
