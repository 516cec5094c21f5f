//! What a step computes, made before the step.

use std::sync::Arc;

use ragged::{Candidates, Targets};

use crate::batch::{Anchors, TrainingBatch};
use crate::data::vocabulary::Vocabulary;
use crate::data::{IdSet, ItemIndex, StepItem, Token, VectorRow};
use crate::models::{ItemRows, Tokens};

/// What a step computes: which rows of which tables, and who competes with whom.
#[derive(Debug)]
pub struct Plan {
    /// The batch.
    pub batch: TrainingBatch,
    /// Of the items that the step needs.
    pub rows: ItemRows,
    /// The histories, in terms of those items.
    pub tokens: Tokens,
    /// The item of each [`Candidate`](crate::data::Candidate); `None` where all of them compete, in their order.
    pub candidates: Option<Vec<StepItem>>,
    /// What is asked of each branch.
    pub branches: Vec<BranchPlan>,
}

impl Plan {
    /// For a step that needs the vectors of `items`, of which `candidates` compete, and asks each branch what `asked` makes of its
    /// anchors: one row for each target with `true`, one for each distinct token with `false`. `plain` says whether what is read
    /// under a condition is read without one too.
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

    /// Candidates that compete with every target.
    pub fn competitors(&self) -> usize {
        let asked =
            self.branches.iter().find_map(|branch| branch.instructed.as_ref().or(branch.plain.as_ref()));
        let all = self.candidates.as_ref().map_or(self.rows.items(), Vec::len);
        asked.map_or(0, |asked| asked.competitors.competing(all))
    }
}

/// What is asked of one branch.
#[derive(Debug, Default)]
pub struct BranchPlan {
    /// Under the conditions of the batch's reads (Eq. 6).
    pub instructed: Option<BranchTargets>,
    /// Without any.
    pub plain: Option<BranchTargets>,
}

/// Targets at rows of the batch, and what competes with them.
#[derive(Debug)]
pub struct BranchTargets {
    /// Where it is asked: one token a row of the softmax.
    pub rows: Vec<Token>,
    /// The targets of each row.
    pub targets: Arc<Targets>,
    /// What competes with them.
    pub competitors: Arc<Candidates>,
}
