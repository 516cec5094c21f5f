//! Comparison of runs evaluated on the same targets.
//!
//! A run's numbers are means over targets. Each difference to the first run has a 95 % percentile interval of the paired
//! bootstrap over users ([`intervals`]), which covers the choice of users but not the seed of the training. Horizon curves have
//! such differences per horizon and for the mean over all horizons. Runs that differ only in their seed form one group,
//! `label=run1,run2,run3`, with means over the runs and their standard deviation.
//!
//! Memory: the ranks of all runs.

mod bootstrap;
mod instructed;
mod plot;
mod report;
mod runs;

use std::path::PathBuf;

use schemas::config::ConfigError;
use serde::Serialize;
use store::Root;

pub use bootstrap::{Interval, UserSums, intervals};
pub use instructed::{InstructedComparison, InstructedGroup, instructed};
pub use plot::svg;
pub use runs::Group;
use runs::Run;

use crate::judge::{HORIZON, HR_10, Key, PerMetric, Protocol, StoredError, TargetRank, gains};
use crate::records::{EpochMetrics, RecordsError};

/// Number of resamples of the bootstrap.
pub const RESAMPLES: usize = 10_000;

/// An error that prevents a comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// An option is invalid.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The model does not exist.
    #[error("no model `{name}` at {path}")]
    NoModel {
        /// Name of the model.
        name: String,
        /// Path where it is expected.
        path: PathBuf,
    },
    /// The model has not been evaluated on the split.
    #[error("{path} is not there; write it with `trainer evaluate --model {name} --split {split}`")]
    NotEvaluated {
        /// Name of the model.
        name: String,
        /// Split of the targets.
        split: String,
        /// Path of the missing file.
        path: PathBuf,
    },
    /// Two runs were evaluated on different targets.
    #[error(
        "`{}` and `{}` do not have the same targets{of}: {difference}; evaluate both on the same version of \
         `sequences`",
        runs[0], runs[1]
    )]
    OtherTargets {
        /// Names of the two runs.
        runs: [String; 2],
        /// Part of the evaluation that differs; empty for the ranks themselves.
        of: &'static str,
        /// The first difference.
        difference: String,
    },
    /// A stored file cannot be read.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The training records cannot be read.
    #[error(transparent)]
    RunRecords(#[from] RecordsError),
}

/// Options of a comparison.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Split of the targets: `validation`, `test` or `prequential`.
    pub split: &'a str,
    /// Number of resamples of the bootstrap.
    pub resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

/// Runs side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Split of the targets.
    pub split: String,
    /// Number of resamples of the bootstrap.
    pub resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// One entry per group, for each protocol with seen items filtered and kept.
    pub results: Vec<GroupResult>,
    /// Horizon curves (Figure 3) of all groups; empty if a run has none.
    pub horizon: Vec<HorizonCurve>,
    /// Epochs of every run with training records.
    pub learning: Vec<LearningCurve>,
}

/// Metrics of a group under one protocol and filter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupResult {
    /// Label of the group.
    pub label: String,
    /// Names of its runs.
    pub runs: Vec<String>,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Whether items that the user has seen are excluded from the ranking.
    pub filter_seen: bool,
    /// Number of users with targets in the means.
    pub users: usize,
    /// Number of targets in the means.
    pub targets: usize,
    /// Means over the runs.
    pub metrics: PerMetric<Spread>,
    /// Difference to the first group; `None` for the first group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<PerMetric<Interval>>,
}

/// A number per run of a group, with mean and standard deviation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Mean; NaN (`null` in JSON) without targets.
    pub mean: f64,
    /// Sample standard deviation over the runs (n − 1); `None` for one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sd: Option<f64>,
    /// Value of each run.
    pub runs: Vec<f64>,
}

