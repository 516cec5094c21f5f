//! Climber-Pilot's encoder (§3.2): `L` causal layers, then `K` TAMIP branches (§3.2.2) of one layer and one norm each.
//!
//! A layer is a pre-norm Transformer layer whose attention has a learned temperature per head, a position bias and a time bias
//! (§3.2.1).

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{AttentionLayout, Dropout, Queries};
use schemas::config::Model;

use super::Parameters;
use super::encoder::{BranchInstruction, Encoder};
use super::layers::{FeedForward, Modulated, Norm, SelfAttention};
use crate::data::{Token, as_u32s};

/// Backbone layers and branches.
#[derive(Debug)]
pub(super) struct ClimberPilot {
    backbone: Vec<Layer>,
    /// Branch `k` is at index `k − 1`.
    branches: Vec<(Layer, Norm)>,
}

impl ClimberPilot {
    pub(super) fn new(parameters: &mut Parameters, model: &Model) -> Result<Self> {
        let backbone = (0..model.layers)
            .map(|l| Layer::new(parameters, &format!("backbone.{l}"), model))
            .collect::<Result<_>>()?;
        let branches = (1..=model.branches)
            .map(|k| {
                let name = format!("branch.{k}");
                let layer = Layer::new(parameters, &name, model)?;
                Ok((layer, Norm::new(parameters, &format!("{name}.norm"), model.d)?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { backbone, branches })
    }
}

impl Encoder for ClimberPilot {
    fn branches(&self) -> usize {
        self.branches.len()
    }

    fn backbone(&self, x: Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor> {
        self.backbone.iter().try_fold(x, |x, layer| layer.forward(&x, layout, dropout))
    }

    fn branch(
        &self,
        k: usize,
        backbone: &Tensor,
        layout: &Arc<AttentionLayout>,
        rows: &[Token],
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let (layer, norm) = &self.branches[k - 1];
        norm.forward(&ragged::gather(&layer.forward(backbone, layout, dropout)?, as_u32s(rows))?)
    }

    fn branch_at(
        &self,
        k: usize,
        backbone: &Tensor,
        layout: &Arc<AttentionLayout>,
        queries: &Arc<Queries>,
        instruction: BranchInstruction<'_>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let (layer, norm) = &self.branches[k - 1];
        let rows = match instruction {
            BranchInstruction::None => layer.forward_at(backbone, layout, queries, None, dropout)?,
            BranchInstruction::Added(condition) => {
                layer.forward_at(backbone, layout, queries, Some(condition), dropout)?
            }
            BranchInstruction::Modulated(modulated) => {
                layer.forward_modulated(backbone, layout, queries, modulated, dropout)?
            }
        };
        norm.forward(&rows)
    }
}

/// `x + attention(norm(x))`, then `x + feed-forward(norm(x))`. Temperatures start at `√d_k` (Climber's adaptive temperature).
#[derive(Debug, Clone)]
struct Layer {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

impl Layer {
    fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        // The more layers add to the residual stream, the branch's included, the smaller their outputs start.
        let residual = (2.0 * (model.layers + 1) as f64).sqrt();
        Ok(Self {
            attention: SelfAttention::relative(parameters, &format!("{name}.attention"), model, residual)?,
            feed_forward: FeedForward::new(parameters, &format!("{name}.feed_forward"), model, residual)?,
        })
    }

    /// Applies the layer: `[T, d]` → `[T, d]`.
    fn forward(&self, x: &Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor> {
        self.feed_forward.forward(&self.attention.forward(x, layout, dropout)?, dropout)
    }

    /// Applies the layer at the `R` queries only, with keys and values from `x` `[T, d]`: `[R, d]`. A query is the row of its
    /// token plus its row of `condition` `[R, d]`; keys and values exclude the condition.
    fn forward_at(
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

    /// Applies the layer at the queries with modulated norms and halves; each query has its own sequence in `x`: `[R, d]`.
    fn forward_modulated(
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
