//! Comparison of runs that were evaluated on the same targets.
//!
//! A run's numbers are means over targets. The difference of each run to the first one is given with the 95 %
//! percentile interval of the paired bootstrap over users ([`intervals`]): it says how much the difference owes to
//! which users were asked, not to the seed of the training. The horizon curve has such differences too, for each
//! horizon and for the mean over all. Runs that differ in their seed only are one group,
//! `label=run1,run2,run3`: its numbers are means over the runs, with their standard deviation.

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

/// Resamples of the bootstrap.
pub const RESAMPLES: usize = 10_000;

/// Runs that cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Wrong usage.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// There is no such model.
    #[error("no model `{name}` at {path}")]
    NoModel {
        /// The model.
        name: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// The model's ranks are not there.
    #[error("{path} is not there; write it with `trainer evaluate --model {name} --split {split}`")]
    NotEvaluated {
        /// The model.
        name: String,
        /// The held-out targets.
        split: String,
        /// The file.
        path: PathBuf,
    },
    /// The runs answered different questions.
    #[error(
        "`{}` and `{}` do not have the same targets{of}: {difference}; evaluate both on the same version of \
         `sequences`",
        runs[0], runs[1]
    )]
    OtherTargets {
        /// The two runs.
        runs: [String; 2],
        /// Of what, where it is not the whole evaluation.
        of: &'static str,
        /// The first difference.
        difference: String,
    },
    /// A file of ranks cannot be read.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// The records of a training cannot be read.
    #[error(transparent)]
    RunRecords(#[from] RecordsError),
}

/// How to compare.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// `validation` or `test`.
    pub split: &'a str,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

/// Runs side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// `validation` or `test`.
    pub split: String,
    /// Resamples of the bootstrap.
    pub resamples: usize,
    /// Its seed.
    pub seed: u64,
    /// For each protocol, with seen items filtered and kept, one entry for each group.
    pub results: Vec<GroupResult>,
    /// The horizon curves (Figure 3) of all groups; empty where a run has none.
    pub horizon: Vec<HorizonCurve>,
    /// The epochs of every run whose training was recorded.
    pub learning: Vec<LearningCurve>,
}

/// A group's numbers under one protocol.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupResult {
    /// The group.
    pub label: String,
    /// Its runs.
    pub runs: Vec<String>,
    /// What a prediction may build on.
    pub protocol: Protocol,
    /// Whether items that the user has seen are left out of the ranking.
    pub filter_seen: bool,
    /// Users with targets in the means.
    pub users: usize,
    /// Targets in the means.
    pub targets: usize,
    /// Means over the runs.
    pub metrics: PerMetric<Spread>,
    /// The difference to the first group; absent for that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<PerMetric<Interval>>,
}

/// A number over a group's runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// The mean; not a number (`null` as JSON) where there is no target.
    pub mean: f64,
    /// The sample standard deviation over the runs (n − 1); absent for one run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sd: Option<f64>,
    /// Run by run.
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
    /// The group.
    pub label: String,
    /// What the prediction may build on.
    pub protocol: Protocol,
    /// Whether items that the user has seen are left out of the ranking.
    pub filter_seen: bool,
    /// Users, each with one prediction of each run.
    pub users: usize,
    /// The group's own rates.
    #[serde(flatten)]
    pub rates: ByHorizon,
    /// The paired difference to the first group; absent for that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<ByHorizon>,
}

/// HR@10 by horizon, or a difference of two; means over the group's runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByHorizon {
    /// For the event 1, 2, … [`HORIZON`] steps ahead.
    pub hr_10: Vec<Interval>,
    /// The mean over all horizons; its interval is of that mean, not a mean of theirs.
    pub mean_hr_10: Interval,
}

/// One run's training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LearningCurve {
    /// The group.
    pub label: String,
    /// The run.
    pub run: String,
    /// Its epochs.
    pub epochs: Vec<EpochMetrics>,
}

/// Compares `groups` by what `trainer pretrain` and `trainer evaluate` left in their models' directories.
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

/// Every run has the targets of the first one, and those of the horizon curve where both have one.
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

/// One user's hit rates at 10 by horizon.
type UserHits = [f64; HORIZON];

/// The mean over no user: no number, `null` as JSON, a dash in tables.
const NOTHING: Interval = Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN };

/// One protocol and filter.
struct Slice<'a> {
    /// Place of the protocol in [`Protocol::ALL`].
    p: usize,
    protocol: Protocol,
    filter_seen: bool,
    options: Options<'a>,
}

