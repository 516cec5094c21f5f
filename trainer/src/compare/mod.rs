//! Comparison of runs that were evaluated on the same targets.
//!
//! A run's numbers are means over targets. The difference of each run to the first one is given with the 95 %
//! percentile interval of the paired bootstrap over users ([`intervals`]): it says how much the difference owes to
//! which users were asked, not to the seed of the training. Runs that differ in their seed only are one group,
//! `label=run1,run2,run3`: its numbers are means over the runs, with their standard deviation.

mod bootstrap;
mod plot;
mod report;
mod runs;

use std::path::PathBuf;

use schemas::config::ConfigError;
use schemas::delta::Root;
use serde::Serialize;

pub use bootstrap::{Interval, UserSums, intervals};
pub use plot::svg;
pub use runs::Group;
use runs::Run;

use crate::evaluate::{HORIZON, Protocol, StoredError, TargetRank, gains};
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
    Records(#[from] RecordsError),
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

/// HR@{10, 20, 50} and NDCG@10, or something about each of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PerMetric<T> {
    /// Hit rate at 10 (Eq. 7).
    pub hr_10: T,
    /// Hit rate at 20.
    pub hr_20: T,
    /// Hit rate at 50.
    pub hr_50: T,
    /// Normalised discounted cumulative gain at 10.
    pub ndcg_10: T,
}

impl<T> PerMetric<T> {
    fn from_fn(f: impl FnMut(usize) -> T) -> Self {
        let [hr_10, hr_20, hr_50, ndcg_10] = std::array::from_fn(f);
        Self { hr_10, hr_20, hr_50, ndcg_10 }
    }

    /// In the order of the fields.
    pub fn each(&self) -> [&T; 4] {
        [&self.hr_10, &self.hr_20, &self.hr_50, &self.ndcg_10]
    }
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
    /// The mean.
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
    /// For the event 1, 2, … [`HORIZON`] steps ahead; a mean over the group's runs.
    pub hr_10: Vec<Interval>,
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
    fn gains(&self, rows: &[TargetRank]) -> Vec<[f64; 4]> {
        rows.iter().filter_map(|row| row.ranks[self.p]).map(|r| gains(r.among(self.filter_seen))).collect()
    }

    fn results(&self, groups: &[Group], loaded: &[Vec<Run>]) -> Vec<GroupResult> {
        let Some(rows) = loaded.first().and_then(|runs| runs.first()).map(|run| &run.ranks) else {
            return Vec::new();
        };
        let asked: Vec<&TargetRank> = rows.iter().filter(|row| row.ranks[self.p].is_some()).collect();
        let users: Vec<&[&TargetRank]> = asked.chunk_by(|a, b| a.user_id == b.user_id).collect();
        let mut first: Option<Vec<[f64; 4]>> = None;
        let mut results = Vec::new();
        for (group, runs) in groups.iter().zip(loaded) {
            let by_run: Vec<Vec<[f64; 4]>> = runs.iter().map(|run| self.gains(&run.ranks)).collect();
            let run_mean = |gains: &Vec<[f64; 4]>, m: usize| {
                gains.iter().map(|gain| gain[m]).sum::<f64>() / gains.len().max(1) as f64
            };
            let metrics =
                PerMetric::from_fn(|m| Spread::new(by_run.iter().map(|gains| run_mean(gains, m)).collect()));
            // Of each target, the mean over the group's runs.
            let means: Vec<[f64; 4]> = (0..asked.len())
                .map(|t| {
                    let sum = |m: usize| by_run.iter().map(|gains| gains[t][m]).sum::<f64>();
                    std::array::from_fn(|m| sum(m) / by_run.len() as f64)
                })
                .collect();
            let difference = first.as_ref().map(|first| {
                let mut targets = means.iter().zip(first);
                let sums: Vec<UserSums> = users
                    .iter()
                    .map(|user| {
                        let mut sums = vec![0.0; 4];
                        for (ours, theirs) in targets.by_ref().take(user.len()) {
                            sums.iter_mut().zip(ours.iter().zip(theirs)).for_each(|(s, (a, b))| *s += a - b);
                        }
                        UserSums { targets: user.len() as f64, sums }
                    })
                    .collect();
                let found = intervals(&sums, self.options.resamples, self.options.seed);
                let nothing = Interval { value: 0.0, low: 0.0, high: 0.0 };
                PerMetric::from_fn(|m| found.get(m).copied().unwrap_or(nothing))
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
        let curve = |(group, runs): (&Group, &Vec<Run>)| {
            let by_run: Vec<Vec<[f64; 4]>> = runs.iter().map(|run| self.gains(&run.horizon)).collect();
            let users = by_run.first().map_or(0, Vec::len) / HORIZON;
            let hit = |target: usize| {
                by_run.iter().map(|gains| gains[target][0]).sum::<f64>() / by_run.len() as f64
            };
            let sums: Vec<UserSums> = (0..users)
                .map(|user| {
                    let hits = (0..HORIZON).map(|h| hit(user * HORIZON + h)).collect();
                    UserSums { targets: 1.0, sums: hits }
                })
                .collect();
            HorizonCurve {
                label: group.label.clone(),
                protocol: self.protocol,
                filter_seen: self.filter_seen,
                users,
                hr_10: intervals(&sums, self.options.resamples, self.options.seed),
            }
        };
        groups.iter().zip(loaded).map(curve).filter(|curve| curve.users > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::Ranks;

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
        assert_eq!(results.iter().map(|r| r.metrics.hr_10.mean).collect::<Vec<_>>(), [0.5, 0.6]);
        assert!(results[0].difference.is_none());
        // Ten users of a hundred make the difference: Binomial(100, 0.1) has the quantiles 5 and 16. Unpaired, the
        // interval would reach from −0.04 to 0.24.
        let difference = results[1].difference.unwrap().hr_10;
        let near = |value: f64, expected: f64| (value - expected).abs() < 0.011;
        assert!((difference.value - 0.1).abs() < 1e-12, "{difference:?}");
        assert!(near(difference.low, 0.05) && near(difference.high, 0.16), "{difference:?}");
        // Swapped, the difference is the other way round.
        let [a, b] = <[_; 2]>::try_from(loaded).unwrap();
        let swapped = kept().results(&groups(&[&["b"], &["a"]]), &[b, a])[1].difference.unwrap().hr_10;
        assert!((swapped.value + 0.1).abs() < 1e-12 && swapped.high < 0.0);
    }

    #[test]
    fn seeds_are_averaged_with_their_spread() {
        let hits = |share: u32| move |user: u32, _| (user % 10 < share).then_some(3);
        let seeds = vec![run("s1", 50, hits(2)), run("s2", 50, hits(4)), run("s3", 50, hits(6))];
        let loaded = vec![seeds, vec![run("x", 50, hits(4))]];
        let results = kept().results(&groups(&[&["s1", "s2", "s3"], &["x"]]), &loaded);
        let hr_10 = &results[0].metrics.hr_10;
        assert!((hr_10.mean - 0.4).abs() < 1e-12 && (hr_10.sd.unwrap() - 0.2).abs() < 1e-12, "{hr_10:?}");
        assert_eq!(hr_10.runs, [0.2, 0.4, 0.6]);
        assert_eq!(results[1].metrics.hr_10.sd, None);
        assert!(results[1].difference.unwrap().hr_10.value.abs() < 1e-12);
        let ndcg = results[1].metrics.ndcg_10.mean;
        assert!((ndcg - 0.4 / 4f64.log2()).abs() < 1e-12, "{ndcg}");
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
