//! Comparison of groups of runs under conditions: HR@K and CC@K, without and with a filter by the condition. Memory: the stored
//! rows of all runs.

use std::fmt;

use serde::Serialize;
use store::Root;

use super::bootstrap::{Interval, UserSums, intervals};
use super::report::signed;
use super::{CompareError, Group, NOTHING, Options, Spread};
use crate::checkpoint;
use crate::judge::per_metric::{in_order, some_in_order};
use crate::judge::stored::instructed::{InstructedTarget, instructed_path, read_instructed};
use crate::judge::{ALL, CC_10, HR_10, Key, METRICS, Metric, PerMetric, Protocol, rate};

/// Groups side by side, under the conditions of their targets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstructedComparison {
    /// Attribute or derived condition.
    pub condition: String,
    /// Split of the targets.
    pub split: String,
    /// One entry per group, for each protocol and choice of filters.
    pub results: Vec<InstructedGroup>,
}

/// Metrics of a group for one protocol and choice of filters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstructedGroup {
    /// Label of the group.
    pub label: String,
    /// Names of its runs.
    pub runs: Vec<String>,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Whether items that the user has seen are excluded from the lists.
    pub filter_seen: bool,
    /// Whether items that do not carry the condition are excluded from the lists.
    pub condition_filter: bool,
    /// Number of targets in the means.
    pub targets: usize,
    /// Names of the metrics.
    pub names: Vec<String>,
    /// Means over the runs, in the order of `names`.
    #[serde(serialize_with = "in_order")]
    pub metrics: PerMetric<Spread, ALL>,
    /// Paired difference to the first group; `None` for the first group.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "some_in_order")]
    pub difference: Option<PerMetric<Interval, ALL>>,
}

/// Compares `groups` from the files that `trainer evaluate --condition` stored with their models.
///
/// # Errors
///
/// A model is missing or not evaluated under `condition`, its file is damaged, or the targets of two runs differ.
pub fn instructed(
    root: &Root,
    groups: &[Group],
    condition: &str,
    options: Options<'_>,
) -> Result<InstructedComparison, CompareError> {
    let load = |name: &String| {
        let directory = root.model_path(name);
        let directory = checkpoint::find(&directory)
            .ok_or_else(|| CompareError::NoModel { name: name.clone(), path: directory })?;
        let path = instructed_path(&directory, options.split, condition);
        let split = format!("{} --condition {condition}", options.split);
        let rows = read_instructed(&path)?.ok_or_else(|| CompareError::NotEvaluated {
            name: name.clone(),
            split,
            path,
        })?;
        Ok((name.clone(), rows))
    };
    let loaded: Vec<Vec<(String, Vec<InstructedTarget>)>> = groups
        .iter()
        .map(|group| group.runs.iter().map(load).collect::<Result<_, CompareError>>())
        .collect::<Result<_, _>>()?;
    same_targets(&loaded)?;
    let mut results = Vec::new();
    for (protocol, filter_seen, condition_filter) in slices(&loaded) {
        let of_slice = |row: &&InstructedTarget| {
            (row.protocol, row.filter_seen, row.condition_filter) == (protocol, filter_seen, condition_filter)
        };
        let mut first: Option<Vec<Means<'_>>> = None;
        for (group, runs) in groups.iter().zip(&loaded) {
            let by_run: Vec<Vec<&InstructedTarget>> =
                runs.iter().map(|(_, rows)| rows.iter().filter(of_slice).collect()).collect();
            let run_mean = |rows: &Vec<&InstructedTarget>, m: Key| {
                rows.iter().map(|row| row.numbers[m]).sum::<f64>() / rows.len() as f64
            };
            let metrics =
                PerMetric::from_fn(|m| Spread::new(by_run.iter().map(|rows| run_mean(rows, m)).collect()));
            // Mean over the group's runs, per target.
            let of_target = |t: usize| {
                let sum = |m: Key| by_run.iter().map(|rows| rows[t].numbers[m]).sum::<f64>();
                let means = PerMetric::from_fn(|m| sum(m) / by_run.len() as f64);
                (by_run[0][t].user_id.as_str(), means)
            };
            let means: Vec<_> = (0..by_run[0].len()).map(of_target).collect();
            let difference = first.as_ref().map(|first| paired(&means, first, options));
            results.push(InstructedGroup {
                label: group.label.clone(),
                runs: group.runs.clone(),
                protocol,
                filter_seen,
                condition_filter,
                targets: means.len(),
                names: METRICS.iter().map(Metric::column).collect(),
                metrics,
                difference,
            });
            first.get_or_insert(means);
        }
    }
    Ok(InstructedComparison { condition: condition.into(), split: options.split.into(), results })
}

/// User of a target and the means of its metrics over a group's runs.
type Means<'a> = (&'a str, PerMetric<f64, ALL>);

