//! Groups of runs under conditions: HR@K and CC@K, without and with a filter behind the model.

use std::fmt;

use serde::Serialize;
use store::Root;

use super::bootstrap::{Interval, UserSums, intervals};
use super::report::signed;
use super::{CompareError, Group, Options, Spread};
use crate::checkpoint;
use crate::judge::stored::instructed::{InstructedTarget, NUMBERS, instructed_path, read_instructed};
use crate::judge::{Protocol, rate};

/// Groups side by side under the conditions of their targets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstructedComparison {
    /// The attribute or derived condition.
    pub condition: String,
    /// `validation` or `test`.
    pub split: String,
    /// For each protocol and choice of filters, one entry for each group.
    pub results: Vec<InstructedGroup>,
}

/// A group's numbers for one protocol and choice of filters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstructedGroup {
    /// The group.
    pub label: String,
    /// Its runs.
    pub runs: Vec<String>,
    /// What a prediction may build on.
    pub protocol: Protocol,
    /// Whether seen items are left out of the lists.
    pub filter_seen: bool,
    /// Whether items without the condition are left out.
    pub condition_filter: bool,
    /// Targets in the means.
    pub targets: usize,
    /// The numbers' names.
    pub names: [&'static str; NUMBERS.len()],
    /// Means over the runs, in the order of `names`.
    pub metrics: Vec<Spread>,
    /// The paired difference to the first group; absent for that one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Vec<Interval>>,
}

/// Compares `groups` by what `trainer evaluate --condition` left in their models' directories.
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
            let run_mean = |rows: &Vec<&InstructedTarget>, i: usize| {
                rows.iter().map(|row| row.numbers[i]).sum::<f64>() / rows.len() as f64
            };
            let metrics = (0..NUMBERS.len())
                .map(|i| Spread::new(by_run.iter().map(|rows| run_mean(rows, i)).collect()))
                .collect();
            // Of each target, the mean over the group's runs.
            let of_target = |t: usize| {
                let sum = |i: usize| by_run.iter().map(|rows| rows[t].numbers[i]).sum::<f64>();
                let means = std::array::from_fn(|i| sum(i) / by_run.len() as f64);
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
                names: NUMBERS,
                metrics,
                difference,
            });
            first.get_or_insert(means);
        }
    }
    Ok(InstructedComparison { condition: condition.into(), split: options.split.into(), results })
}

/// A target's user and numbers, means over a group's runs.
type Means<'a> = (&'a str, [f64; NUMBERS.len()]);

/// The differences of the targets' numbers, with intervals of the bootstrap over users.
fn paired(ours: &[Means<'_>], theirs: &[Means<'_>], options: Options<'_>) -> Vec<Interval> {
    let pairs: Vec<(&Means<'_>, &Means<'_>)> = ours.iter().zip(theirs).collect();
    let of_user = |targets: &[(&Means<'_>, &Means<'_>)]| {
        let sum = |i: usize| targets.iter().map(|(a, b)| a.1[i] - b.1[i]).sum();
        UserSums { targets: targets.len() as f64, sums: (0..NUMBERS.len()).map(sum).collect() }
    };
    let users: Vec<UserSums> = pairs.chunk_by(|a, b| a.0.0 == b.0.0).map(of_user).collect();
    intervals(&users, options.resamples, options.seed)
}

/// The protocols and choices of filters of the first run, in their order.
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

/// Every run has the rows of the first one.
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
    /// As tables for people, the headline first: seen items filtered.
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
                for name in NUMBERS {
                    write!(f, "  {:>7}", name.to_uppercase().replace('_', "@"))?;
                }
                writeln!(f)?;
            }
            write!(f, "  {:width$}", group.label)?;
            for spread in &group.metrics {
                write!(f, "  {:>7}", rate(Some(spread.mean)))?;
            }
            writeln!(f)?;
            if group.runs.len() > 1 {
                write!(f, "  {:>width$}", "±")?;
                for spread in &group.metrics {
                    write!(f, "  {:>7}", rate(spread.sd))?;
                }
                writeln!(f)?;
            }
            if let Some(difference) = &group.difference {
                let [hr_10, cc_10] =
                    [0, 4].map(|i| difference.get(i).map_or_else(|| "–".into(), |d| signed(*d)));
                writeln!(f, "  {:width$}  HR@10 {hr_10}, CC@10 {cc_10} against the first", "")?;
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
        let with = |value: f64| -> Vec<(&str, [f64; NUMBERS.len()])> {
            (0..40)
                .map(|i| (if i < 20 { "a" } else { "b" }, [value + f64::from(i % 2); NUMBERS.len()]))
                .collect()
        };
        let options = Options { split: "test", resamples: 200, seed: 1 };
        for interval in paired(&with(0.75), &with(0.5), options) {
            assert!((interval.value - 0.25).abs() < 1e-12);
            assert!((interval.low - 0.25).abs() < 1e-12 && (interval.high - 0.25).abs() < 1e-12);
        }
    }
}
