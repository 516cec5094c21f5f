//! The bootstrap over users: 95 % percentile intervals of means over targets, and of paired differences between two runs on the
//! same targets.
//!
//! Users are drawn with replacement, each with all targets, because targets of one user may be dependent. Users with equal
//! numbers form a kind; the count of each kind in a resample is multinomial and drawn as successive binomials. This has the same
//! distribution as drawing user by user and costs one draw per kind.
//!
//! Memory: one mean per resample and number.

use rand_distr::{Binomial, Distribution};
use rayon::prelude::*;
use serde::Serialize;

use crate::random;

/// Share of resamples below an interval, and above it.
const TAIL: f64 = 0.025;

/// Number of targets of one user, and the sum of each number over them.
#[derive(Debug, Clone, PartialEq)]
pub struct UserSums {
    /// Number of targets.
    pub targets: f64,
    /// Sum of each number over the targets.
    pub sums: Vec<f64>,
}

/// A mean and its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The mean over all targets.
    pub value: f64,
    /// Lower bound: 2.5 % of the resamples are below.
    pub low: f64,
    /// Upper bound: 2.5 % of the resamples are above.
    pub high: f64,
}

/// Returns, for each number, its mean over all targets of `users` and the 95 % percentile interval over `resamples` resamples of
/// the users. Deterministic: equal arguments give equal intervals.
pub fn intervals(users: &[UserSums], resamples: usize, seed: u64) -> Vec<Interval> {
    let kinds = kinds(users);
    let numbers = users.first().map_or(0, |user| user.sums.len());
    let mean = |counts: &mut dyn Iterator<Item = f64>| {
        let (mut targets, mut sums) = (0.0, vec![0.0; numbers]);
        for ((user, _), count) in kinds.iter().zip(counts) {
            targets += count * user.targets;
            for (sum, value) in sums.iter_mut().zip(&user.sums) {
                *sum += count * value;
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= f64::max(targets, 1.0));
        sums
    };
    let values = mean(&mut kinds.iter().map(|&(_, n)| n as f64));
    let resampled: Vec<Vec<f64>> = (0..resamples as u64)
        .into_par_iter()
        .map(|i| {
            let mut generator = random::generator(seed, "bootstrap", i);
            let (mut draws, mut users_left) = (users.len() as u64, users.len() as u64);
            let counts = kinds.iter().map(|&(_, users)| {
                // The remaining draws fall on this kind with its share of the remaining users.
                let share = users as f64 / users_left.max(1) as f64;
                users_left -= users;
                let count = Binomial::new(draws, share).map_or(draws, |b| b.sample(&mut generator));
                draws -= count;
                count as f64
            });
            mean(&mut counts.collect::<Vec<_>>().into_iter())
        })
        .collect();
    values
        .into_iter()
        .enumerate()
        .map(|(number, value)| {
            let mut resampled: Vec<f64> = resampled.iter().map(|means| means[number]).collect();
            resampled.sort_by(f64::total_cmp);
            Interval { value, low: quantile(&resampled, TAIL), high: quantile(&resampled, 1.0 - TAIL) }
        })
        .collect()
}

/// Groups users with equal numbers and counts them; the result does not depend on the order of `users`.
fn kinds(users: &[UserSums]) -> Vec<(&UserSums, u64)> {
    let order = |a: &UserSums, b: &UserSums| {
        let parts = a.sums.iter().zip(&b.sums).map(|(a, b)| a.total_cmp(b));
        parts.fold(a.targets.total_cmp(&b.targets), std::cmp::Ordering::then)
    };
    let mut sorted: Vec<&UserSums> = users.iter().collect();
    sorted.sort_by(|a, b| order(a, b));
    sorted.chunk_by(|a, b| order(a, b).is_eq()).map(|equal| (equal[0], equal.len() as u64)).collect()
}

/// Returns the `share`-quantile of ascending values by linear interpolation; 0 without values.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * sorted.len().saturating_sub(1) as f64;
    let value = |i: usize| sorted.get(i).copied();
    let (Some(low), high) = (value(at as usize), value(at as usize + 1)) else { return 0.0 };
    low + at.fract() * (high.unwrap_or(low) - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(values: impl IntoIterator<Item = f64>) -> Vec<UserSums> {
        values.into_iter().map(|value| UserSums { targets: 1.0, sums: vec![value] }).collect()
    }

    #[test]
    fn the_mean_of_hits_has_the_quantiles_of_the_binomial() {
        // 30 hits of 100 users: hits in a resample are Binomial(100, 0.3), with quantiles 21 and 39 at 2.5 and 97.5 %.
        let interval = intervals(&users((0..100).map(|i| f64::from(i % 10 < 3))), 10_000, 1)[0];
        assert_eq!(interval.value, 0.3);
        assert!((interval.low - 0.21).abs() < 1e-9, "{interval:?}");
        assert!((interval.high - 0.39).abs() < 1e-9, "{interval:?}");
    }

    #[test]
    fn distinct_values_have_the_interval_of_the_normal_limit() {
        // Every user is its own kind: the standard error of the mean is σ/√n.
        let n = 2_000;
        let interval = intervals(&users((0..n).map(|i| f64::from(i) / f64::from(n))), 4_000, 2)[0];
        let expected = 1.96 * (1.0 / 12.0_f64 / f64::from(n)).sqrt();
        let width = (interval.high - interval.low) / 2.0;
        assert!((width / expected - 1.0).abs() < 0.05, "{width} {expected}");
        assert!((interval.high + interval.low - 2.0 * interval.value).abs() < 0.2 * expected, "{interval:?}");
    }

    #[test]
    fn targets_of_one_user_are_drawn_together() {
        // 25 users with 4 equal targets each count like 25 users with one: Binomial(25, 0.4), quantiles 5 and 15.
        let hit = |i: u32| f64::from(i % 5 < 2);
        let of_four: Vec<UserSums> =
            (0..25).map(|i| UserSums { targets: 4.0, sums: vec![4.0 * hit(i)] }).collect();
        let interval = intervals(&of_four, 10_000, 3)[0];
        assert_eq!((interval.value, interval.low, interval.high), (0.4, 0.2, 0.6));
        // Users are weighted by their number of targets.
        let uneven = [
            UserSums { targets: 3.0, sums: vec![3.0, 0.0] },
            UserSums { targets: 1.0, sums: vec![0.0, 1.0] },
        ];
        let found = intervals(&uneven, 1_000, 3);
        assert_eq!(found.iter().map(|i| i.value).collect::<Vec<_>>(), [0.75, 0.25]);
        assert_eq!((found[0].low, found[0].high), (0.0, 1.0));
    }

    #[test]
    fn the_same_difference_everywhere_is_certain_and_seeds_decide() {
        let certain = intervals(&users(vec![0.25; 50]), 200, 1)[0];
        assert_eq!(certain, Interval { value: 0.25, low: 0.25, high: 0.25 });
        let mut mixed = users((0..300).map(|i| f64::from(i * 7919 % 101)));
        let found = intervals(&mixed, 500, 1);
        mixed.reverse();
        assert_eq!(intervals(&mixed, 500, 1), found, "the order of users does not matter");
        assert_ne!(intervals(&mixed, 500, 2), found);
        assert!(intervals(&[], 10, 1).is_empty());
    }
}
