//! What turns embedded histories into the states that are scored: one file is one paper's encoder.

use std::fmt;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{AttentionLayout, Dropout, Queries};

use super::layers::Modulated;
use crate::data::{Token, from_u32s};

/// A causal encoder of ragged histories. `T` are the tokens of a batch; no row of a history depends on a later one.
pub trait Encoder: fmt::Debug + Send + Sync {
    /// `K`: how many heads predict from the backbone.
    fn branches(&self) -> usize {
        1
    }

    /// What is added to the embedded tokens `x` `[T, d]` before the first layer.
    ///
    /// # Errors
    ///
    /// A tensor operation failed; so for the others.
    fn embed(&self, x: Tensor, _layout: &AttentionLayout) -> Result<Tensor> {
        Ok(x)
    }

    /// The shared backbone `H`: `[T, d]` → `[T, d]`.
    fn backbone(&self, x: Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor>;

    /// Branch `k` (from 1) on top of the backbone's output, at the tokens `rows`: `[rows, d]`.
    fn branch(
        &self,
        k: usize,
        backbone: &Tensor,
        layout: &Arc<AttentionLayout>,
        rows: &[Token],
        dropout: Option<Dropout>,
    ) -> Result<Tensor>;

    /// The same where only the rows at `queries` are computed, under an instruction: `[queries, d]`. Without layers in its
    /// branches an encoder computes all rows, and follows no instruction.
    fn branch_at(
        &self,
        k: usize,
        backbone: &Tensor,
        layout: &Arc<AttentionLayout>,
        queries: &Arc<Queries>,
        instruction: BranchInstruction<'_>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        match instruction {
            BranchInstruction::None if queries.matches.is_none() => {
                self.branch(k, backbone, layout, from_u32s(&queries.tokens), dropout)
            }
            _ => candle_core::bail!("only a branch with a layer of its own follows instructions"),
        }
    }
}

/// How an instruction enters a branch.
#[derive(Debug)]
pub enum BranchInstruction<'a> {
    /// Not at all, or by what its queries may look at.
    None,
    /// As a row added to each query, `[queries, d]`.
    Added(&'a Tensor),
    /// By norms and halves that are modulated; every query has a sequence of its own.
    Modulated(Modulated<'a>),
}

impl<'a> BranchInstruction<'a> {
    /// What is added, if anything is.
    pub(super) fn added(condition: Option<&'a Tensor>) -> Self {
        condition.map_or(Self::None, Self::Added)
    }
}
