//! The compared runs: single runs, or groups of runs that differ only in their seed.

use std::path::PathBuf;
use std::str::FromStr;

use store::Root;

use super::CompareError;
use crate::checkpoint;
use crate::judge::TargetRank;
use crate::judge::stored;
use crate::records::{self, EpochMetrics};

/// One run, or several averaged as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name in results.
    pub label: String,
    /// Names of the models.
    pub runs: Vec<String>,
}

impl FromStr for Group {
    type Err = String;

    /// Parses `run` or `label=run1,run2,run3`.
    ///
    /// # Errors
    ///
    /// The label is empty, a run is not a valid model name, or a run occurs twice.
    fn from_str(text: &str) -> Result<Self, String> {
        let (label, runs): (&str, Vec<String>) = match text.split_once('=') {
            Some((label, runs)) => (label, runs.split(',').map(str::to_owned).collect()),
            None => (text, vec![text.to_owned()]),
        };
        if label.is_empty() {
            return Err("the label before `=` is empty".into());
        }
        for (i, run) in runs.iter().enumerate() {
            checkpoint::check_name(run).map_err(|_| {
                format!("`{run}` is no model's name; write a run as NAME, several seeds as LABEL=NAME,NAME")
            })?;
            if runs[..i].contains(run) {
                return Err(format!("`{run}` is there twice"));
            }
        }
        Ok(Self { label: label.into(), runs })
    }
}

/// Stored results of one run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) name: String,
    /// Ranks of the targets, sorted by user and position.
    pub(super) ranks: Vec<TargetRank>,
    /// Ranks of the horizon curve, sorted likewise; empty if the split has none.
    pub(super) horizon: Vec<TargetRank>,
    /// Records of the training epochs; `None` if there are none.
    pub(super) epochs: Option<Vec<EpochMetrics>>,
}

impl Run {
    pub(super) fn load(root: &Root, name: &str, split: &str) -> Result<Self, CompareError> {
        let directory = root.model_path(name);
        let directory: PathBuf = checkpoint::find(&directory)
            .ok_or_else(|| CompareError::NoModel { name: name.into(), path: directory })?;
        let path = stored::ranks_path(&directory, split);
        let Some(mut ranks) = stored::read_ranks(&path)? else {
            return Err(CompareError::NotEvaluated { name: name.into(), split: split.into(), path });
        };
        let mut horizon = stored::read_ranks(&stored::horizon_path(&directory, split))?.unwrap_or_default();
        for rows in [&mut ranks, &mut horizon] {
            rows.sort_by(|a, b| key(a).cmp(&key(b)));
        }
        let epochs = records::read(&directory.join(records::METRICS))?;
        Ok(Self { name: name.into(), ranks, horizon, epochs })
    }
}

/// Returns the identity of a target.
fn key(row: &TargetRank) -> (&str, u32, i64, &str, u8) {
    (&row.user_id, row.position, row.ts, &row.item_id, row.horizon)
}

/// Describes the first difference between the targets of two runs, both sorted; `None` if they are equal.
pub(super) fn difference(names: [&str; 2], rows: [&[TargetRank]; 2]) -> Option<String> {
    let [a, b] = rows;
    let at = (0..a.len().max(b.len())).find(|&i| match (a.get(i), b.get(i)) {
        (Some(a), Some(b)) => key(a) != key(b) || participation(a) != participation(b),
        _ => true,
    })?;
    let target = |row: &TargetRank| {
        format!("user `{}`, position {}, item `{}` at {} ms", row.user_id, row.position, row.item_id, row.ts)
    };
    let only = |row: &TargetRank, i: usize| format!("{} is a target of `{}` only", target(row), names[i]);
    Some(match (a.get(at), b.get(at)) {
        (Some(x), Some(y)) if key(x) == key(y) => {
            let in_protocols = |row| format!("{:?}", participation(row));
            format!(
                "{} takes part under {} in `{}` and under {} in `{}`",
                target(x),
                in_protocols(x),
                names[0],
                in_protocols(y),
                names[1]
            )
        }
        (Some(x), Some(y)) if key(x) < key(y) => only(x, 0),
        (Some(x), None) => only(x, 0),
        (_, Some(y)) => only(y, 1),
        (None, None) => return None,
    })
}

/// Returns the protocols under which a target takes part.
fn participation(row: &TargetRank) -> Vec<&'static str> {
    let protocols = crate::judge::Protocol::ALL.iter().zip(&row.ranks);
    protocols.filter(|(_, ranks)| ranks.is_some()).map(|(protocol, _)| protocol.name()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Ranks;

    #[test]
    fn groups_are_runs_or_labelled_seeds() {
        let group = |label: &str, runs: &[&str]| Group {
            label: label.into(),
            runs: runs.iter().map(|r| (*r).to_owned()).collect(),
        };
        assert_eq!("base".parse(), Ok(group("base", &["base"])));
        assert!("K = 2=s1,s2".parse::<Group>().is_err(), "a label ends at the first `=`");
        assert_eq!("tamip=s1,s2".parse(), Ok(group("tamip", &["s1", "s2"])));
        for wrong in ["", "=a", "x=", "x=a,", "x=a,a", "../x", "a,b"] {
            assert!(wrong.parse::<Group>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_difference_of_targets_is_named() {
        let ranks = Some(Ranks { all: Some(1), unseen: None });
        let row = |user: &str, position| TargetRank {
            user_id: user.into(),
            position,
            ts: 5,
            item_id: "i".into(),
            horizon: 1,
            ranks: [ranks; 2],
        };
        let a = [row("u1", 3), row("u2", 4), row("u3", 9)];
        let say = |b: &[TargetRank]| difference(["a", "b"], [&a, b]);
        assert_eq!(say(&a), None);
        // Different ranks of the same targets are no difference.
        let mut b = a.clone();
        b[1].ranks = [Some(Ranks { all: None, unseen: None }); 2];
        assert_eq!(say(&b), None);
        b[1].ranks[0] = None;
        assert!(say(&b).unwrap().contains("user `u2`, position 4"));
        assert!(say(&b).unwrap().contains("under [\"as-served\"] in `b`"), "{}", say(&b).unwrap());
        assert!(say(&a[..2]).unwrap().contains("user `u3`, position 9"));
        assert!(say(&a[1..]).unwrap().contains("user `u1`") && say(&a[1..]).unwrap().contains("of `a` only"));
        let mut b = a.clone();
        b[1].position = 2;
        assert!(say(&b).unwrap().ends_with("is a target of `b` only"), "{}", say(&b).unwrap());
    }
}
