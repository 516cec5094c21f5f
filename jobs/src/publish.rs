//! Publishes a model as the next publication, unless another job was faster; rolls back to an earlier one.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use chrono::{NaiveDate, Utc};
use store::Root;
use store::publication::{self, Kind, Publication, PublicationError};
use terminal::with_causes;
use trainer::checkpoint;

use crate::gate::{Figures, Measured};

/// A model to be published.
#[derive(Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) kind: Kind,
    /// Run that made it.
    pub(crate) run: &'a str,
    pub(crate) base: &'a str,
    pub(crate) served: &'a str,
    /// Day of the last full training that the base descends from, and the rows of `events` it was trained on.
    pub(crate) full: (NaiveDate, u64),
    pub(crate) tables: BTreeMap<String, u64>,
    pub(crate) measured: Option<&'a Measured>,
}

/// Publishes the model of a daily job that follows publication `follows`, over refreshes published since it began. Returns the
/// publication's number, also if the run published it before it died.
///
/// # Errors
///
/// If a rollback or another daily publication has replaced `follows`.
pub(crate) fn over_refreshes(root: &Root, candidate: &Candidate<'_>, follows: Option<u64>) -> Result<u64> {
    loop {
        let newest = publication::settle(root)?;
        let daily = newest.as_ref().map(|newest| readable(root, newest.daily)).transpose()?.flatten();
        if let Some(own) = daily.filter(|own| own.run == candidate.run && own.served == candidate.served)
            && own.served_hash == checkpoint::hash(&root.model_path(candidate.served))?
        {
            return Ok(own.number);
        }
        if let Some(number) = taken_back(root, newest.as_ref(), candidate)? {
            eprintln!("publication {number} was this model, and was taken back: it is not published again");
            return Ok(number);
        }
        let followed = followed(root, candidate.run)?.map(|publication| publication.number);
        if followed != follows {
            // A person rolled back on purpose, or another machine published another day.
            bail!(
                "publication {} has taken the place of what this run goes on from; the next run starts again from there",
                newest.map_or(0, |newest| newest.number)
            );
        }
        match on(root, newest.as_ref(), candidate) {
            Err(error) if is_conflict(&error) => {}
            published => return published,
        }
    }
}

/// Returns the publication of exactly this model that a rollback has withdrawn: its run died before recording it.
fn taken_back(root: &Root, newest: Option<&Publication>, candidate: &Candidate<'_>) -> Result<Option<u64>> {
    let Some(newest) = newest.filter(|newest| newest.kind == Kind::Rollback) else { return Ok(None) };
    let served_hash = checkpoint::hash(&root.model_path(candidate.served))?;
    let mut parent = newest.parent;
    while let Some(number) = parent.filter(|&number| number > newest.daily) {
        // A damaged record may be this model's, so it is an error.
        let Some(before) = publication::at(root, number)? else { break };
        if before.run == candidate.run
            && before.served == candidate.served
            && before.served_hash == served_hash
        {
            return Ok(Some(number));
        }
        parent = before.parent;
    }
    Ok(None)
}

/// Reads publication `number`; a damaged record gives a warning and `None`, so that it does not stop later days.
pub(crate) fn readable(root: &Root, number: u64) -> Result<Option<Publication>, PublicationError> {
    match publication::at(root, number) {
        Err(damaged @ PublicationError::Damaged { .. }) => {
            eprintln!("warning: {}", with_causes(&damaged));
            Ok(None)
        }
        publication => publication,
    }
}

/// Returns the newest readable daily publication in force, except those of `run` itself.
pub(crate) fn followed(root: &Root, run: &str) -> Result<Option<Publication>> {
    let mut newest = publication::newest(root)?;
    while let Some(found) = newest {
        let daily = if found.daily == found.number { Some(found) } else { readable(root, found.daily)? };
        match daily {
            Some(own) if own.kind == Kind::Daily && own.run == run => {
                newest = own.parent.map_or(Ok(None), |parent| readable(root, parent))?;
            }
            daily => return Ok(daily),
        }
    }
    Ok(None)
}

