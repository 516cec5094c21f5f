//! The first places of a ranking.

use schemas::hash::mix64;

/// The `k` items with the best scores among those that `allowed` lets pass, best first: `scores[item − 1]` is an item's
/// score. Equal scores are ordered by a seeded hash of the item, never by its index.
pub fn top(scores: &[f32], k: usize, seed: u64, allowed: impl Fn(u32) -> bool) -> Vec<u32> {
    let better = |a: &(f32, u32), b: &(f32, u32)| {
        let order = |item: u32| mix64(seed, u64::from(item));
        b.0.total_cmp(&a.0).then_with(|| order(a.1).cmp(&order(b.1)))
    };
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(2 * k + 1);
    let mut least = f32::NEG_INFINITY;
    for (item, &score) in (1u32..).zip(scores) {
        // Equal ones may still come first by their hash.
        if score >= least && allowed(item) {
            best.push((score, item));
            if best.len() > 2 * k {
                best.select_nth_unstable_by(k, better);
                best.truncate(k);
                least = best.iter().map(|&(score, _)| score).fold(f32::INFINITY, f32::min);
            }
        }
    }
    best.sort_unstable_by(better);
    best.truncate(k);
    best.into_iter().map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_places_are_those_of_a_sort(
            scores in prop::collection::vec(prop::sample::select(vec![0.0f32, 1.0, 1.5, -2.0, 3.0]), 0..200),
            k in 1usize..20,
            step in 1u32..4,
        ) {
            let allowed = |item: u32| item.is_multiple_of(step);
            let mut all: Vec<u32> = (1..=scores.len() as u32).filter(|&item| allowed(item)).collect();
            all.sort_by(|&a, &b| {
                let score = |item: u32| scores[item as usize - 1];
                score(b).total_cmp(&score(a)).then_with(|| mix64(7, a.into()).cmp(&mix64(7, b.into())))
            });
            all.truncate(k);
            prop_assert_eq!(top(&scores, k, 7, allowed), all);
        }
    }
}
