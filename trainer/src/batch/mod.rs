//! From rows of tables to what a training step computes: ragged batches, and what each branch is to predict from where.
//!
//! `histories.rs` is the only way from histories to tokens, for training, evaluation and requests. `pretrain.rs` and `instructed.rs` say
//! what each branch predicts from where (Eq. 4, Eq. 6); `loader.rs` prepares batches in the background.

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

/// What one branch is to predict: `items[i]` from the hidden state at token `tokens[i]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Anchors {
    /// Where each target is predicted, ascending.
    pub tokens: Vec<Token>,
    /// The targets.
    pub items: Vec<ItemIndex>,
    /// Anchor position in the flat lists of [`SequencesTable`](crate::data::SequencesTable), or the number of the example; all
    /// branches share anchors.
    pub positions: Vec<u32>,
    /// Weight of each target's loss; 1 on average over all rows.
    pub weights: Vec<f32>,
    /// Under which conditions the tokens are read, where they are (Eq. 6).
    pub reads: Option<Reads>,
}

impl Anchors {
    /// The share of target `i` in the branch's mean loss.
    pub fn share(&self, i: usize) -> f32 {
        self.weights[i] / self.items.len() as f32
    }
}

/// Rows of `sequences` as a ragged batch. Every row's tokens begin with the start-of-sequence token.
#[derive(Debug, Clone, Default)]
pub struct TrainingBatch {
    /// Item of each token; [`ItemIndex::NO_ITEM`] is the start-of-sequence token.
    pub items: Vec<ItemIndex>,
    /// Boundaries, times and visible keys.
    pub layout: Arc<AttentionLayout>,
    /// For each branch, its targets.
    pub branches: Vec<Anchors>,
    /// Targets with nothing visible that carry no loss, over all branches.
    pub without_history: usize,
}

impl TrainingBatch {
    /// Rows of the batch.
    pub fn sequences(&self) -> usize {
        self.layout.offsets.len() - 1
    }

    /// Targets of all branches.
    pub fn targets(&self) -> usize {
        self.branches.iter().map(|b| b.items.len()).sum()
    }
}
