//! Inner-product search over all items (§3.4): exact, or by a graph (HNSW) whose recall is measured.

mod exact;
mod hnsw;

use std::sync::Arc;

use crate::serve::top_k::NotFinite;
pub use crate::serve::top_k::Scored;
use crate::serve::top_k::TopK;
pub use hnsw::Hnsw;

/// What is asked of a search: the `k` items with the largest inner products with `vector`.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// `[d]`: the hidden state.
    pub vector: &'a [f32],
    /// By item index, whether an item may be retrieved.
    pub allowed: &'a [bool],
    /// Items to leave out, sorted.
    pub seen: &'a [u32],
}

impl Question<'_> {
    fn allows(&self, item: u32) -> bool {
        self.allowed[item as usize] && self.seen.binary_search(&item).is_err()
    }
}

/// What hidden states are multiplied with: the vectors of all items.
#[derive(Debug, Clone)]
pub struct Candidates {
    /// `[items, d]`; item `i` stands at row `i − 1`.
    vectors: Arc<Vec<f32>>,
    d: usize,
    /// Of the hash that orders equal scores, as in evaluation.
    seed: u64,
}

impl Candidates {
    /// From `[items, d]`.
    pub fn new(vectors: Vec<f32>, d: usize, seed: u64) -> Result<Self, NotFinite> {
        if vectors.iter().any(|x| !x.is_finite()) {
            return Err(NotFinite);
        }
        Ok(Self { vectors: Arc::new(vectors), d, seed })
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.vectors.len() / self.d
    }

    /// The width of a vector.
    pub fn d(&self) -> usize {
        self.d
    }

    /// For each question its best `k` items, best first; fewer where it allows fewer.
    pub fn search(&self, questions: &[Question<'_>], k: usize) -> Result<Vec<Vec<Scored>>, NotFinite> {
        exact::search(self, questions, k)
    }

    /// The best `k` of `scored`, best first.
    pub fn best(&self, scored: impl Iterator<Item = Scored>, k: usize) -> Vec<Scored> {
        let mut best = TopK::new(k, self.seed);
        scored.for_each(|Scored { item, score }| best.add(item, score));
        best.into_sorted()
    }

    fn vector(&self, item: u32) -> &[f32] {
        &self.vectors[(item as usize - 1) * self.d..][..self.d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_do_not_follow_the_index() {
        let candidates = Candidates::new(vec![0.0; 400], 1, 1).unwrap();
        let allowed = vec![true; 401];
        let question = Question { vector: &[1.0], allowed: &allowed, seen: &[] };
        let items = |k| -> Vec<u32> {
            candidates.search(&[question], k).unwrap()[0].iter().map(|scored| scored.item).collect()
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
        assert_eq!(Candidates::new(vec![f32::NAN], 1, 1).unwrap_err(), NotFinite);
        let candidates = Candidates::new(vec![1.0; 4], 2, 1).unwrap();
        let question = Question { vector: &[f32::NAN, 0.0], allowed: &[false, true, true], seen: &[] };
        assert_eq!(candidates.search(&[question], 1), Err(NotFinite));
    }
}
