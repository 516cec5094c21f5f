//! Approximate search in a navigable graph of the items (HNSW; Malkov and Yashunin 2018).
//!
//! The graph needs a distance. Extending each item to `x' = [x, √(M² − |x|²)]`, where `M` is the largest norm, gives all items
//! norm `M`, and the nearest item to `[h, 0]` has the largest inner product (Bachrach et al. 2014); `−⟨x', y'⟩` orders as the
//! distance does. For vectors of equal norm the extra component is 0.
//!
//! A search finds `ef` items and applies the filter afterwards; if fewer than `k` remain, it returns none. The graph depends on
//! the order in which threads finish, so two builds may miss different items.

use std::sync::Arc;

use instant_distance::{Builder, Search};
use ragged::vector;

use super::ItemMatrix;
use crate::data::ItemIndex;
use crate::serve::recommender::ListFilter;
use crate::serve::top_k::Scored;

/// Candidate neighbours of a new item during construction.
const EF_CONSTRUCTION: usize = 200;

/// A graph over some of the items.
pub(crate) struct Hnsw {
    candidates: ItemMatrix,
    graph: instant_distance::Hnsw<Point>,
}

impl std::fmt::Debug for Hnsw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hnsw").field("items", &self.graph.iter().count()).finish_non_exhaustive()
    }
}

/// A row of a matrix and its extra component.
#[derive(Debug, Clone)]
struct Point {
    of: Arc<Vec<f32>>,
    row: u32,
    d: u32,
    further: f32,
}

impl Point {
    fn vector(&self) -> &[f32] {
        &self.of[self.row as usize * self.d as usize..][..self.d as usize]
    }
}

impl instant_distance::Point for Point {
    fn distance(&self, other: &Self) -> f32 {
        let dot = vector::widest(
            #[inline(always)]
            || vector::dot(self.vector(), other.vector()),
        );
        -(dot + self.further * other.further)
    }
}

impl Hnsw {
    /// Builds the graph of the items in `allowed` (by item index); a search finds `ef` of them.
    pub(crate) fn new(candidates: &ItemMatrix, allowed: &[bool], ef: usize) -> Self {
        let items: Vec<ItemIndex> =
            ItemIndex::all(candidates.items()).filter(|item| allowed[item.index()]).collect();
        let square = |item: ItemIndex| {
            let x = candidates.vector(item);
            vector::dot(x, x)
        };
        let longest = items.iter().map(|&item| square(item)).fold(0.0, f32::max);
        let point = |&item: &ItemIndex| Point {
            of: candidates.vectors.clone(),
            row: item.get() - 1,
            d: candidates.d as u32,
            further: (longest - square(item)).max(0.0).sqrt(),
        };
        let points: Vec<Point> = items.iter().map(point).collect();
        let builder = Builder::default().ef_search(ef).ef_construction(EF_CONSTRUCTION).seed(candidates.seed);
        Self { candidates: candidates.clone(), graph: builder.build_hnsw(points).0 }
    }

    /// Returns the best `k` items, by inner product with `vector`, among those found that `filter` accepts; `None` if these are
    /// fewer than `k`, even if the filter accepts more items.
    pub(crate) fn search(
        &self,
        vector: &[f32],
        filter: &ListFilter<'_>,
        k: usize,
        search: &mut Search,
    ) -> Option<Vec<Scored>> {
        let d = self.candidates.d as u32;
        let point = Point { of: Arc::new(vector.to_vec()), row: 0, d, further: 0.0 };
        let found = self.graph.search(&point, search);
        let scored =
            found.map(|found| Scored { item: ItemIndex::new(found.point.row + 1), score: -found.distance });
        let best = self.candidates.best(scored.filter(|found| filter.allows(found.item)), k);
        (best.len() == k).then_some(best)
    }
}

#[cfg(test)]
mod tests {
    use schemas::hash::mix64;

    use super::super::exact::VectorQuery;
    use super::*;

    /// 2,000 vectors around 40 centres, of different lengths.
    fn clustered(d: usize) -> Vec<f32> {
        let noise = |what: u64, i: usize| (mix64(what, i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        (0..2_000 * d).map(|i| 2.0 * noise(1, i / d % 40 * d + i % d) + 0.5 * noise(2, i)).collect()
    }

    #[test]
    fn finds_nearly_all_of_the_best_and_only_what_is_allowed() {
        let d = 16;
        let vectors = clustered(d);
        let candidates = ItemMatrix::new(vectors.clone(), d, 1).unwrap();
        let active: Vec<bool> = (0..=2_000).map(|item| item > 0 && item % 7 != 0).collect();
        let even: Vec<bool> = active.iter().enumerate().map(|(i, &active)| active && i % 2 == 0).collect();
        let graph = Hnsw::new(&candidates, &active, 100);
        let mut search = Search::default();
        let seen: Vec<ItemIndex> = ItemIndex::all(2_000).filter(|item| item.get() % 11 == 0).collect();
        let (mut found, mut all) = (0, 0);
        for vector in vectors.chunks(d).step_by(20) {
            for allowed in [&active, &even] {
                let filter = ListFilter { allowed, seen: &seen, carrying: None };
                let question = VectorQuery { vector, filters: &[filter] };
                let exact = candidates.search(&[question], 10).unwrap().remove(0);
                let near = graph.search(vector, &filter, 10, &mut search).unwrap_or_default();
                assert!(
                    near.iter().all(|scored| allowed[scored.item.index()] && !seen.contains(&scored.item))
                );
                assert!(near.is_sorted_by(|a, b| a.score >= b.score));
                all += exact.len();
                found += exact.iter().filter(|e| near.iter().any(|n| n.item == e.item)).count();
            }
        }
        assert!(found as f64 > 0.9 * all as f64, "{found} of {all}");
    }

    #[test]
    fn too_few_are_none() {
        let candidates = ItemMatrix::new(vec![1.0; 50], 1, 1).unwrap();
        let mut allowed = vec![true; 51];
        let graph = Hnsw::new(&candidates, &allowed, 40);
        allowed[10..].fill(false);
        let filter = ListFilter { allowed: &allowed, seen: &[], carrying: None };
        assert!(graph.search(&[1.0], &filter, 10, &mut Search::default()).is_none());
    }
}
