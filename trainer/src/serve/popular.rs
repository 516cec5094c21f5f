//! The most popular items: the baseline of every model, and the list served to users without history.

use std::ops::Range;

use super::recommender::{Answers, Reading, Recommender, Scores};

/// Items ordered by their number of training events.
#[derive(Debug, Clone)]
pub struct PopularityOrder {
    /// Number of distinct counts below the item's own, by item index. Equal exactly for equal counts, and small enough for `f32`,
    /// which is inexact from 2^24 on.
    places: Vec<f32>,
    /// Number of distinct counts.
    pub(super) different: usize,
}

impl PopularityOrder {
    /// Builds the order from `counts`, the number of training events by item index.
    pub fn new(counts: &[u32]) -> Self {
        let (places, different) = places(counts);
        Self { places, different }
    }

    /// Returns the place of each item, by item index: higher for higher counts, equal for equal counts.
    pub fn places(&self) -> &[f32] {
        &self.places
    }

    /// Fills the scores of all items (item `i` at `i − 1`).
    pub fn score(&self, scores: &mut [f32]) {
        scores.copy_from_slice(&self.places[1..]);
    }
}

/// Returns, for each value, the number of distinct smaller values, and the number of distinct values in all.
pub(super) fn places<T: Ord + Copy>(values: &[T]) -> (Vec<f32>, usize) {
    let mut different = values.to_vec();
    different.sort_unstable();
    different.dedup();
    let place = |value: &T| different.partition_point(|other| other < value) as f32;
    (values.iter().map(place).collect(), different.len())
}

/// A recommender that gives every history the same list, most popular first.
#[derive(Debug, Clone)]
pub struct Popular {
    /// Popularity of the items.
    pub popularity: PopularityOrder,
    /// Seed of the hash that orders items of equal counts.
    pub seed: u64,
}

impl Recommender for Popular {
    fn items(&self) -> usize {
        self.popularity.places.len() - 1
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn read<'a>(&'a self, readings: &[Reading<'_>]) -> candle_core::Result<Box<dyn Answers + 'a>> {
        Ok(Box::new(PopularAnswers {
            of: self,
            len: readings.iter().map(|reading| reading.reads.len()).sum(),
        }))
    }
}

struct PopularAnswers<'a> {
    of: &'a Popular,
    len: usize,
}

impl Scores for PopularAnswers<'_> {
    fn recommender(&self) -> &dyn Recommender {
        self.of
    }

    fn len(&self) -> usize {
        self.len
    }

    fn score(&self, _answers: Range<usize>, scores: &mut [f32]) {
        scores.chunks_exact_mut(self.of.items()).for_each(|scores| self.of.popularity.score(scores));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A count from which `f32` no longer distinguishes neighbours.
    const MANY: u32 = 1 << 24;

    #[test]
    fn popular_items_stay_in_order_beyond_what_floats_tell_apart() {
        let mut scores = [0.0; 4];
        PopularityOrder::new(&[0, MANY + 1, MANY, 0, MANY]).score(&mut scores);
        assert!(scores[0] > scores[1] && scores[1] == scores[3] && scores[3] > scores[2], "{scores:?}");
        assert!((MANY + 1) as f32 == MANY as f32);
    }
}
