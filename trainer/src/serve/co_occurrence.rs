//! Item-to-item co-occurrence: the items that most often follow the last one, the strongest baseline without a model.
//!
//! Memory: one map entry per distinct pair of consecutive items.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use schemas::history::Role;

use super::popular::{PopularityOrder, places};
use super::recommender::{Answers, Reading, Recommender, Scores};
use crate::data::{ItemIndex, SequencesTable};

/// How often each item directly followed each other item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followers(HashMap<ItemIndex, After>);

/// Items that followed one item.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct After {
    /// Number of times, by item.
    times: HashMap<ItemIndex, u32>,
    /// Sum over all items.
    all: u64,
}

impl Followers {
    /// Counts consecutive pairs of training positions.
    pub fn of_training(sequences: &SequencesTable) -> Self {
        let mut followers = Self::default();
        for row in 0..sequences.rows() {
            let start = sequences.row(row).start;
            for t in sequences.owned(row).filter(|&t| t > start) {
                let consecutive = sequences.places[t - 1] + 1 == sequences.places[t];
                if consecutive && matches!(sequences.roles[t], Role::Pretrain | Role::Sft) {
                    followers.add(sequences.items[t - 1], sequences.items[t], 1);
                }
            }
        }
        followers
    }

    /// Returns how often `item` directly followed `last`, and how often any item did.
    pub fn count(&self, last: ItemIndex, item: ItemIndex) -> (u32, u64) {
        let Some(After { times, all }) = self.0.get(&last) else { return (0, 0) };
        (times.get(&item).copied().unwrap_or(0), *all)
    }

    /// Adds `times` occurrences of `item` directly after `last`.
    pub fn add(&mut self, last: ItemIndex, item: ItemIndex, times: u32) {
        let after = self.0.entry(last).or_default();
        *after.times.entry(item).or_default() += times;
        after.all += u64::from(times);
    }

    /// Iterates over pairs `(item, following item, count)`.
    pub fn iter(&self) -> impl Iterator<Item = (ItemIndex, ItemIndex, u32)> {
        self.0.iter().flat_map(|(&last, after)| after.times.iter().map(move |(&item, &n)| (last, item, n)))
    }
}

/// Scores items by how often they directly followed the last visible item in all users' training events, then by popularity.
#[derive(Debug, Clone)]
pub struct CoOccurrence {
    popularity: PopularityOrder,
    followers: Arc<Followers>,
    seed: u64,
}

impl CoOccurrence {
    /// Builds the scores from `followers` and from `counts`, the number of training events by item index.
    pub fn new(followers: impl Into<Arc<Followers>>, counts: &[u32], seed: u64) -> Self {
        Self { popularity: PopularityOrder::new(counts), followers: followers.into(), seed }
    }

    /// Fills the scores of all items (item `i` at `i − 1`) after `last`: the place of each item divided by the highest place, so
    /// that scores are comparable between models with different numbers of counts.
    pub fn score(&self, last: Option<ItemIndex>, scores: &mut [f32]) {
        let (popularity, different) = (self.popularity.places(), self.popularity.different);
        self.popularity.score(scores);
        let mut first = different.saturating_sub(1) as f32;
        if let Some(After { times, .. }) = last.and_then(|last| self.followers.0.get(&last)) {
            let of = |(&item, &count): (&ItemIndex, &u32)| (count, popularity[item.index()] as u32);
            let counts: Vec<(u32, u32)> = times.iter().map(of).collect();
            for (item, place) in times.keys().zip(places(&counts).0) {
                // Followers rank above all items that never followed.
                scores[item.index() - 1] = different as f32 + place;
                first = first.max(different as f32 + place);
            }
        }
        scores.iter_mut().for_each(|score| *score /= first.max(1.0));
    }
}

impl Recommender for CoOccurrence {
    fn items(&self) -> usize {
        self.popularity.places().len() - 1
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn read<'a>(&'a self, readings: &[Reading<'_>]) -> candle_core::Result<Box<dyn Answers + 'a>> {
        let last = |reading: &Reading<'_>| {
            let last =
                reading.reads.iter().map(|read| read.length.checked_sub(1).map(|last| reading.items[last]));
            last.collect::<Vec<_>>()
        };
        Ok(Box::new(LastItems { of: self, last: readings.iter().flat_map(last).collect() }))
    }
}

/// Last known item of each read.
struct LastItems<'a> {
    of: &'a CoOccurrence,
    last: Vec<Option<ItemIndex>>,
}

impl Scores for LastItems<'_> {
    fn recommender(&self) -> &dyn Recommender {
        self.of
    }

    fn len(&self) -> usize {
        self.last.len()
    }

    fn score(&self, answers: Range<usize>, scores: &mut [f32]) {
        for (last, scores) in self.last[answers].iter().zip(scores.chunks_exact_mut(self.of.items())) {
            self.of.score(*last, scores);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ids;

    #[test]
    fn followers_come_first_by_how_often_then_by_popularity() {
        // One user: 1 2 1 3 1 2 1 4; item 5 is the most popular by far.
        let items: Vec<ItemIndex> = ids(&[1, 2, 1, 3, 1, 2, 1, 4]);
        let n = items.len();
        let sequences = SequencesTable {
            offsets: vec![0, n],
            items,
            roles: vec![Role::Pretrain; n],
            places: (0..n as u32).collect(),
            target_from: vec![0],
            ..SequencesTable::default()
        };
        let counts = [0, 4, 2, 1 << 24, (1 << 24) + 1, u32::MAX];
        let mut scores = [0.0; 5];
        CoOccurrence::new(Followers::of_training(&sequences), &counts, 1).score(Some(1.into()), &mut scores);
        let mut order: Vec<usize> = (1..=5).collect();
        order.sort_by(|&a, &b| scores[b - 1].total_cmp(&scores[a - 1]));
        assert_eq!(order, [2, 4, 3, 5, 1], "{scores:?}");
    }
}
