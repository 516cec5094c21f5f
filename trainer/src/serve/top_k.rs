//! Top-k selection, used by every list that is served or measured. Memory: `k + 1` entries.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use schemas::hash::mix64;

use crate::data::ItemIndex;

/// Scores compared with the threshold per step.
const TOGETHER: usize = 32;

/// A score that is NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model gives scores that are not finite; it has diverged")]
pub struct NotFinite;

/// An item and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The item.
    pub item: ItemIndex,
    /// Its score, `φ(h, e)`.
    pub score: f32,
}

/// The best `k` items so far. A seeded hash of the item orders equal scores, not its index.
#[derive(Debug)]
pub struct TopK {
    k: usize,
    seed: u64,
    /// Min-heap: the worst item is on top.
    heap: BinaryHeap<Reverse<Entry>>,
}

impl TopK {
    /// Returns an empty selection.
    pub fn new(k: usize, seed: u64) -> Self {
        Self { k, seed, heap: BinaryHeap::with_capacity(k + 1) }
    }

    /// Returns the score that an item must reach to enter.
    pub fn threshold(&self) -> f32 {
        match self.heap.peek() {
            Some(Reverse(worst)) if self.heap.len() >= self.k => worst.score,
            _ => f32::NEG_INFINITY,
        }
    }

    /// Adds an item, which must not have been added before.
    pub fn add(&mut self, item: ItemIndex, score: f32) {
        // Adding zero turns -0 into 0, so the two compare equal.
        let entry = Entry { score: score + 0.0, order: mix64(self.seed, u64::from(item.get())), item };
        if self.heap.len() < self.k {
            self.heap.push(Reverse(entry));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && entry > worst.0
        {
            *worst = Reverse(entry);
        }
    }

    /// Offers the items from `first` on, with their `scores`; only those that `allows` accepts can enter.
    ///
    /// # Errors
    ///
    /// A score is not finite; scores in a chunk that lies wholly below the threshold are not checked.
    pub fn offer(
        &mut self,
        first: ItemIndex,
        scores: &[f32],
        allows: impl Fn(ItemIndex) -> bool,
    ) -> Result<(), NotFinite> {
        for (chunk, scores) in scores.chunks(TOGETHER).enumerate() {
            let threshold = self.threshold();
            // Negated so that a NaN counts as a candidate.
            #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "a NaN is not below anything")]
            let any = scores.iter().fold(false, |any, &score| any | !(score < threshold));
            if !any {
                continue;
            }
            let first = first.get() + (chunk * TOGETHER) as u32;
            for (item, &score) in (first..).map(ItemIndex::new).zip(scores) {
                if !score.is_finite() {
                    return Err(NotFinite);
                }
                if score >= self.threshold() && allows(item) {
                    self.add(item, score);
                }
            }
        }
        Ok(())
    }

    /// Returns the items, best first.
    pub fn into_sorted(self) -> Vec<Scored> {
        let ascending = self.heap.into_sorted_vec();
        ascending.into_iter().map(|Reverse(Entry { item, score, .. })| Scored { item, score }).collect()
    }
}

/// An item in the heap; greater is better.
#[derive(Debug, Clone, Copy)]
struct Entry {
    score: f32,
    order: u64,
    item: ItemIndex,
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_score = self.score.total_cmp(&other.score);
        by_score.then(other.order.cmp(&self.order)).then(other.item.cmp(&self.item))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}
