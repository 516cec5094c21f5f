//! The plan of a step, made before the step: embedding rows, tokens, targets and candidates. Holds indexes only, no vectors.

use std::sync::Arc;

use ragged::{Candidates, Targets};

use crate::batch::{Anchors, TrainingBatch};
use crate::data::vocabulary::Vocabulary;
use crate::data::{IdSet, ItemIndex, StepItem, Token, VectorRow};
use crate::models::{ItemRows, Tokens};

/// The embedding rows that a step reads, and the candidates of each target.
#[derive(Debug)]
pub struct Plan {
    /// Batch of the step.
    pub batch: TrainingBatch,
    /// Embedding rows of the items that the step needs.
    pub rows: ItemRows,
    /// Histories, as rows of those items' vectors.
    pub tokens: Tokens,
    /// Item of each [`Candidate`](crate::data::Candidate); `None` if all items of the step compete, in their order.
    pub candidates: Option<Vec<StepItem>>,
    /// Targets of each branch.
    pub branches: Vec<BranchPlan>,
}

impl Plan {
    /// Plans a step that needs the vectors of `items`, of which `candidates` compete. `asked` turns a branch's anchors into
    /// targets, one row per target if its flag is true, one row per distinct token if false. With `plain`, targets under a
    /// condition are also predicted without one.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        batch: TrainingBatch,
        items: &IdSet<ItemIndex>,
        candidates: Option<Vec<StepItem>>,
        plain: bool,
        asked: impl Fn(&Anchors, bool) -> BranchTargets,
    ) -> Self {
        let of_branch = |anchors: &Anchors| {
            if anchors.items.is_empty() {
                return BranchPlan::default();
            }
            let instructed = anchors.reads.as_ref().map(|_| asked(anchors, true));
            let plain = instructed.is_none() || plain;
            BranchPlan { instructed, plain: plain.then(|| asked(anchors, false)) }
        };
        let row = |&item: &ItemIndex| match item {
            ItemIndex::NO_ITEM => VectorRow::START,
            item => StepItem::new(items.rank(item)).into(),
        };
        Self {
            tokens: Tokens { embedding: batch.items.iter().map(row).collect(), layout: batch.layout.clone() },
            candidates,
            branches: batch.branches.iter().map(of_branch).collect(),
            rows: ItemRows::new(vocabulary, &items.to_vec()),
            batch,
        }
    }

    /// Returns the number of candidates that compete with every target.
    pub fn competitors(&self) -> usize {
        let asked =
            self.branches.iter().find_map(|branch| branch.instructed.as_ref().or(branch.plain.as_ref()));
        let all = self.candidates.as_ref().map_or(self.rows.items(), Vec::len);
        asked.map_or(0, |asked| asked.competitors.competing(all))
    }
}

/// Targets of one branch.
#[derive(Debug, Default)]
pub struct BranchPlan {
    /// Under the conditions of the batch's reads (Eq. 6).
    pub instructed: Option<BranchTargets>,
    /// Without a condition.
    pub plain: Option<BranchTargets>,
}

/// Targets at rows of the batch, and the candidates they compete with.
#[derive(Debug)]
pub struct BranchTargets {
    /// Token of each row of the softmax.
    pub rows: Vec<Token>,
    /// Targets of each row.
    pub targets: Arc<Targets>,
    /// Candidates that compete with the targets.
    pub competitors: Arc<Candidates>,
}