/// Publishes on top of `parent`.
///
/// # Errors
///
/// [`PublicationError::Conflict`] if `parent` is no longer the newest publication.
pub(crate) fn on(root: &Root, parent: Option<&Publication>, candidate: &Candidate<'_>) -> Result<u64> {
    let number = parent.map_or(1, |parent| parent.number + 1);
    let Candidate { kind, run, base, served, full: (full_training, full_events), .. } = *candidate;
    let (_, lineage) = checkpoint::describe(&root.model_path(base))?;
    let Some(learned_events) = lineage.learned_events() else {
        bail!("it is not known which version of `events` `{base}` has learned of");
    };
    let metrics = candidate.measured.map_or_else(Figures::new, |measured| {
        if measured.guard.is_empty() { measured.test.clone() } else { measured.guard.clone() }
    });
    let daily = match kind {
        Kind::Daily => number,
        _ => parent.map_or(number, |parent| parent.daily),
    };
    publication::publish(
        root,
        &Publication {
            number,
            parent: parent.map(|parent| parent.number),
            kind,
            run: run.into(),
            published_at: Utc::now(),
            base: base.into(),
            base_hash: checkpoint::hash(&root.model_path(base))?,
            served: served.into(),
            served_hash: checkpoint::hash(&root.model_path(served))?,
            daily,
            learned_events,
            full_training,
            full_events,
            tables: candidate.tables.clone(),
            metrics,
            restores: None,
        },
    )?;
    Ok(number)
}

/// Restores publication `to`, by default the one before the newest.
pub(crate) fn rollback(root: &Root, to: Option<u64>) -> Result<Publication> {
    loop {
        // If a refresh is faster, the target is chosen again.
        match try_rollback(root, to) {
            Err(error) if is_conflict(&error) => {}
            done => return done,
        }
    }
}

fn try_rollback(root: &Root, to: Option<u64>) -> Result<Publication> {
    let Some(newest) = publication::settle(root)? else { bail!("nothing was ever published") };
    let target = match to {
        Some(number) => number,
        // A rollback stands for the publication that it restored.
        None => {
            let stands_for = newest.restores.unwrap_or(newest.number);
            match publication::at(root, stands_for)?.and_then(|publication| publication.parent) {
                Some(parent) => parent,
                None => bail!("publication {stands_for} is the first: there is none before it"),
            }
        }
    };
    let Some(old) = publication::at(root, target)? else {
        bail!("there is no publication {target}; `climber history` lists them");
    };
    if (old.base_hash == newest.base_hash) && (old.served_hash == newest.served_hash) {
        bail!("publication {target} is what is served already: `{}`", newest.served);
    }
    for (model, hash) in [(&old.base, &old.base_hash), (&old.served, &old.served_hash)] {
        match checkpoint::hash(&root.model_path(model)) {
            Ok(found) if found == *hash => {}
            Ok(_) => {
                bail!("model `{model}` of publication {target} was replaced by another one of the same name")
            }
            Err(error) => {
                bail!("publication {target} cannot be brought back: {}", with_causes(&error))
            }
        }
    }
    let publication = Publication {
        number: newest.number + 1,
        parent: Some(newest.number),
        kind: Kind::Rollback,
        run: format!("rollback-{}", newest.number + 1),
        published_at: Utc::now(),
        restores: Some(old.restores.unwrap_or(old.number)),
        ..old
    };
    publication::publish(root, &publication)?;
    Ok(publication)
}

/// True if another publisher was faster.
pub(crate) fn is_conflict(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(PublicationError::Conflict { .. }))
}

#[cfg(test)]
mod tests {
    use schemas::config::Config;
    use tempfile::TempDir;

    use super::*;

    fn root() -> (TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        (directory, root)
    }

    /// Writes a model directory with these weights, complete enough to be published.
    fn model(root: &Root, name: &str, weights: &str) {
        let directory = root.model_path(name);
        std::fs::create_dir_all(&directory).unwrap();
        let sequences = serde_json::json!({
            "sequences_version": 1, "events_version": "5", "items_version": "1", "delta_tau_ms": "0",
            "tie_policy": "file-order", "config_hash": "0"
        });
        let lineage = serde_json::json!({"sequences": sequences, "items_version": 1, "parent": null, "code_version": "0"});
        std::fs::write(directory.join("model.safetensors"), weights).unwrap();
        std::fs::write(directory.join("config.toml"), Config::default().to_toml()).unwrap();
        std::fs::write(directory.join("lineage.json"), lineage.to_string()).unwrap();
    }

