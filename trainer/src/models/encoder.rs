//! The trait of encoders, which turn embedded histories into the states that are scored. Each implementation is one paper's
//! encoder in its own file.

use std::fmt;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{AttentionLayout, Dropout, Queries};

use super::layers::Modulated;
use crate::data::{Token, from_u32s};

/// A causal encoder of ragged histories: no row of a history depends on a later one. `T` is the number of tokens in a batch.
pub trait Encoder: fmt::Debug + Send + Sync {
    /// Returns the number of branches that predict from the backbone, `K`.
    fn branches(&self) -> usize {
        1
    }

    /// Returns the embedded tokens `x` `[T, d]` with all that is added before the first layer.
    ///
    /// # Errors
    ///
    /// A tensor operation failed; this holds for all methods.
    fn embed(&self, x: Tensor, _layout: &AttentionLayout) -> Result<Tensor> {
        Ok(x)
    }

    /// Computes the shared backbone `H`: `[T, d]` → `[T, d]`.
    fn backbone(&self, x: Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor>;

    /// Computes branch `k` (from 1) from the backbone's output `[T, d]`, at the tokens `rows`: `[rows, d]`.
    fn branch(
        &self,
        k: usize,
        backbone: &Tensor,
        layout: &Arc<AttentionLayout>,
        rows: &[Token],
        dropout: Option<Dropout>,
    ) -> Result<Tensor>;

    /// Computes branch `k` at `queries` only, under an instruction: `[queries, d]`. The default, for encoders without layers in
    /// their branches, computes all rows.
    ///
    /// # Errors
    ///
    /// The default returns one if there is an instruction: following it takes a branch with a layer of its own.
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
    /// Not at all, or only through the mask of its queries.
    None,
    /// As a row added to each query, `[queries, d]`.
    Added(&'a Tensor),
    /// By modulating the norms and both halves of the layer; each query has its own sequence.
    Modulated(Modulated<'a>),
}

impl<'a> BranchInstruction<'a> {
    /// Returns `Added` if there is a condition row, otherwise `None`.
    pub(super) fn added(condition: Option<&'a Tensor>) -> Self {
        condition.map_or(Self::None, Self::Added)
    }
}
