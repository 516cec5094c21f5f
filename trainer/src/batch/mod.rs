//! Ragged batches for training steps: the tokens, and what each branch predicts from which token.
//!
//! `histories.rs` turns histories into tokens, for training, evaluation and requests. `pretrain.rs` (Eq. 4) and `instructed.rs`
//! (Eq. 6) choose the targets of each branch; `loader.rs` prepares batches in the background.

mod histories;
mod instructed;
mod loader;
mod pretrain;

use std::sync::Arc;

pub use histories::{HistoryBatch, context_length};
pub use loader::{BatchesFrom, ahead};
use ragged::AttentionLayout;

use crate::data::{ItemIndex, Token};
use crate::models::Reads;

/// Targets of one branch: it predicts `items[i]` from the hidden state at token `tokens[i]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Anchors {
    /// Token from which each target is predicted, ascending.
    pub tokens: Vec<Token>,
    /// Target items.
    pub items: Vec<ItemIndex>,
    /// Anchor of each target: its position in the flat lists of [`SequencesTable`](crate::data::SequencesTable), or its example's
    /// number. All branches share anchors.
    pub positions: Vec<u32>,
    /// Weight of each target's loss; the mean over all training targets is 1.
    pub weights: Vec<f32>,
    /// Conditions under which the tokens are read (Eq. 6); `None` in pre-training.
    pub reads: Option<Reads>,
}

impl Anchors {
    /// Returns the share of target `i` in the branch's mean loss.
    pub fn share(&self, i: usize) -> f32 {
        self.weights[i] / self.items.len() as f32
    }
}

/// Rows of `sequences`, or histories of examples, as a ragged batch; each begins with the start-of-sequence token.
#[derive(Debug, Clone, Default)]
pub struct TrainingBatch {
    /// Item of each token; [`ItemIndex::NO_ITEM`] is the start-of-sequence token.
    pub items: Vec<ItemIndex>,
    /// Sequence boundaries, times and visible keys.
    pub layout: Arc<AttentionLayout>,
    /// Targets of each branch.
    pub branches: Vec<Anchors>,
    /// Number of targets without visible history that carry no loss, over all branches.
    pub without_history: usize,
}

impl TrainingBatch {
    /// Returns the number of sequences.
    pub fn sequences(&self) -> usize {
        self.layout.offsets.len() - 1
    }

    /// Returns the number of targets in all branches.
    pub fn targets(&self) -> usize {
        self.branches.iter().map(|b| b.items.len()).sum()
    }
}