/// Returns the paired differences of the targets' metrics, with intervals of the bootstrap over users.
fn paired(ours: &[Means<'_>], theirs: &[Means<'_>], options: Options<'_>) -> PerMetric<Interval, ALL> {
    let pairs: Vec<(&Means<'_>, &Means<'_>)> = ours.iter().zip(theirs).collect();
    let of_user = |targets: &[(&Means<'_>, &Means<'_>)]| {
        let sums = PerMetric::<f64, ALL>::from_fn(|m| targets.iter().map(|(a, b)| a.1[m] - b.1[m]).sum());
        UserSums { targets: targets.len() as f64, sums: sums.values().to_vec() }
    };
    let users: Vec<UserSums> = pairs.chunk_by(|a, b| a.0.0 == b.0.0).map(of_user).collect();
    let found = intervals(&users, options.resamples, options.seed);
    PerMetric::from_fn(|m| found.get(m.index()).copied().unwrap_or(NOTHING))
}

/// Returns the protocols and choices of filters of the first run, in order of appearance.
fn slices(loaded: &[Vec<(String, Vec<InstructedTarget>)>]) -> Vec<(Protocol, bool, bool)> {
    let mut slices = Vec::new();
    for row in loaded.first().and_then(|runs| runs.first()).into_iter().flat_map(|(_, rows)| rows) {
        let slice = (row.protocol, row.filter_seen, row.condition_filter);
        if !slices.contains(&slice) {
            slices.push(slice);
        }
    }
    slices
}

/// Checks that every run has the rows of the first run.
fn same_targets(loaded: &[Vec<(String, Vec<InstructedTarget>)>]) -> Result<(), CompareError> {
    let mut runs = loaded.iter().flatten();
    let Some((first, expected)) = runs.next() else { return Ok(()) };
    let key = |r: &InstructedTarget| {
        (
            r.user_id.clone(),
            r.position,
            r.ts,
            r.item_id.clone(),
            r.protocol,
            r.filter_seen,
            r.condition_filter,
        )
    };
    for (name, rows) in runs {
        let differs = rows.iter().zip(expected).find(|(a, b)| key(a) != key(b));
        let difference = match differs {
            Some((a, b)) => format!(
                "user `{}`, position {} there, user `{}`, position {} here",
                b.user_id, b.position, a.user_id, a.position
            ),
            None if rows.len() != expected.len() => format!("{} rows and {}", expected.len(), rows.len()),
            None => continue,
        };
        let runs = [first.clone(), name.clone()];
        return Err(CompareError::OtherTargets { runs, of: " under this condition", difference });
    }
    Ok(())
}

impl fmt::Display for InstructedComparison {
    /// Formats the results as tables, in stored order: seen items filtered first.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.results.iter().map(|g| g.label.len()).max().unwrap_or(0).max(5);
        let mut heading = None;
        for group in &self.results {
            let of = (group.protocol, group.filter_seen, group.condition_filter);
            if heading != Some(of) {
                heading = Some(of);
                writeln!(
                    f,
                    "{}, {}, under {} of the target, seen items {}, {}: {} targets",
                    self.split,
                    group.protocol.name(),
                    self.condition,
                    if group.filter_seen { "filtered" } else { "kept" },
                    if group.condition_filter {
                        "filtered by the condition"
                    } else {
                        "no filter by the condition"
                    },
                    group.targets
                )?;
                write!(f, "  {:width$}", "run")?;
                for metric in METRICS {
                    write!(f, "  {:>7}", metric.label())?;
                }
                writeln!(f)?;
            }
            write!(f, "  {:width$}", group.label)?;
            for spread in group.metrics.values() {
                write!(f, "  {:>7}", rate(Some(spread.mean)))?;
            }
            writeln!(f)?;
            if group.runs.len() > 1 {
                write!(f, "  {:>width$}", "±")?;
                for spread in group.metrics.values() {
                    write!(f, "  {:>7}", rate(spread.sd))?;
                }
                writeln!(f)?;
            }
            if let Some(difference) = &group.difference {
                let headline =
                    [HR_10, CC_10].map(|m| format!("{} {}", m.metric().label(), signed(difference[m])));
                writeln!(f, "  {:width$}  {} against the first", "", headline.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_paired_by_target_and_drawn_by_user() {
        let with = |value: f64| -> Vec<Means<'_>> {
            let number = |i: u32| PerMetric::from_fn(|_| value + f64::from(i % 2));
            (0..40).map(|i| (if i < 20 { "a" } else { "b" }, number(i))).collect()
        };
        let options = Options { split: "test", resamples: 200, seed: 1 };
        for interval in paired(&with(0.75), &with(0.5), options).values() {
            assert!((interval.value - 0.25).abs() < 1e-12);
            assert!((interval.low - 0.25).abs() < 1e-12 && (interval.high - 0.25).abs() < 1e-12);
        }
    }
}
