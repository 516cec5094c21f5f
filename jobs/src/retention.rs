//! Retention: deletes models of old publications, remains of finished runs, and old versions of tables.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::Utc;
use pipeline::privacy::sweep;
use schemas::config::Config;
use store::Root;
use store::failpoint;
use store::publication::{self, Publication, PublicationError};
use store::vacuum::{self, vacuum};
use terminal::{Interrupt, with_causes};

use crate::record::{DayStep, Record, Removed};
use crate::{gate, own};

/// Deletes old models (see [`models`]), sweeps forgotten users out again, and deletes old files of tables.
pub(crate) async fn clean(config: &Config, root: &Root, interrupt: &Interrupt) -> Result<Removed> {
    let models = models(config, root)?;
    failpoint::reach("retention:models-deleted");
    // Versions that this run and others have read may hold users forgotten since.
    if let Some(swept) = sweep(config, root, interrupt).await? {
        let rows =
            swept.tables.iter().map(|table| table.rows).chain(swept.files.iter().map(|file| file.rows));
        eprintln!(
            "{} rows of {} users who were forgotten were swept out again",
            rows.sum::<u64>(),
            swept.users
        );
    }
    let (keep, publications) = (config.retention.tables, config.retention.publications);
    let now_ms = Utc::now().timestamp_millis();
    let settings = vacuum::VacuumSettings { keep, publications, dry_run: false, now_ms };
    let report = vacuum(root, &[], settings, interrupt).await?;
    Ok(Removed {
        models,
        files: report.tables.iter().map(|table| table.files.len()).sum(),
        bytes: report.tables.iter().map(|table| table.bytes).sum(),
        kept: keep.to_string(),
    })
}

/// Deletes the models that the jobs made ([`own`]), with the remains of their trainings, and returns their names. Keeps those of
/// kept publications, of the last `retention.publications` daily runs (the gate may have refused them), of experiments, and of
/// unfinished runs.
pub(crate) fn models(config: &Config, root: &Root) -> Result<Vec<String>> {
    let unknown = |problem: String| {
        eprintln!("warning: no model is deleted, because it is not known which ones are needed: {problem}");
    };
    // Listed before the records are read: a run records a model before it makes it.
    let own = own::names(root);
    let kept = match kept(root, config) {
        Ok(kept) => kept,
        Err(problem) => {
            unknown(with_causes(&problem));
            return Ok(Vec::new());
        }
    };
    let published: BTreeSet<String> = kept.iter().flat_map(names).collect();
    let own: Vec<_> = own.into_iter().filter(|(name, _)| !published.contains(name)).collect();
    // The records grow in number, and after most refreshes none is needed.
    let of_days = own.iter().any(|(_, job)| job == own::DAILY);
    let (runs, problems) = if of_days { Record::all(root) } else { Default::default() };
    if let Some(problem) = problems.first() {
        unknown(problem.clone());
        return Ok(Vec::new());
    }
    let needed = needed(config, &runs);
    let mut deleted = Vec::new();
    for (name, job) in own.into_iter().filter(|(name, _)| !needed.contains(name)) {
        let number = if job == own::REFRESH {
            let number = own::number_of_refresh(&name);
            let publication = match number.map(|number| publication::at(root, number)).transpose() {
                // It may be this model's.
                Err(damaged @ PublicationError::Damaged { .. }) => {
                    eprintln!("warning: model `{name}` is not deleted: {}", with_causes(&damaged));
                    continue;
                }
                publication => publication?.flatten(),
            };
            // An unpublished model may be in the making; if it is not, the next refresh deletes it.
            if !publication.is_some_and(|publication| names(&publication).contains(&name)) {
                continue;
            }
            number
        } else {
            let run = runs.iter().find(|run| run.models.contains(&name));
            run.and_then(|run| run.steps.publish.as_ref()).and_then(|done| done.output.number)
        };
        if own::was_replaced(root, &name, number)? {
            eprintln!(
                "warning: model `{name}` is not deleted: its weights are not those that were published, or that cannot be told"
            );
        } else if own::discard(root, &name)? {
            deleted.push(name);
        }
    }
    Ok(deleted)
}

/// Returns unneeded models of publications and finished runs without a job's mark: an earlier version of the jobs made them, or a
/// person has reused the name. The files do not tell which, so no job deletes them; `climber status` names them.
pub(crate) fn unmarked(config: &Config, root: &Root, runs: &[Record]) -> Result<Vec<String>> {
    let kept = kept(root, config)?;
    let published: BTreeSet<String> = kept.iter().flat_map(names).collect();
    let needed = needed(config, runs);
    let of_run = |name: &str| {
        let of = |run: &Record| run.models.contains(name) || [run.base(), run.served()].contains(&Some(name));
        runs.iter().any(of)
    };
    let mut unmarked = Vec::new();
    for name in own::unmarked(root) {
        if published.contains(&name) || needed.contains(&name) {
            continue;
        }
        let number = own::number_of_refresh(&name);
        let publication = number.map(|number| publication::at(root, number)).transpose()?.flatten();
        if of_run(&name) || publication.is_some_and(|publication| names(&publication).contains(&name)) {
            unmarked.push(name);
        }
    }
    Ok(unmarked)
}

/// Returns the models that runs keep: of the last `retention.publications` daily runs, of experiments, and of unfinished runs.
fn needed<'a>(config: &Config, runs: &'a [Record]) -> BTreeSet<&'a String> {
    let last = runs.iter().rev().filter(|run| !run.experiment).take(config.retention.publications);
    let others = runs
        .iter()
        .filter(|run| run.experiment || (run.skipped.is_none() && !run.steps.is_done(DayStep::Publish)));
    last.chain(others).flat_map(|run| &run.models).collect()
}