impl Slice<'_> {
    /// For each target that takes part, in the order of `rows`, its numbers.
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
            // The mean over the group's runs, target by target.
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

    /// The curves of all groups; none where a run has no ranks for one.
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
            // Every run has the users of the first one, in the same order.
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

    /// For each user that takes part, its hit rates over `runs`.
    fn hits_ahead(&self, runs: &[Run]) -> Vec<UserHits> {
        let by_run: Vec<Vec<PerMetric<f64>>> = runs.iter().map(|run| self.gains(&run.horizon)).collect();
        let users = by_run.first().map_or(0, Vec::len) / HORIZON;
        let hit = |target: usize| {
            by_run.iter().map(|gains| gains[target][HR_10]).sum::<f64>() / by_run.len() as f64
        };
        (0..users).map(|user| std::array::from_fn(|h| hit(user * HORIZON + h))).collect()
    }

    /// Means over `users`, by horizon and over all horizons, with their intervals.
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

    /// `users` users with two targets each, at the ranks that `rank` gives.
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
        // Both hit all targets of half the users; the second run also hits both targets of one user in ten.
        let base = |user: u32, _| Some(if user.is_multiple_of(2) { 1 } else { 100 });
        let better = |user: u32, t| if user % 10 == 1 { Some(5) } else { base(user, t) };
        let loaded = vec![vec![run("a", 100, base)], vec![run("b", 100, better)]];
        let results = kept().results(&groups(&[&["a"], &["b"]]), &loaded);
        assert_eq!((results[1].users, results[1].targets), (100, 200));
        assert_eq!(results.iter().map(|r| r.metrics[HR_10].mean).collect::<Vec<_>>(), [0.5, 0.6]);
        assert!(results[0].difference.is_none());
        // Ten users of a hundred make the difference: Binomial(100, 0.1) has the quantiles 5 and 16. Unpaired, the
        // interval would reach from −0.04 to 0.24.
        let difference = results[1].difference.unwrap()[HR_10];
        let near = |value: f64, expected: f64| (value - expected).abs() < 0.011;
        assert!((difference.value - 0.1).abs() < 1e-12, "{difference:?}");
        assert!(near(difference.low, 0.05) && near(difference.high, 0.16), "{difference:?}");
        // Swapped, the difference is the other way round.
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

    /// `users` users with one prediction each, whose hits at horizon 1, 2, … `hit` gives.
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
        // The first run hits half of the users' events. The second also hits one user in ten at horizon 2, and
        // the same event 5 for another user as often as it misses it.
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
        // Where both do the same for each user, nothing is left to chance, however uncertain the rates are.
        for h in [1, 3, 4, 6, 7, 8, 9, 10] {
            assert_eq!(difference.hr_10[h - 1], Interval { value: 0.0, low: 0.0, high: 0.0 }, "{h}");
            assert!(curves[1].rates.hr_10[h - 1].high - curves[1].rates.hr_10[h - 1].low > 0.15);
        }
        // Binomial(100, 0.1) has the quantiles 5 and 16 at 2.5 and 97.5 %.
        let [at_2, at_5] = [2, 5].map(|h| difference.hr_10[h - 1]);
        assert!((at_2.value - 0.1).abs() < 1e-12, "{at_2:?}");
        assert!((at_2.low - 0.05).abs() < 0.011 && (at_2.high - 0.16).abs() < 0.011, "{at_2:?}");
        // Equal rates by other users: a sum of 100 draws of ±1, with standard deviation 0.1.
        assert!(at_5.value == 0.0 && (at_5.low + 0.196).abs() < 0.021 && (at_5.high - 0.196).abs() < 0.021);
    }

    #[test]
    fn the_mean_over_horizons_knows_that_a_users_events_go_together() {
        // One user in five gains at all ten horizons: as uncertain as at one of them.
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
        // One event of every second user, at any horizon: less uncertain in the mean than at each.
        let apart = curves(&|user, h| user as usize % 20 == h);
        let width = |i: Interval| i.high - i.low;
        let mean = apart.mean_hr_10;
        assert!(near(mean.value, 0.05) && width(mean) < 0.5 * width(apart.hr_10[0]), "{apart:?}");
        // Swapped, all is the other way round.
        let loaded = [vec![ahead("b", 200, gains)], vec![ahead("a", 200, |_, _| false)]];
        let swapped = kept().horizon(&groups, &loaded)[1].difference.clone().unwrap().mean_hr_10;
        assert!(near(swapped.value, -0.2) && swapped.high < 0.0);
    }

    #[test]
    fn a_curve_averages_seeds_user_by_user() {
        // Two seeds that hit other users have together half the rate for all: certain, where each is not.
        let seeds = |user: u32, seed: u32| user.is_multiple_of(2) == (seed == 0);
        let both = vec![ahead("s0", 50, |u, _| seeds(u, 0)), ahead("s1", 50, |u, _| seeds(u, 1))];
        let loaded = [vec![ahead("a", 50, |_, _| false)], both];
        let curves = kept().horizon(&groups(&[&["a"], &["s0", "s1"]]), &loaded);
        let certain = Interval { value: 0.5, low: 0.5, high: 0.5 };
        let difference = curves[1].difference.as_ref().unwrap();
        assert!(difference.hr_10.iter().all(|&at| at == certain) && difference.mean_hr_10 == certain);
        // No curve of some where one run has none.
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
