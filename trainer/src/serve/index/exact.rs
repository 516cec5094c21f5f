//! Exact search: scores every item, one block of questions against one block of items at a time, and inspects only scores that
//! may be among the best. Memory: one block of scores (256 KiB) per thread.

use ragged::{Mat, gemm, vector};
use rayon::prelude::*;

use super::ItemMatrix;
use crate::data::ItemIndex;
use crate::serve::recommender::ListFilter;
use crate::serve::top_k::{NotFinite, Scored, TopK};

/// Questions and items per block: the scores (256 KiB) and item vectors of a block fit into one core's cache.
const QUESTIONS: usize = 32;
const ITEMS: usize = 2_048;
/// Maximum questions for which separate inner products are faster than a matrix product.
const FEW: usize = 3;

/// One query: the items with the largest inner products with `vector`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VectorQuery<'a> {
    /// Hidden state, `[d]`.
    pub vector: &'a [f32],
    /// Filters; each gives one list.
    pub filters: &'a [ListFilter<'a>],
}

/// Returns the best `k` items for each filter of each question.
pub(super) fn search(
    candidates: &ItemMatrix,
    questions: &[VectorQuery<'_>],
    k: usize,
) -> Result<Vec<Vec<Scored>>, NotFinite> {
    if questions.iter().any(|question| question.vector.iter().any(|x| !x.is_finite())) {
        return Err(NotFinite);
    }
    if k == 0 {
        return Ok(vec![Vec::new(); questions.iter().map(|question| question.filters.len()).sum()]);
    }
    let blocks: Vec<Result<Vec<Vec<Scored>>, NotFinite>> = questions
        .par_chunks(QUESTIONS)
        .map_init(Vec::new, |scores, block| search_block(candidates, block, k, scores))
        .collect();
    Ok(blocks.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

fn search_block(
    candidates: &ItemMatrix,
    questions: &[VectorQuery<'_>],
    k: usize,
    scores: &mut Vec<f32>,
) -> Result<Vec<Vec<Scored>>, NotFinite> {
    let (n, d) = (questions.len(), candidates.d);
    let asking: Vec<f32> = questions.iter().flat_map(|question| question.vector).copied().collect();
    let filters = questions.iter().flat_map(|question| question.filters);
    let mut best: Vec<TopK> = filters.map(|_| TopK::new(k, candidates.seed)).collect();
    scores.resize(n * ITEMS, 0.0);
    for (block, items) in candidates.vectors.chunks(ITEMS * d).enumerate() {
        let rows = items.len() / d;
        if n <= FEW {
            inner_products(&asking, items, d, scores);
        } else {
            gemm(scores, rows, false, Mat::new(&asking, n, d, d), Mat::new(items, rows, d, d).t());
        }
        let first = ItemIndex::new((block * ITEMS + 1) as u32);
        let mut best = best.iter_mut();
        for (question, scores) in questions.iter().zip(scores.chunks_exact(rows)) {
            for (filter, best) in question.filters.iter().zip(&mut best) {
                best.offer(first, scores, |item| filter.allows(item))?;
            }
        }
    }
    Ok(best.into_iter().map(TopK::into_sorted).collect())
}

/// Fills `scores` (`[questions, items]`) in one pass over the items.
fn inner_products(asking: &[f32], items: &[f32], d: usize, scores: &mut [f32]) {
    let rows = items.len() / d;
    vector::widest(
        #[inline(always)]
        || {
            for (row, item) in items.chunks_exact(d).enumerate() {
                for (q, asking) in asking.chunks_exact(d).enumerate() {
                    scores[q * rows + row] = vector::dot(asking, item);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::hash::mix64;

    use super::*;

    proptest! {
        /// Search returns the same allowed items as sorting all scores; small integers give many ties.
        #[test]
        fn equals_brute_force(
            (items, questions, d) in (1usize..5_000, 1usize..40, 1usize..5),
            k in 0usize..20,
            seed in 0u64..1_000,
        ) {
            let number = |what: u64, i: usize| (mix64(seed ^ what, i as u64) >> 33) as i64;
            let small = |what| move |i| (number(what, i) % 4 - 2) as f32;
            let vectors: Vec<f32> = (0..items * d).map(small(1)).collect();
            let asking: Vec<f32> = (0..questions * d).map(small(2)).collect();
            let allowed: Vec<bool> = (0..=items).map(|i| i > 0 && number(3, i) % 3 > 0).collect();
            let seen: Vec<ItemIndex> = ItemIndex::all(items).filter(|i| number(4, i.index()) % 5 == 0).collect();
            let candidates = ItemMatrix::new(vectors.clone(), d, seed).unwrap();
            let filters = [ListFilter { allowed: &allowed, seen: &seen, carrying: None }];
            let asked: Vec<VectorQuery<'_>> =
                asking.chunks(d).map(|vector| VectorQuery { vector, filters: &filters }).collect();
            let found = candidates.search(&asked, k).unwrap();
            for (vector, found) in asking.chunks(d).zip(found) {
                let score = |item: ItemIndex| -> f32 {
                    vectors[(item.index() - 1) * d..].iter().zip(vector).map(|(a, b)| a * b).sum()
                };
                let mut expected: Vec<ItemIndex> = ItemIndex::all(items)
                    .filter(|item| allowed[item.index()] && !seen.contains(item))
                    .collect();
                expected.sort_by_key(|&item| (-score(item) as i64, mix64(seed, u64::from(item.get()))));
                expected.truncate(k);
                prop_assert_eq!(found.iter().map(|s| s.item).collect::<Vec<_>>(), expected);
                prop_assert!(found.iter().all(|s| s.score == score(s.item)));
            }
        }
    }
}