impl Spread {
    fn new(runs: Vec<f64>) -> Self {
        let n = runs.len() as f64;
        let mean = runs.iter().sum::<f64>() / n;
        let squares: f64 = runs.iter().map(|x| (x - mean).powi(2)).sum();
        Self { mean, sd: (runs.len() > 1).then(|| (squares / (n - 1.0)).sqrt()), runs }
    }
}

/// HR@10 by horizon, with 95 % intervals of the bootstrap over users.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HorizonCurve {
    /// Label of the group.
    pub label: String,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Whether items that the user has seen are excluded from the ranking.
    pub filter_seen: bool,
    /// Number of users; each has one prediction per run.
    pub users: usize,
    /// Rates of the group.
    #[serde(flatten)]
    pub rates: ByHorizon,
    /// Paired difference to the first group; `None` for the first group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<ByHorizon>,
}

/// HR@10 by horizon, or a difference of two such curves; means over the group's runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByHorizon {
    /// Value for the event 1, 2, …, [`HORIZON`] steps ahead.
    pub hr_10: Vec<Interval>,
    /// Mean over all horizons, with the interval of this mean.
    pub mean_hr_10: Interval,
}

/// Training of one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearningCurve {
    /// Label of the group.
    pub label: String,
    /// Name of the run.
    pub run: String,
    /// Records of its epochs.
    pub epochs: Vec<EpochMetrics>,
}

/// Compares `groups` from the files that `trainer pretrain` and `trainer evaluate` stored with their models.
///
/// # Errors
///
/// Two groups have the same label, a model is missing or not evaluated, its files are damaged, or the targets of two runs differ.
pub fn run(root: &Root, groups: &[Group], options: Options<'_>) -> Result<Comparison, CompareError> {
    for (i, group) in groups.iter().enumerate() {
        if groups[..i].iter().any(|earlier| earlier.label == group.label) {
            let problem = format!("`{}` is there twice; give one of them a label, LABEL=RUN", group.label);
            return Err(ConfigError::Invalid { key: "RUN".into(), problem }.into());
        }
    }
    let load = |group: &Group| {
        group.runs.iter().map(|name| Run::load(root, name, options.split)).collect::<Result<Vec<_>, _>>()
    };
    let loaded = groups.iter().map(load).collect::<Result<Vec<_>, _>>()?;
    same_targets(&loaded)?;
    let mut comparison = Comparison {
        split: options.split.into(),
        resamples: options.resamples,
        seed: options.seed,
        results: Vec::new(),
        horizon: Vec::new(),
        learning: Vec::new(),
    };
    // Headline first: seen items filtered.
    for filter_seen in [true, false] {
        for (p, &protocol) in Protocol::ALL.iter().enumerate() {
            let slice = Slice { p, protocol, filter_seen, options };
            comparison.results.extend(slice.results(groups, &loaded));
            comparison.horizon.extend(slice.horizon(groups, &loaded));
        }
    }
    for (group, runs) in groups.iter().zip(loaded) {
        comparison.learning.extend(runs.into_iter().filter_map(|run| {
            let epochs = run.epochs?;
            Some(LearningCurve { label: group.label.clone(), run: run.name, epochs })
        }));
    }
    Ok(comparison)
}

/// Checks that every run has the targets of the first run, including those of the horizon curve if both have one.
fn same_targets(groups: &[Vec<Run>]) -> Result<(), CompareError> {
    let mut runs = groups.iter().flatten();
    let Some(first) = runs.next() else { return Ok(()) };
    for run in runs {
        let names = [first.name.as_str(), &run.name];
        let curves = !first.horizon.is_empty() && !run.horizon.is_empty();
        let difference = runs::difference(names, [&first.ranks, &run.ranks]).map(|d| ("", d)).or_else(|| {
            let found = runs::difference(names, [&first.horizon, &run.horizon]);
            found.filter(|_| curves).map(|d| (" of the horizon curve", d))
        });
        if let Some((of, difference)) = difference {
            return Err(CompareError::OtherTargets { runs: names.map(str::to_owned), of, difference });
        }
    }
    Ok(())
}