/// Deletes the models of refreshes that were never published, except those of `current`.
pub(crate) fn unpublished_refreshes(root: &Root, current: &str) -> Result<()> {
    for (name, job) in own::names(root) {
        let base = name.strip_suffix("-sft").unwrap_or(&name);
        let Some(number) = own::number_of_refresh(&name).filter(|_| job == own::REFRESH && base != current)
        else {
            continue;
        };
        // An unreadable publication may be this model's.
        let published = publication::at(root, number)
            .map_or(true, |found| found.is_some_and(|publication| names(&publication).contains(&name)));
        if !published {
            own::discard(root, &name)?;
        }
    }
    Ok(())
}

fn names(publication: &Publication) -> [String; 2] {
    [publication.base.clone(), publication.served.clone()]
}

/// Returns the publications whose models stay, oldest first: the newest ones, the last daily ones, those that these descend from
/// and restore, and the best of the last daily ones, which the gate compares with.
pub(crate) fn kept(root: &Root, config: &Config) -> Result<Vec<Publication>, PublicationError> {
    let Some(newest) = publication::newest(root)? else { return Ok(Vec::new()) };
    let best = gate::best(root, &config.gate, &newest);
    publication::kept(root, config.retention.publications, best)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::{DateTime, NaiveDate, TimeDelta};
    use store::publication::Kind;

    use super::*;

    fn publication(number: u64, daily: u64, age: TimeDelta) -> Publication {
        Publication {
            number,
            parent: number.checked_sub(1).filter(|&parent| parent > 0),
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

    fn config(publications: usize) -> Config {
        let mut config = Config::default();
        config.retention.publications = publications;
        config
    }

    #[test]
    fn the_newest_stay_with_what_they_descend_from() {
        let day = TimeDelta::days(1);
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        for made in [
            publication(1, 1, day * 40),
            publication(2, 2, day * 30),
            publication(3, 3, day * 20),
            publication(4, 3, day),
            publication(5, 3, day),
        ] {
            publication::publish(&root, &made).unwrap();
        }
        let kept = kept(&root, &config(2)).unwrap();
        assert_eq!(kept.iter().map(|p| p.number).collect::<Vec<_>>(), [2, 3, 4, 5]);
    }

    #[test]
    fn the_best_that_the_gate_compares_with_stays() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        for number in 1..=20 {
            let metrics = [("hr@10".to_owned(), if number == 4 { 0.2 } else { 0.1 })].into();
            std::fs::create_dir_all(root.model_path(&format!("{number}-sft"))).unwrap();
            let made = Publication { metrics, ..publication(number, number, TimeDelta::zero()) };
            publication::publish(&root, &made).unwrap();
        }
        let kept = kept(&root, &config(2)).unwrap();
        assert_eq!(kept.iter().map(|p| p.number).collect::<Vec<_>>(), [4, 19, 20]);
    }

    #[test]
    fn models_without_a_mark_are_named_where_nothing_needs_them() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        let made = |name: &str| {
            std::fs::create_dir_all(root.model_path(name)).unwrap();
            std::fs::write(root.model_path(name).join("lineage.json"), "{}").unwrap();
        };
        let mut runs = Vec::new();
        for number in 1..=4u64 {
            let date = NaiveDate::default() + chrono::Days::new(number);
            let mut run = Record::new(&number.to_string(), date);
            run.models = [number.to_string(), format!("{number}-sft")].into();
            run.experiment = number == 2;
            let done =
                crate::record::Done { finished_at: Utc::now(), seconds: 0.0, output: Default::default() };
            run.steps.publish = Some(done);
            run.models.iter().for_each(|name| made(name));
            runs.push(run);
            publication::publish(&root, &publication(number, number, TimeDelta::zero())).unwrap();
        }
        // An old refresh, and models of people: one with a name no job gives, one with a name like a job's.
        let refresh = Publication {
            base: "1-p4-e9".into(),
            served: "1-p4-e9".into(),
            ..publication(5, 4, TimeDelta::zero())
        };
        publication::publish(&root, &refresh).unwrap();
        for number in 6..=8 {
            publication::publish(&root, &publication(number, number, TimeDelta::zero())).unwrap();
        }
        ["1-p4-e9", "mine", "mine-p1-e2"].into_iter().for_each(made);
        let mut config = config(1);
        config.gate.best_of = 0;
        assert_eq!(unmarked(&config, &root, &runs).unwrap(), ["1", "1-p4-e9", "1-sft", "3", "3-sft"]);
        assert!(models(&config, &root).unwrap().is_empty());
        assert!(root.model_path("1-sft").exists());
    }

    /// Old publications are garbage here: reading one would fail.
    #[test]
    fn old_publications_are_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        let published = directory.path().join("models/.published");
        std::fs::create_dir_all(&published).unwrap();
        for number in 1..9_990 {
            std::fs::write(published.join(format!("{number:08}.json")), "old").unwrap();
        }
        for number in 9_990..=10_000 {
            let made = Publication {
                parent: Some(number - 1).filter(|_| number > 9_990),
                ..publication(number, 9_990, TimeDelta::zero())
            };
            publication::publish(&root, &made).unwrap();
        }
        let kept = kept(&root, &config(7)).unwrap();
        assert_eq!(kept.len(), 8);
        assert!(models(&config(7), &root).unwrap().is_empty());
        unpublished_refreshes(&root, "none").unwrap();
    }
}
