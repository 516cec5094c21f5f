//! Searches directories for tables and shards.
//!
//! A directory that cannot be read is an error, never skipped: a table in it would go unnoticed.

use std::path::{Path, PathBuf};

use crate::error::TableError;

/// Returns name and path of each directory inside `path`; empty if `path` does not exist.
pub(crate) fn directories(path: &Path) -> Result<Vec<(String, PathBuf)>, TableError> {
    let fail = |source| TableError::Directory { path: path.into(), source };
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(fail)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        if is_directory(&entry.path())? {
            found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    Ok(found)
}

/// Returns true if the table's directory or one of its partitions holds a shard (`*.parquet`).
pub(crate) fn has_shards(path: &Path) -> Result<bool, TableError> {
    let mut within = vec![path.to_owned()];
    while let Some(directory) = within.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries.map_err(|source| TableError::Directory { path: directory.clone(), source })?,
        };
        for entry in entries {
            let entry =
                entry.map_err(|source| TableError::Directory { path: directory.clone(), source })?.path();
            if entry.extension().is_some_and(|extension| extension == "parquet") {
                return Ok(true);
            }
            if !entry.ends_with("_delta_log") && is_directory(&entry)? {
                within.push(entry);
            }
        }
    }
    Ok(false)
}

/// Returns true if `path` has a log directory, which may be empty.
pub(crate) fn is_table(path: &Path) -> Result<bool, TableError> {
    is_directory(&path.join("_delta_log"))
}

/// Returns true if `path` is a directory; an error if that cannot be determined.
fn is_directory(path: &Path) -> Result<bool, TableError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        // A dangling link, or a file that another program has just deleted.
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            Ok(false)
        }
        Err(source) => Err(TableError::Directory { path: path.into(), source }),
    }
}