/// HR@10 of one user, by horizon.
type UserHits = [f64; HORIZON];

/// The mean over no users: NaN, `null` in JSON, a dash in tables.
const NOTHING: Interval = Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN };

/// One protocol and filter.
struct Slice<'a> {
    /// Index of the protocol in [`Protocol::ALL`].
    p: usize,
    protocol: Protocol,
    filter_seen: bool,
    options: Options<'a>,
}

impl Slice<'_> {
    /// Returns the metrics of each target that takes part, in the order of `rows`.
    fn gains(&self, rows: &[TargetRank]) -> Vec<PerMetric<f64>> {
        rows.iter().filter_map(|row| row.ranks[self.p]).map(|r| gains(r.among(self.filter_seen))).collect()
    }

    fn results(&self, groups: &[Group], loaded: &[Vec<Run>]) -> Vec<GroupResult> {
        let Some(rows) = loaded.first().and_then(|runs| runs.first()).map(|run| &run.ranks) else {
            return Vec::new();
        };
        let asked: Vec<&TargetRank> = rows.iter().filter(|row| row.ranks[self.p].is_some()).collect();
        let users: Vec<&[&TargetRank]> = asked.chunk_by(|a, b| a.user_id == b.user_id).collect();
        let mut first: Option<Vec<PerMetric<f64>>> = None;
        let mut results = Vec::new();
        for (group, runs) in groups.iter().zip(loaded) {
            let by_run: Vec<Vec<PerMetric<f64>>> = runs.iter().map(|run| self.gains(&run.ranks)).collect();
            let run_mean = |gains: &Vec<PerMetric<f64>>, m: Key| {
                gains.iter().map(|gain| gain[m]).sum::<f64>() / gains.len() as f64
            };
            let metrics =
                PerMetric::from_fn(|m| Spread::new(by_run.iter().map(|gains| run_mean(gains, m)).collect()));
            // Mean over the group's runs, per target.
            let means: Vec<PerMetric<f64>> = (0..asked.len())
                .map(|t| {
                    let sum = |m: Key| by_run.iter().map(|gains| gains[t][m]).sum::<f64>();
                    PerMetric::from_fn(|m| sum(m) / by_run.len() as f64)
                })
                .collect();
            let difference = first.as_ref().map(|first| {
                let mut targets = means.iter().zip(first);
                let sums: Vec<UserSums> = users
                    .iter()
                    .map(|user| {
                        let mut sums = PerMetric::<f64>::from_fn(|_| 0.0);
                        for (ours, theirs) in targets.by_ref().take(user.len()) {
                            sums += PerMetric::from_fn(|m| ours[m] - theirs[m]);
                        }
                        UserSums { targets: user.len() as f64, sums: sums.values().to_vec() }
                    })
                    .collect();
                let found = intervals(&sums, self.options.resamples, self.options.seed);
                PerMetric::from_fn(|m| found.get(m.index()).copied().unwrap_or(NOTHING))
            });
            first.get_or_insert(means);
            results.push(GroupResult {
                label: group.label.clone(),
                runs: group.runs.clone(),
                protocol: self.protocol,
                filter_seen: self.filter_seen,
                users: users.len(),
                targets: asked.len(),
                metrics,
                difference,
            });
        }
        results
    }

    /// Returns the curves of all groups; empty if any run has no ranks for one.
    fn horizon(&self, groups: &[Group], loaded: &[Vec<Run>]) -> Vec<HorizonCurve> {
        if loaded.iter().flatten().any(|run| run.horizon.is_empty()) {
            return Vec::new();
        }
        let mut first: Option<Vec<UserHits>> = None;
        let mut curves = Vec::new();
        for (group, runs) in groups.iter().zip(loaded) {
            let users = self.hits_ahead(runs);
            if users.is_empty() {
                continue;
            }
            // Every run has the users of the first run, in the same order.
            let difference = first.as_ref().map(|first| {
                let users = users.iter().zip(first);
                self.by_horizon(users.map(|(ours, theirs)| std::array::from_fn(|h| ours[h] - theirs[h])))
            });
            curves.push(HorizonCurve {
                label: group.label.clone(),
                protocol: self.protocol,
                filter_seen: self.filter_seen,
                users: users.len(),
                rates: self.by_horizon(users.iter().copied()),
                difference,
            });
            first.get_or_insert(users);
        }
        curves
    }

    /// Returns the hit rates over `runs` of each user that takes part.
    fn hits_ahead(&self, runs: &[Run]) -> Vec<UserHits> {
        let by_run: Vec<Vec<PerMetric<f64>>> = runs.iter().map(|run| self.gains(&run.horizon)).collect();
        let users = by_run.first().map_or(0, Vec::len) / HORIZON;
        let hit = |target: usize| {
            by_run.iter().map(|gains| gains[target][HR_10]).sum::<f64>() / by_run.len() as f64
        };
        (0..users).map(|user| std::array::from_fn(|h| hit(user * HORIZON + h))).collect()
    }

    /// Returns means over `users`, per horizon and over all horizons, with their intervals.
    fn by_horizon(&self, users: impl Iterator<Item = UserHits>) -> ByHorizon {
        let sums: Vec<UserSums> = users
            .map(|hits| {
                let mean = hits.iter().sum::<f64>() / HORIZON as f64;
                UserSums { targets: 1.0, sums: hits.into_iter().chain([mean]).collect() }
            })
            .collect();
        let mut found = intervals(&sums, self.options.resamples, self.options.seed);
        let mean_hr_10 = found.pop().unwrap_or(NOTHING);
        ByHorizon { hr_10: found, mean_hr_10 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::NDCG_10;
    use crate::serve::Ranks;

    /// Returns a run of `users` users with two targets each, at the ranks that `rank` returns.
    fn run(name: &str, users: u32, rank: impl Fn(u32, u32) -> Option<u32>) -> Run {
        let row = |user: u32, position: u32| TargetRank {
            user_id: format!("u{user:04}"),
            position,
            ts: 0,
            item_id: "i".into(),
            horizon: 1,
            ranks: [Some(Ranks { all: rank(user, position), unseen: None }), None],
        };
        let ranks = (0..users).flat_map(|user| [row(user, 0), row(user, 1)]).collect();
        Run { name: name.into(), ranks, horizon: Vec::new(), epochs: None }
    }

    fn kept() -> Slice<'static> {
        let options = Options { split: "test", resamples: 10_000, seed: 1 };
        Slice { p: 0, protocol: Protocol::Standard, filter_seen: false, options }
    }

    fn groups(runs: &[&[&str]]) -> Vec<Group> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        runs.iter().map(|names| Group { label: names.concat(), runs: owned(names) }).collect()
    }

    #[test]
    fn a_difference_is_paired_and_by_user() {
        // Both runs hit all targets of half the users; the second run also hits both targets of one user in ten.
        let base = |user: u32, _| Some(if user.is_multiple_of(2) { 1 } else { 100 });
        let better = |user: u32, t| if user % 10 == 1 { Some(5) } else { base(user, t) };
        let loaded = vec![vec![run("a", 100, base)], vec![run("b", 100, better)]];
        let results = kept().results(&groups(&[&["a"], &["b"]]), &loaded);
        assert_eq!((results[1].users, results[1].targets), (100, 200));
        assert_eq!(results.iter().map(|r| r.metrics[HR_10].mean).collect::<Vec<_>>(), [0.5, 0.6]);
        assert!(results[0].difference.is_none());
        // The difference comes from ten of a hundred users: Binomial(100, 0.1) has quantiles 5 and 16. An unpaired interval would
        // be [−0.04, 0.24].
        let difference = results[1].difference.unwrap()[HR_10];
        let near = |value: f64, expected: f64| (value - expected).abs() < 0.011;
        assert!((difference.value - 0.1).abs() < 1e-12, "{difference:?}");
        assert!(near(difference.low, 0.05) && near(difference.high, 0.16), "{difference:?}");
        // Swapping the runs flips the sign of the difference.
        let [a, b] = <[_; 2]>::try_from(loaded).unwrap();
        let swapped = kept().results(&groups(&[&["b"], &["a"]]), &[b, a])[1].difference.unwrap()[HR_10];
        assert!((swapped.value + 0.1).abs() < 1e-12 && swapped.high < 0.0);
    }

    #[test]
    fn seeds_are_averaged_with_their_spread() {
        let hits = |share: u32| move |user: u32, _| (user % 10 < share).then_some(3);
        let seeds = vec![run("s1", 50, hits(2)), run("s2", 50, hits(4)), run("s3", 50, hits(6))];
        let loaded = vec![seeds, vec![run("x", 50, hits(4))]];
        let results = kept().results(&groups(&[&["s1", "s2", "s3"], &["x"]]), &loaded);
        let hr_10 = &results[0].metrics[HR_10];
        assert!((hr_10.mean - 0.4).abs() < 1e-12 && (hr_10.sd.unwrap() - 0.2).abs() < 1e-12, "{hr_10:?}");
        assert_eq!(hr_10.runs, [0.2, 0.4, 0.6]);
        assert_eq!(results[1].metrics[HR_10].sd, None);
        assert!(results[1].difference.unwrap()[HR_10].value.abs() < 1e-12);
        let ndcg = results[1].metrics[NDCG_10].mean;
        assert!((ndcg - 0.4 / 4f64.log2()).abs() < 1e-12, "{ndcg}");
    }

    /// Returns a run of `users` users with one prediction each; `hit` tells whether it hits at horizon 1, 2, …
    fn ahead(name: &str, users: u32, hit: impl Fn(u32, usize) -> bool) -> Run {
        let row = |user: u32, h: usize| TargetRank {
            user_id: format!("u{user:04}"),
            position: h as u32,
            ts: 0,
            item_id: "i".into(),
            horizon: h as u8,
            ranks: [Some(Ranks { all: Some(if hit(user, h) { 10 } else { 11 }), unseen: None }), None],
        };
        let horizon = (0..users).flat_map(|user| (1..=HORIZON).map(move |h| row(user, h))).collect();
        Run { name: name.into(), ranks: Vec::new(), horizon, epochs: None }
    }

    #[test]
    fn a_difference_of_horizon_curves_is_paired_at_each_horizon() {
        // The first run hits half of the users' events. The second run also hits one user in ten at horizon 2; at horizon 5 it
        // swaps the users that are hit.
        let base = |user: u32, _| user.is_multiple_of(2);
        let other = |user: u32, h| match h {
            2 => base(user, h) || user % 10 == 1,
            5 => base(user ^ 1, h),
            _ => base(user, h),
        };
        let groups = groups(&[&["a"], &["b"]]);
        let loaded = vec![vec![ahead("a", 100, base)], vec![ahead("b", 100, other)]];
        let curves = kept().horizon(&groups, &loaded);
        assert!(curves[0].difference.is_none());
        let rates: Vec<f64> = curves[1].rates.hr_10.iter().map(|rate| rate.value).collect();
        assert_eq!(rates, [0.5, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]);
        let difference = curves[1].difference.as_ref().unwrap();
        // Where both runs agree for each user, the difference has no uncertainty, however uncertain the rates are.
        for h in [1, 3, 4, 6, 7, 8, 9, 10] {
            assert_eq!(difference.hr_10[h - 1], Interval { value: 0.0, low: 0.0, high: 0.0 }, "{h}");
            assert!(curves[1].rates.hr_10[h - 1].high - curves[1].rates.hr_10[h - 1].low > 0.15);
        }
        // Binomial(100, 0.1) has quantiles 5 and 16 at 2.5 and 97.5 %.
        let [at_2, at_5] = [2, 5].map(|h| difference.hr_10[h - 1]);
        assert!((at_2.value - 0.1).abs() < 1e-12, "{at_2:?}");
        assert!((at_2.low - 0.05).abs() < 0.011 && (at_2.high - 0.16).abs() < 0.011, "{at_2:?}");
        // Equal rates with different users: a sum of 100 draws of ±1, with standard deviation 0.1.
        assert!(at_5.value == 0.0 && (at_5.low + 0.196).abs() < 0.021 && (at_5.high - 0.196).abs() < 0.021);
    }

    #[test]
    fn the_mean_over_horizons_knows_that_a_users_events_go_together() {
        // One user in five gains at all ten horizons: the mean is as uncertain as one horizon.
        let gains = |user: u32, _| user.is_multiple_of(5);
        let groups = groups(&[&["a"], &["b"]]);
        let curves = |other: &dyn Fn(u32, usize) -> bool| {
            let loaded = [vec![ahead("a", 200, |_, _| false)], vec![ahead("b", 200, other)]];
            kept().horizon(&groups, &loaded)[1].difference.clone().unwrap()
        };
        let together = curves(&gains);
        assert!(
            together
                .hr_10
                .iter()
                .all(|at| (at.low, at.high) == (together.hr_10[0].low, together.hr_10[0].high))
        );
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let (mean, at_1) = (together.mean_hr_10, together.hr_10[0]);
        assert!(near(mean.value, 0.2) && near(mean.low, at_1.low) && near(mean.high, at_1.high), "{mean:?}");
        // One event of every second user, at any horizon: the mean is less uncertain than one horizon.
        let apart = curves(&|user, h| user as usize % 20 == h);
        let width = |i: Interval| i.high - i.low;
        let mean = apart.mean_hr_10;
        assert!(near(mean.value, 0.05) && width(mean) < 0.5 * width(apart.hr_10[0]), "{apart:?}");
        // Swapping the runs flips the sign.
        let loaded = [vec![ahead("b", 200, gains)], vec![ahead("a", 200, |_, _| false)]];
        let swapped = kept().horizon(&groups, &loaded)[1].difference.clone().unwrap().mean_hr_10;
        assert!(near(swapped.value, -0.2) && swapped.high < 0.0);
    }

    #[test]
    fn a_curve_averages_seeds_user_by_user() {
        // Two seeds that hit complementary users have rate one half for every user: certain together, uncertain alone.
        let seeds = |user: u32, seed: u32| user.is_multiple_of(2) == (seed == 0);
        let both = vec![ahead("s0", 50, |u, _| seeds(u, 0)), ahead("s1", 50, |u, _| seeds(u, 1))];
        let loaded = [vec![ahead("a", 50, |_, _| false)], both];
        let curves = kept().horizon(&groups(&[&["a"], &["s0", "s1"]]), &loaded);
        let certain = Interval { value: 0.5, low: 0.5, high: 0.5 };
        let difference = curves[1].difference.as_ref().unwrap();
        assert!(difference.hr_10.iter().all(|&at| at == certain) && difference.mean_hr_10 == certain);
        // No curves if any run has none.
        let mut without = loaded;
        without[0][0].horizon.clear();
        assert!(kept().horizon(&groups(&[&["a"], &["s0", "s1"]]), &without).is_empty());
    }

    #[test]
    fn other_targets_are_an_error_that_names_them() {
        let all = |_, _| Some(1);
        let message =
            same_targets(&[vec![run("a", 3, all)], vec![run("b", 2, all)]]).unwrap_err().to_string();
        assert!(message.contains("`a` and `b` do not have the same targets: user `u0002`"), "{message}");
        assert!(same_targets(&[vec![run("a", 3, all), run("b", 3, |_, _| None)]]).is_ok());
    }
}
