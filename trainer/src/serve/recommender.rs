//! What answers requests. Whoever measures, serves or publishes a model knows it as a [`Recommender`] and no more.
//!
//! ```text
//! Reading (a history, where it is read, under which conditions) ─► Recommender::read ─► Answers
//!                              Answers::best    lists under filters        `retrieve`, the gate, metrics under conditions
//!                              Answers::ranks   places of given items      `evaluate`
//! ```

use std::fmt;
use std::ops::Range;

use rayon::prelude::*;

use super::rank::{RankQuery, Ranks, rank};
use super::top_k::{NotFinite, Scored, TopK};
use crate::data::conditions::Carriers;
use crate::data::{ConditionRow, ItemIndex};

/// A history, and how it is read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// Item of each event, oldest first.
    pub items: &'a [ItemIndex],
    /// Time of each event, epoch milliseconds, ascending.
    pub ts: &'a [i64],
    /// `v_t` of each event, counted inside the history; mask `row` alone looks at it.
    pub visible: &'a [u32],
    /// One answer each, by ascending length.
    pub reads: &'a [Read],
}

/// One read of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The first so many events are known, at least 1.
    pub length: usize,
    /// Its condition; `None` reads without one.
    pub condition: Option<ConditionRow>,
}

/// The items that carry a condition at a time.
#[derive(Debug, Clone, Copy)]
pub struct Carrying<'a> {
    /// Which items carry what.
    pub carriers: &'a Carriers,
    /// The condition.
    pub condition: ConditionRow,
    /// Epoch milliseconds.
    pub at: i64,
}

/// Which items a list may have.
#[derive(Debug, Clone, Copy)]
pub struct ListFilter<'a> {
    /// By item index, whether an item may be in it.
    pub allowed: &'a [bool],
    /// Items to leave out, sorted.
    pub seen: &'a [ItemIndex],
    /// Items that do not carry this are left out.
    pub carrying: Option<Carrying<'a>>,
}

impl ListFilter<'_> {
    /// Whether `item` may be in the list.
    pub fn allows(&self, item: ItemIndex) -> bool {
        self.allowed[item.index()]
            && self.seen.binary_search(&item).is_err()
            && self
                .carrying
                .is_none_or(|Carrying { carriers, condition, at }| carriers.carries(item, condition, at))
    }
}

/// An answer that lists are wanted of.
#[derive(Debug, Clone, Copy)]
pub struct ListQuery<'a> {
    /// Its place among the answers.
    pub answer: usize,
    /// One list for each.
    pub filters: &'a [ListFilter<'a>],
}

/// A recommender that cannot be made or asked.
#[derive(Debug, thiserror::Error)]
pub enum RecommendError {
    /// The model diverged.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// An approximate search was asked of a model that does not score by inner products.
    #[error("a model of architecture `{architecture}` has no vectors that a graph could search")]
    NoVectors {
        /// The model's architecture.
        architecture: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A model that is ready to be asked: histories in, lists and places out.
pub trait Recommender: fmt::Debug + Send + Sync {
    /// Items of the catalogue; their indexes are 1 to this.
    fn items(&self) -> usize;

    /// Orders items of equal scores, by a hash.
    fn seed(&self) -> u64;

    /// One answer for each read of each of `readings`, in that order.
    ///
    /// # Errors
    ///
    /// A tensor operation failed, or a condition is asked for and who carries it is not known.
    fn read<'a>(&'a self, readings: &[Reading<'_>]) -> candle_core::Result<Box<dyn Answers + 'a>>;

    /// The factor that scores under a condition have beside those under another; it orders nothing within a list.
    fn sharpness(&self, _condition: ConditionRow) -> f32 {
        1.0
    }
}

/// Answers to reads, of which lists and places are made.
pub trait Answers: Send + Sync {
    /// Whose they are.
    fn recommender(&self) -> &dyn Recommender;

    /// How many.
    fn len(&self) -> usize;

    /// Whether nothing was read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The best `k` items, best first, for each filter of each question in turn; fewer where it allows fewer.
    ///
    /// # Errors
    ///
    /// A score that is not finite.
    fn best(&self, questions: &[ListQuery<'_>], k: usize) -> Result<Vec<Vec<Scored>>, NotFinite>;

    /// What a graph finds in place of [`best`](Self::best), where the recommender has one; `None` for a list that it was left
    /// with too few items for.
    fn approximate(&self, _questions: &[ListQuery<'_>], _k: usize) -> Option<Vec<Option<Vec<Scored>>>> {
        None
    }

    /// The places of the items that `queries` (by ascending answer) ask for, among those that are `active` by item index. A model
    /// that cannot score every item gives the places in the longest list that it makes.
    ///
    /// # Errors
    ///
    /// A score that is not finite.
    fn ranks(&self, queries: &[RankQuery], active: &[bool]) -> Result<Vec<Ranks>, NotFinite>;
}

/// Answers of a model that scores every item: lists and places follow from the scores.
pub trait Scores: Send + Sync {
    /// See [`Answers::recommender`].
    fn recommender(&self) -> &dyn Recommender;

    /// See [`Answers::len`].
    fn len(&self) -> usize;

    /// Whether nothing was read.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `scores` (`[answers, items]`) with what the `answers` give to every item: item `i` at `i − 1`.
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
