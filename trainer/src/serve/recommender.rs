//! The interface of everything that answers requests: evaluation, retrieval and the gate depend on [`Recommender`] alone.
//!
//! ```text
//! Reading (a history, its lengths and conditions) ─► Recommender::read ─► Answers
//!     Answers::best    lists under filters      `retrieve`, the gate, metrics under conditions
//!     Answers::ranks   ranks of given items     `evaluate`
//! ```

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use super::rank::{RankQuery, Ranks, rank};
use super::top_k::{NotFinite, Scored, TopK};
use crate::data::conditions::Carriers;
use crate::data::{ConditionRow, ItemIndex};

/// A history and the reads of it.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// Item of each event, oldest first.
    pub items: &'a [ItemIndex],
    /// Time of each event, epoch milliseconds, ascending.
    pub ts: &'a [i64],
    /// `v_t` of each event (the number of earlier events visible to it), counted inside the history; only mask `row` uses it.
    pub visible: &'a [u32],
    /// Reads, in any order; each gives one answer.
    pub reads: &'a [Read],
}

/// One read of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Number of events known, from the oldest; at least 1.
    pub length: usize,
    /// Condition of the read; `None` reads without one.
    pub condition: Option<ConditionRow>,
}

/// Items that carry a condition at a given time.
#[derive(Debug, Clone, Copy)]
pub struct Carrying<'a> {
    /// Index of which items carry which conditions.
    pub carriers: &'a Carriers,
    /// The condition.
    pub condition: ConditionRow,
    /// Time of the read, epoch milliseconds.
    pub at: i64,
}

/// The items that a list may contain.
#[derive(Debug, Clone, Copy)]
pub struct ListFilter<'a> {
    /// Whether an item may be listed, by item index.
    pub allowed: &'a [bool],
    /// Items to exclude, sorted.
    pub seen: &'a [ItemIndex],
    /// Restricts the list to items that carry this condition.
    pub carrying: Option<Carrying<'a>>,
}

impl ListFilter<'_> {
    /// True if `item` may be listed.
    pub fn allows(&self, item: ItemIndex) -> bool {
        self.allowed[item.index()]
            && self.seen.binary_search(&item).is_err()
            && self
                .carrying
                .is_none_or(|Carrying { carriers, condition, at }| carriers.carries(item, condition, at))
    }
}

/// A request for lists from one answer.
#[derive(Debug, Clone, Copy)]
pub struct ListQuery<'a> {
    /// Index of the answer in [`Answers`].
    pub answer: usize,
    /// Filters; each gives one list.
    pub filters: &'a [ListFilter<'a>],
}

/// An error in preparing or querying a recommender.
#[derive(Debug, thiserror::Error)]
pub enum RecommendError {
    /// A score or vector is not finite: the model diverged.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// Approximate search was requested from a model that does not score by inner products.
    #[error("a model of architecture `{architecture}` has no vectors that a graph could search")]
    NoVectors {
        /// Architecture of the model.
        architecture: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A model ready to serve: turns histories into lists and ranks.
pub trait Recommender: fmt::Debug + Send + Sync {
    /// Returns the number of items in the catalogue; item indexes are `1..=items`.
    fn items(&self) -> usize;

    /// Returns the seed of the hash that orders items of equal scores.
    fn seed(&self) -> u64;

    /// Returns one answer for each read of each of `readings`, in that order.
    ///
    /// # Errors
    ///
    /// A tensor operation fails, or a read has a condition whose carriers are unknown.
    fn read<'a>(&'a self, readings: &[Reading<'_>]) -> candle_core::Result<Box<dyn Answers + 'a>>;

    /// Returns the learned factor that multiplies all scores under `condition`; it does not change the order within a list.
    fn sharpness(&self, _condition: ConditionRow) -> f32 {
        1.0
    }
}

/// Answers to reads, from which lists and ranks are computed.
pub trait Answers: Send + Sync {
    /// Returns the recommender that gave the answers.
    fn recommender(&self) -> &dyn Recommender;

    /// Returns the number of answers.
    fn len(&self) -> usize;

    /// True if there are no answers.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the best `k` items, best first, for each filter of each question in turn; fewer where the filter allows fewer.
    ///
    /// # Errors
    ///
    /// A score is not finite.
    fn best(&self, questions: &[ListQuery<'_>], k: usize) -> Result<Vec<Vec<Scored>>, NotFinite>;

    /// Returns the lists of [`best`](Self::best) as the graph finds them; `None` without a graph. A list is `None` where the
    /// filter leaves fewer than `k` of the items found.
    fn approximate(&self, _questions: &[ListQuery<'_>], _k: usize) -> Option<Vec<Option<Vec<Scored>>>> {
        None
    }

    /// Returns the ranks of the items of `queries` (by ascending answer) among the items that are `active`, by item index. A
    /// model that cannot score every item returns ranks within the longest list it makes.
    ///
    /// # Errors
    ///
    /// A score is not finite.
    fn ranks(&self, queries: &[RankQuery], active: &[bool]) -> Result<Vec<Ranks>, NotFinite>;
}

/// Answers of a model that scores every item; lists and ranks follow from the scores.
pub trait Scores: Send + Sync {
    /// See [`Answers::recommender`].
    fn recommender(&self) -> &dyn Recommender;

    /// See [`Answers::len`].
    fn len(&self) -> usize;

    /// True if there are no answers.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `scores` (`[answers, items]`) with the scores of all items for `answers`; item `i` is at column `i − 1`.
    fn score(&self, answers: Range<usize>, scores: &mut [f32]);
}

impl<T: Scores> Answers for T {
    fn recommender(&self) -> &dyn Recommender {
        Scores::recommender(self)
    }

    fn len(&self) -> usize {
        Scores::len(self)
    }

    fn best(&self, questions: &[ListQuery<'_>], k: usize) -> Result<Vec<Vec<Scored>>, NotFinite> {
        let (items, seed) = (Scores::recommender(self).items(), Scores::recommender(self).seed());
        let lists: Vec<Result<Vec<Vec<Scored>>, NotFinite>> = questions
            .par_iter()
            .map_init(
                || vec![0f32; items],
                |scores, question| {
                    self.score(question.answer..question.answer + 1, scores);
                    let list = |filter: &ListFilter<'_>| {
                        let mut best = TopK::new(k, seed);
                        best.offer(ItemIndex::new(1), scores, |item| filter.allows(item))?;
                        Ok(best.into_sorted())
                    };
                    question.filters.iter().map(list).collect()
                },
            )
            .collect();
        Ok(lists.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    }

    fn ranks(&self, queries: &[RankQuery], active: &[bool]) -> Result<Vec<Ranks>, NotFinite> {
        rank(queries, active, Scores::recommender(self).seed(), |answers, scores| self.score(answers, scores))
    }
}