    fn candidate(kind: Kind, name: &str) -> Candidate<'_> {
        let (tables, full) = (BTreeMap::new(), (NaiveDate::default(), 1));
        Candidate { kind, run: name, base: name, served: name, full, tables, measured: None }
    }

    fn daily(root: &Root, name: &str) -> Result<u64> {
        model(root, name, name);
        let follows = followed(root, name).unwrap().map(|publication| publication.number);
        over_refreshes(root, &candidate(Kind::Daily, name), follows)
    }

    fn refresh(root: &Root, name: &str) -> u64 {
        model(root, name, name);
        let newest = publication::newest(root).unwrap();
        on(root, newest.as_ref(), &candidate(Kind::Refresh, name)).unwrap()
    }

    fn served(root: &Root) -> String {
        publication::published(root).unwrap().unwrap().served
    }

    #[test]
    fn a_day_is_published_over_refreshes_and_once() {
        let (_directory, root) = root();
        assert_eq!(daily(&root, "monday").unwrap(), 1);
        assert_eq!(refresh(&root, "monday-p1-e6"), 2);
        assert_eq!(daily(&root, "tuesday").unwrap(), 3);
        // A run that died before recording its publication finds it, also below a refresh.
        assert_eq!(daily(&root, "tuesday").unwrap(), 3);
        assert_eq!(refresh(&root, "tuesday-p3-e7"), 4);
        assert_eq!(daily(&root, "tuesday").unwrap(), 3);
        assert_eq!(served(&root), "tuesday-p3-e7");
    }

    #[test]
    fn what_goes_on_from_another_model_than_is_in_force_is_not_published() {
        let (_directory, root) = root();
        daily(&root, "monday").unwrap();
        daily(&root, "tuesday").unwrap();
        model(&root, "late", "late");
        let error = over_refreshes(&root, &candidate(Kind::Daily, "late"), Some(1)).unwrap_err().to_string();
        assert!(error.contains("starts again from there"), "{error}");
        assert_eq!(served(&root), "tuesday");
    }

    #[test]
    fn what_was_taken_back_is_found_below_the_rollback() {
        let (_directory, root) = root();
        daily(&root, "monday").unwrap();
        daily(&root, "tuesday").unwrap();
        refresh(&root, "tuesday-p2-e7");
        rollback(&root, Some(1)).unwrap();
        assert_eq!(daily(&root, "tuesday").unwrap(), 2);
        assert_eq!(served(&root), "monday");
        // A retrained model of the same run is a new model.
        model(&root, "tuesday", "trained again");
        assert_eq!(over_refreshes(&root, &candidate(Kind::Daily, "tuesday"), Some(1)).unwrap(), 5);
        assert_eq!(served(&root), "tuesday");
    }

    #[test]
    fn a_rollback_brings_back_what_was_there() {
        let (_directory, root) = root();
        let says = |to: Option<u64>| rollback(&root, to).unwrap_err().to_string();
        assert!(says(None).contains("nothing was ever published"));
        daily(&root, "monday").unwrap();
        assert!(says(None).contains("is the first"));
        daily(&root, "tuesday").unwrap();
        daily(&root, "wednesday").unwrap();
        assert!(says(Some(9)).contains("there is no publication 9"));
        assert!(says(Some(3)).contains("served already"));
        assert_eq!(rollback(&root, None).unwrap().restores, Some(2));
        // The publication before the restored one.
        let again = rollback(&root, None).unwrap();
        assert_eq!((again.number, again.restores, again.daily), (5, Some(1), 1));
        model(&root, "tuesday", "somebody's");
        assert!(says(Some(2)).contains("replaced by another one"));
        std::fs::remove_dir_all(root.model_path("wednesday")).unwrap();
        assert!(says(Some(3)).contains("cannot be brought back"));
        assert_eq!(served(&root), "monday");
    }
}
