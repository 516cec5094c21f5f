//! What is deleted: models of old publications, unfinished trainings of runs that are over, versions of tables.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use chrono::{DateTime, Utc};
use pipeline::forget::sweep;
use pipeline::vacuum::{self, vacuum};
use schemas::cli::{Interrupt, with_causes};
use schemas::config::{Config, Span};
use schemas::delta::Root;
use schemas::failpoint;
use schemas::publication::{self, Kind, Publication};
use serde::{Deserialize, Serialize};
use trainer::checkpoint;

use crate::daily::{Record, Step};

/// What was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    /// Models.
    pub(crate) models: Vec<String>,
    /// Files of tables, and their bytes.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// How long versions of tables stay readable.
    pub(crate) kept: String,
}

/// Deletes [`models`], and the tables' old files.
pub(crate) async fn clean(config: &Config, root: &Root, interrupt: &Interrupt) -> Result<Removed> {
    let models = models(config, root)?;
    failpoint::reach("retention:models-deleted");
    // What this run and others have read in versions of before may hold somebody who was forgotten since.
    if let Some(swept) = sweep(config, root, interrupt).await? {
        let rows =
            swept.tables.iter().map(|table| table.rows).chain(swept.files.iter().map(|file| file.rows));
        eprintln!(
            "{} rows of {} users who were forgotten were swept out again",
            rows.sum::<u64>(),
            swept.users
        );
    }
    let (all, _) = publication::all(root)?;
    let kept = kept(&all, config.retention.publications);
    let keep = keep(config.retention.tables, &kept, Utc::now());
    let settings = vacuum::Settings { keep, dry_run: false, now_ms: Utc::now().timestamp_millis() };
    let report = vacuum(root, &[], settings, interrupt).await?;
    Ok(Removed {
        models,
        files: report.tables.iter().map(|table| table.files.len()).sum(),
        bytes: report.tables.iter().map(|table| table.bytes).sum(),
        kept: keep.to_string(),
    })
}

/// Deletes the models that the jobs have made, with what is left of their trainings, but those of the publications that are kept,
/// of the last `retention.publications` daily runs, which may have been refused, and of runs that are not over. Other models are
/// left alone: they are somebody else's.
pub(crate) fn models(config: &Config, root: &Root) -> Result<Vec<String>> {
    let (all, damaged) = publication::all(root)?;
    if let Some(problem) = damaged.first() {
        eprintln!(
            "warning: no model is deleted, because it is not known which ones are needed: {}",
            with_causes(problem)
        );
        return Ok(Vec::new());
    }
    let published = |publication: &&Publication| [publication.base.clone(), publication.served.clone()];
    let (runs, _) = Record::all(root);
    let last = runs.iter().rev().take(config.retention.publications);
    let unfinished = runs.iter().filter(|run| !run.steps.is_done(Step::Publish));
    let of_runs = last.chain(unfinished).flat_map(|run| run.models.iter().cloned());
    let kept = kept(&all, config.retention.publications);
    let needed: BTreeSet<String> = kept.iter().flat_map(published).chain(of_runs).collect();
    let made =
        all.iter().flat_map(|p| published(&p)).chain(runs.iter().flat_map(|run| run.models.iter().cloned()));
    let made: BTreeSet<String> = made.collect();
    let mut deleted = Vec::new();
    for name in made.difference(&needed) {
        if discard(root, name)? {
            deleted.push(name.clone());
        }
    }
    Ok(deleted)
}

/// Deletes what near-real-time refreshes have left that never came to be published, but that of `current`.
pub(crate) fn unpublished_refreshes(root: &Root, current: &str) -> Result<()> {
    let (all, damaged) = publication::all(root)?;
    if !damaged.is_empty() {
        return Ok(());
    }
    let published: BTreeSet<&str> = all.iter().flat_map(|p| [p.base.as_str(), p.served.as_str()]).collect();
    for directory in [root.path().join("models"), root.model_path(".training")] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let base = name.strip_suffix("-sft").unwrap_or(&name);
            if is_refresh(base) && base != current && !published.contains(name.as_str()) {
                discard(root, &name)?;
            }
        }
    }
    Ok(())
}

