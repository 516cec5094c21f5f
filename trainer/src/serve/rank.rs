//! Full ranking: every target against every active item, without a matrix of users × items.
//!
//! Memory: one block of scores per thread, at most 32 rows and 16 MiB (or one row, if longer).

use std::ops::Range;

use ragged::vector;
use rayon::prelude::*;
use schemas::hash::mix64;

use super::top_k::NotFinite;
use crate::data::ItemIndex;

/// Maximum answers scored together, and maximum scores in memory per thread.
const BLOCK: usize = 32;
const SCORES: usize = 1 << 22;

/// Returns the number of rows of `items` scores that a thread may hold.
pub(crate) fn rows_of_scores(items: usize) -> usize {
    (SCORES / items.max(1)).clamp(1, BLOCK)
}

/// Ranks of a target, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ranks {
    /// Rank among all items; `None` if the target cannot be retrieved.
    pub all: Option<u32>,
    /// Rank among the items unseen by the user; `None` also if the user has seen the target.
    pub unseen: Option<u32>,
}

impl Ranks {
    /// Returns `unseen` if `filter_seen`, else `all`.
    pub fn among(self, filter_seen: bool) -> Option<u32> {
        if filter_seen { self.unseen } else { self.all }
    }
}

/// One question: the rank of `item`.
#[derive(Debug, Clone)]
pub struct RankQuery {
    /// Target item.
    pub item: ItemIndex,
    /// Items seen by the user, sorted, without duplicates.
    pub seen: Vec<ItemIndex>,
    /// Index of the answer whose scores rank it.
    pub answer: usize,
}

/// Returns the ranks of the items of `queries`, which come by ascending answer.
///
/// `score(answers, scores)` fills the scores of all items for `answers`: item `i` of the `a`-th at `a · items + i − 1`.
/// `active[item]` is true if an item can be retrieved. A seeded hash of the item orders equal scores, not its index.
///
/// # Errors
///
/// A score is not finite.
pub fn rank(
    queries: &[RankQuery],
    active: &[bool],
    seed: u64,
    score: impl Fn(Range<usize>, &mut [f32]) + Sync,
) -> Result<Vec<Ranks>, NotFinite> {
    let items = active.len() - 1;
    let ranks: Vec<Result<Vec<Ranks>, NotFinite>> = queries
        .par_chunks(rows_of_scores(items))
        .map_init(Vec::new, |scores, queries| {
            let (Some(first), Some(last)) = (queries.first(), queries.last()) else { return Ok(Vec::new()) };
            let answers = first.answer..last.answer + 1;
            scores.resize(answers.len() * items, 0f32);
            score(answers, scores);
            let of = |query: &RankQuery| {
                let from = (query.answer - first.answer) * items;
                rank_one(query, active, seed, &scores[from..from + items])
            };
            queries.iter().map(of).collect()
        })
        .collect();
    Ok(ranks.into_iter().collect::<Result<Vec<Vec<Ranks>>, NotFinite>>()?.concat())
}

fn rank_one(query: &RankQuery, active: &[bool], seed: u64, scores: &[f32]) -> Result<Ranks, NotFinite> {
    let own = scores[query.item.index() - 1];
    let (sum, better, equal) = vector::widest(
        #[inline(always)]
        || count(scores, &active[1..], own),
    );
    // A single NaN makes the sum NaN.
    if !sum.is_finite() {
        return Err(NotFinite);
    }
    if !active[query.item.index()] {
        return Ok(Ranks { all: None, unseen: None });
    }
    let order = |item: ItemIndex| mix64(seed, u64::from(item.get()));
    let before = |item: ItemIndex| {
        let score = scores[item.index() - 1];
        active[item.index()] && (score > own || (score == own && order(item) < order(query.item)))
    };
    let mut ahead = better;
    if equal > 1 {
        ahead +=
            (1u32..).zip(scores).filter(|&(item, &score)| score == own && before(item.into())).count() as u32;
    }
    let seen_ahead = query.seen.iter().filter(|&&item| item != query.item && before(item)).count() as u32;
    let unseen = query.seen.binary_search(&query.item).is_err().then_some(ahead - seen_ahead + 1);
    Ok(Ranks { all: Some(ahead + 1), unseen })
}

/// Returns the sum of all scores, the number of active items that score above `own` and the number that score equal to it.
#[inline(always)]
fn count(scores: &[f32], active: &[bool], own: f32) -> (f32, u32, u32) {
    let (mut better, mut equal) = (0u32, 0u32);
    for (&score, &active) in scores.iter().zip(active) {
        // Wrapping: an overflow check would prevent vectorization.
        better = better.wrapping_add(u32::from(active & (score > own)));
        equal = equal.wrapping_add(u32::from(active & (score == own)));
    }
    (vector::sum(scores), better, equal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ids;

    fn one(item: u32, seen: &[u32], active: &[bool], scores: &[f32]) -> Ranks {
        let query = RankQuery { item: item.into(), seen: ids(seen), answer: 0 };
        rank(&[query], active, 1, |_, out| out.copy_from_slice(scores)).unwrap()[0]
    }

    #[test]
    fn ranks_count_better_active_unseen_items() {
        let active = [false, true, true, true, true];
        let scores = [0.4, 0.3, 0.2, 0.1];
        assert_eq!(one(3, &[], &active, &scores), Ranks { all: Some(3), unseen: Some(3) });
        assert_eq!(one(3, &[1], &active, &scores), Ranks { all: Some(3), unseen: Some(2) });
        assert_eq!(one(3, &[3], &active, &scores), Ranks { all: Some(3), unseen: None });
        let delisted = [false, true, false, true, false];
        assert_eq!(one(3, &[], &delisted, &scores), Ranks { all: Some(2), unseen: Some(2) });
        assert_eq!(one(4, &[], &delisted, &scores), Ranks { all: None, unseen: None });
    }

    #[test]
    fn scores_in_memory_do_not_grow_with_the_catalogue() {
        assert_eq!(rows_of_scores(0), BLOCK);
        for items in [1, 12_000, 131_072, 131_073, 1_000_000, 4_194_304, 6_000_000] {
            let rows = rows_of_scores(items);
            assert!((1..=BLOCK).contains(&rows) && (rows == 1 || rows * items <= SCORES), "{items}: {rows}");
        }
    }

    #[test]
    fn ties_do_not_follow_the_index() {
        let n = 400;
        let active = vec![true; n + 1];
        let mut ranks: Vec<u32> =
            (1..=n as u32).map(|item| one(item, &[], &active, &vec![0.0; n]).all.unwrap()).collect();
        assert!(!ranks.is_sorted() && ranks[..n / 2].iter().any(|&r| r as usize > n / 2));
        ranks.sort_unstable();
        assert_eq!(ranks, (1..=n as u32).collect::<Vec<_>>());
    }

    #[test]
    fn scores_must_be_finite() {
        let query = RankQuery { item: 1.into(), seen: vec![], answer: 0 };
        assert_eq!(rank(&[query], &[true; 3], 1, |_, out| out[1] = f32::NAN), Err(NotFinite));
    }
}
