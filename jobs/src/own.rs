//! Which models the jobs made. Names decide nothing, since people name models too.
//!
//! A job marks its models and unfinished trainings ([`MadeBy`]). Only what bears the mark under its own name is overwritten or
//! deleted, and a published model only while its weights are those that were published.

use anyhow::{Context as _, Result};
use store::Root;
use store::publication::{self, PublicationError};
use trainer::checkpoint::{self, MadeBy};
use trainer::learn::marks;

/// The daily job.
pub(crate) const DAILY: &str = "climber daily";
/// The near-real-time job between two daily jobs.
pub(crate) const REFRESH: &str = "climber refresh";

/// Returns the job that made model `name`.
pub(crate) fn model_by(root: &Root, name: &str) -> Option<String> {
    job(checkpoint::made_by(&root.model_path(name)), name)
}

/// Returns the job that began training `name`.
pub(crate) fn training_by(root: &Root, name: &str) -> Option<String> {
    job(marks::made_by(&training(root, name)), name)
}

fn job(mark: Option<MadeBy>, name: &str) -> Option<String> {
    mark.filter(|mark| mark.model == name && [DAILY, REFRESH].contains(&mark.job.as_str()))
        .map(|mark| mark.job)
}

fn training(root: &Root, name: &str) -> std::path::PathBuf {
    root.model_path(".training").join(name)
}

/// True if a model or an unfinished training of this name bears no job's mark.
pub(crate) fn is_somebodys(root: &Root, name: &str) -> bool {
    let model = checkpoint::find(&root.model_path(name)).is_some() && model_by(root, name).is_none();
    model || (marks::is_there(&training(root, name)) && training_by(root, name).is_none())
}

/// Returns the models and unfinished trainings that a job made, with the job, sorted by name.
pub(crate) fn names(root: &Root) -> Vec<(String, String)> {
    let mut names = std::collections::BTreeMap::new();
    let entries = |directory: std::path::PathBuf| {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok())
    };
    for name in entries(root.model_path(".training")) {
        names.extend(training_by(root, &name).map(|job| (name, job)));
    }
    for name in entries(root.path().join("models")) {
        // A kill may leave a replacement's remains under `<name>.previous`.
        let name = name.strip_suffix(".previous").unwrap_or(&name).to_owned();
        names.extend(model_by(root, &name).map(|job| (name, job)));
    }
    names.into_iter().collect()
}

/// Returns the models without a job's mark, sorted by name.
pub(crate) fn unmarked(root: &Root) -> Vec<String> {
    let entries = std::fs::read_dir(root.path().join("models")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_model = |name: &String| {
        !name.starts_with('.') && !name.ends_with(".previous") && root.model_path(name).is_dir()
    };
    let mut names: Vec<String> = names.filter(is_model).filter(|name| is_somebodys(root, name)).collect();
    names.sort();
    names
}

/// Returns the publication number of a refresh: 1 more than its parent's, which stands in the name that [`crate::refresh`] gives
/// (`…-p12-e345`).
pub(crate) fn number_of_refresh(name: &str) -> Option<u64> {
    let base = name.strip_suffix("-sft").unwrap_or(name);
    let (before, _) = base.rsplit_once("-e")?;
    before.rsplit_once("-p")?.1.parse::<u64>().ok()?.checked_add(1)
}

/// True if publication `number` serves or continues model `name` and the model now has other weights, or if either cannot be
/// read.
pub(crate) fn was_replaced(root: &Root, name: &str, number: Option<u64>) -> Result<bool> {
    let publication = match number.map(|number| publication::at(root, number)).transpose() {
        Err(PublicationError::Damaged { .. }) => return Ok(true),
        publication => publication?.flatten(),
    };
    let Some(publication) = publication else { return Ok(false) };
    let models = [(publication.base, publication.base_hash), (publication.served, publication.served_hash)];
    let Some((_, published)) = models.into_iter().find(|(model, _)| model == name) else { return Ok(false) };
    let directory = root.model_path(name);
    // An unreadable model may be another one.
    Ok(checkpoint::find(&directory).is_some()
        && checkpoint::hash(&directory).map_or(true, |found| found != published))
}

/// Deletes what a job made under `name`: the model, and the remains of an unfinished training. Returns whether there was a model.
pub(crate) fn discard(root: &Root, name: &str) -> Result<bool> {
    checkpoint::check_name(name)?;
    let deletes = model_by(root, name).is_some();
    let delete = || -> Result<()> {
        if deletes {
            checkpoint::discard(&root.model_path(name))?;
        }
        if training_by(root, name).is_some() {
            std::fs::remove_dir_all(training(root, name))?;
        }
        Ok(())
    };
    delete().with_context(|| format!("model `{name}` cannot be deleted"))?;
    Ok(deletes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_publication_of_a_refresh_stands_in_its_name() {
        for (name, number) in [("2026-11-22-p3-e57", 4), ("m-p1-e0-sft", 2), ("a-p2-e3-p4-e5", 5)] {
            assert_eq!(number_of_refresh(name), Some(number), "{name}");
        }
        for name in ["2026-11-22", "2026-11-22-exp1", "m-p-e2"] {
            assert_eq!(number_of_refresh(name), None, "{name}");
        }
    }

    #[test]
    fn only_what_bears_the_mark_under_its_own_name_is_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        let make = |place: &str, made_by: Option<&str>| {
            let path = directory.path().join("models").join(place);
            std::fs::create_dir_all(&path).unwrap();
            let mark = made_by.map(|model| serde_json::json!({"job": REFRESH, "model": model}));
            std::fs::write(path.join("lineage.json"), serde_json::json!({"made_by": mark}).to_string())
                .unwrap();
        };
        make("ours-p1-e2", Some("ours-p1-e2"));
        make("copy-p1-e2", Some("ours-p1-e2"));
        make("theirs-p1-e2", None);
        make(".training/ours-p1-e2/latest", Some("ours-p1-e2"));
        make(".training/theirs-p1-e2/latest", None);
        assert_eq!(names(&root), [("ours-p1-e2".to_owned(), REFRESH.to_owned())]);
        for name in ["copy-p1-e2", "theirs-p1-e2", "missing"] {
            assert!(!discard(&root, name).unwrap(), "{name}");
        }
        assert!(is_somebodys(&root, "theirs-p1-e2") && is_somebodys(&root, "copy-p1-e2"));
        assert!(!is_somebodys(&root, "ours-p1-e2") && !is_somebodys(&root, "missing"));
        assert!(discard(&root, "ours-p1-e2").unwrap());
        for (place, stays) in [
            ("ours-p1-e2", false),
            (".training/ours-p1-e2", false),
            ("copy-p1-e2", true),
            ("theirs-p1-e2", true),
            (".training/theirs-p1-e2", true),
        ] {
            assert_eq!(directory.path().join("models").join(place).exists(), stays, "{place}");
        }
        assert!(discard(&root, "../..").is_err());
        assert!(directory.path().exists());
    }
}