/// Whether a base has the name that [`crate::refresh`] gives: `…-p12-e345`.
fn is_refresh(base: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    base.rsplit_once("-e").is_some_and(|(before, events)| {
        number(events)
            && before.rsplit_once("-p").is_some_and(|(run, parent)| !run.is_empty() && number(parent))
    })
}

/// Deletes a model, and what an unfinished training of that name has left. Whether there was a model.
pub(crate) fn discard(root: &Root, name: &str) -> Result<bool> {
    let directory = root.model_path(name);
    let found = checkpoint::find(&directory).is_some();
    let training = root.model_path(".training").join(name);
    let discarded = checkpoint::discard(&directory).map_err(anyhow::Error::from).and_then(|()| {
        match std::fs::remove_dir_all(&training) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    });
    discarded.with_context(|| format!("model `{name}`"))?;
    Ok(found)
}

/// The publications whose models stay: the newest ones, also of the daily job alone, what they descend from, and what they
/// bring back.
fn kept(all: &[Publication], publications: usize) -> Vec<&Publication> {
    let newest = all.iter().rev().take(publications);
    let daily = all.iter().rev().filter(|p| p.kind == Kind::Daily).take(publications);
    let kept = newest.chain(daily).flat_map(|p| [Some(p.number), Some(p.daily), p.restores]);
    let kept: BTreeSet<u64> = kept.flatten().collect();
    all.iter().filter(|p| kept.contains(&p.number)).collect()
}

/// `tables`, or longer: what came after a kept publication's version of `events` is known from the shards as they were then.
fn keep(tables: Span, kept: &[&Publication], now: DateTime<Utc>) -> Span {
    let oldest = kept.iter().map(|publication| publication.published_at).min();
    let age_ms = oldest.map_or(0, |oldest| (now - oldest).num_milliseconds());
    // The publication's tables were read some time before it was made.
    let margin = Span::minutes(24 * 60).ms;
    Span { ms: tables.ms.max(if age_ms > 0 { age_ms + margin } else { 0 }) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use chrono::{NaiveDate, TimeDelta};

    fn publication(number: u64, daily: u64, age: TimeDelta) -> Publication {
        Publication {
            number,
            parent: None,
            kind: if daily == number { Kind::Daily } else { Kind::Refresh },
            run: number.to_string(),
            published_at: DateTime::UNIX_EPOCH - age,
            base: number.to_string(),
            base_hash: String::new(),
            served: format!("{number}-sft"),
            served_hash: String::new(),
            daily,
            learned_events: 0,
            full_training: NaiveDate::default(),
            full_events: 0,
            tables: BTreeMap::new(),
            metrics: BTreeMap::new(),
            restores: None,
        }
    }

    #[test]
    fn refreshes_are_known_by_their_names() {
        for name in ["2026-11-22-p3-e57", "m-p1-e0", "a-p2-e3-p4-e5"] {
            assert!(is_refresh(name), "{name}");
        }
        for name in ["2026-11-22", "2026-11-22-exp1", "shop-e5", "-p1-e2", "m-p1-e2x", "m-p-e2"] {
            assert!(!is_refresh(name), "{name}");
        }
    }

    #[test]
    fn the_newest_stay_with_what_they_descend_from() {
        let day = TimeDelta::days(1);
        let all = [
            publication(1, 1, day * 40),
            publication(2, 2, day * 30),
            publication(3, 3, day * 20),
            publication(4, 3, day),
            publication(5, 3, day),
        ];
        let kept = kept(&all, 2);
        assert_eq!(kept.iter().map(|p| p.number).collect::<Vec<_>>(), [2, 3, 4, 5]);
        // What came after publication 2 must stay known.
        assert_eq!(keep(Span::minutes(60), &kept, DateTime::UNIX_EPOCH).to_string(), "31d");
        assert_eq!(keep(Span::minutes(60 * 24 * 90), &kept, DateTime::UNIX_EPOCH).to_string(), "90d");
        // A clock that was set back deletes nothing more.
        let past = DateTime::UNIX_EPOCH - day * 100;
        assert_eq!(keep(Span::minutes(60), &kept, past).to_string(), "1h");
    }
}
