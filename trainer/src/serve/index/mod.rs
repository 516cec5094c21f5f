//! Inner-product search over all items (§3.4): exact, or in a graph (HNSW) whose recall is measured. Memory: one copy of the item
//! vectors, shared by clones.

pub(super) mod exact;
mod hnsw;

use std::sync::Arc;

use super::top_k::{NotFinite, Scored, TopK};
use crate::data::ItemIndex;

pub(crate) use hnsw::Hnsw;

/// Vectors of all items, searched by inner product.
#[derive(Debug, Clone)]
pub(crate) struct ItemMatrix {
    /// `[items, d]`; item `i` is row `i − 1`.
    vectors: Arc<Vec<f32>>,
    d: usize,
    /// Seed of the hash that orders equal scores, the same as in evaluation.
    seed: u64,
}

impl ItemMatrix {
    /// Wraps `vectors`, `[items, d]`.
    ///
    /// # Errors
    ///
    /// A vector is not finite.
    pub(crate) fn new(vectors: Vec<f32>, d: usize, seed: u64) -> Result<Self, NotFinite> {
        if vectors.iter().any(|x| !x.is_finite()) {
            return Err(NotFinite);
        }
        Ok(Self { vectors: Arc::new(vectors), d, seed })
    }

    /// Returns the number of items.
    pub(crate) fn items(&self) -> usize {
        self.vectors.len() / self.d
    }

    /// Returns the length of a vector.
    pub(crate) fn d(&self) -> usize {
        self.d
    }

    /// Returns the seed of the hash that orders items of equal scores.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns the vectors, `[items, d]`, flat.
    pub(super) fn vectors(&self) -> &[f32] {
        &self.vectors
    }

    /// Returns the best `k` items, best first, for each filter of each question; fewer where the filter allows fewer.
    ///
    /// # Errors
    ///
    /// A score is not finite.
    pub(crate) fn search(
        &self,
        questions: &[exact::VectorQuery<'_>],
        k: usize,
    ) -> Result<Vec<Vec<Scored>>, NotFinite> {
        exact::search(self, questions, k)
    }

    /// Returns the best `k` of `scored`, best first.
    pub(crate) fn best(&self, scored: impl Iterator<Item = Scored>, k: usize) -> Vec<Scored> {
        let mut best = TopK::new(k, self.seed);
        scored.for_each(|Scored { item, score }| best.add(item, score));
        best.into_sorted()
    }

    fn vector(&self, item: ItemIndex) -> &[f32] {
        &self.vectors[(item.index() - 1) * self.d..][..self.d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::recommender::ListFilter;

    #[test]
    fn ties_do_not_follow_the_index() {
        let candidates = ItemMatrix::new(vec![0.0; 400], 1, 1).unwrap();
        let allowed = vec![true; 401];
        let filters = [ListFilter { allowed: &allowed, seen: &[], carrying: None }];
        let question = exact::VectorQuery { vector: &[1.0], filters: &filters };
        let items = |k| -> Vec<u32> {
            candidates.search(&[question], k).unwrap()[0].iter().map(|scored| scored.item.get()).collect()
        };
        let all = items(400);
        assert!(!all.is_sorted() && all[..200].iter().any(|&item| item > 200));
        assert_eq!(items(7), all[..7]);
        let mut sorted = all;
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=400).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_not_finite_is_an_error() {
        assert_eq!(ItemMatrix::new(vec![f32::NAN], 1, 1).unwrap_err(), NotFinite);
        let candidates = ItemMatrix::new(vec![1.0; 4], 2, 1).unwrap();
        let filters = [ListFilter { allowed: &[false, true, true], seen: &[], carrying: None }];
        let question = exact::VectorQuery { vector: &[f32::NAN, 0.0], filters: &filters };
        assert_eq!(candidates.search(&[question], 1), Err(NotFinite));
    }
}
