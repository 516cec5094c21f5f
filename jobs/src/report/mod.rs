//! The page of a day: `jobs/daily/<name>/report.html`, one self-contained file.

#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod page;

#[cfg(feature = "fuzzing")]
pub use fuzzing::run_json;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use store::Root;
use store::files;

use crate::record::{PAGE, Record};

/// Writes the page of `record`, with figures of the earlier runs, and returns its path.
pub(crate) fn write(root: &Root, record: &Record) -> Result<PathBuf> {
    let (mut history, problems) = Record::all(root);
    history.retain(|other| other.name != record.name && other.started_at <= record.started_at);
    let path = Record::directory(root, &record.name).join(PAGE);
    let html = page::page(record, &history, &problems);
    files::replace(&path, html.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
