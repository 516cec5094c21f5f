//! Cleanup of a table's log: deletes the entries that no needed version is read from.
//!
//! ```text
//!   0 … 199  │ 200.checkpoint   200 … 257   258   259 … 300      _delta_log
//!   deleted  │ └─ newest checkpoint ≤ 258   └─ oldest needed version
//! ```
//!
//! A version is read from the newest checkpoint at or before it and the entries after that checkpoint. Everything before the
//! newest checkpoint at or before the oldest needed version can therefore be deleted. That version and all later ones stay
//! readable, as does what was appended since it ([`Snapshot::appended_since`](crate::Snapshot::appended_since)); earlier versions
//! are lost. With one checkpoint per hundred commits, at most a hundred unneeded entries remain.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Root, TableError};

/// Result of a cleanup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Cleaned {
    /// Deleted files of the log.
    pub files: usize,
    /// First version whose entry remains.
    pub first: u64,
}

/// Deletes the log of `table` before the newest checkpoint at or before version `oldest`.
///
/// It may be interrupted at any point: the oldest files go first, and no needed version is read from any of them.
///
/// # Errors
///
/// [`TableError::CleanUp`]: the log cannot be listed, or a file not deleted.
pub fn clean_log(root: &Root, table: &str, oldest: u64) -> Result<Cleaned, TableError> {
    let directory = root.table_path(table).join("_delta_log");
    let mut files = list(&directory)?;
    let Some(first) = newest_checkpoint(&files, oldest) else {
        let first = files.first_key_value().map_or(0, |(&version, _)| version);
        return Ok(Cleaned { files: 0, first });
    };
    let kept = files.split_off(&first);
    drop(kept);
    let mut cleaned = Cleaned { files: 0, first };
    for path in files.into_values().flatten() {
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(TableError::CleanUp { path, source });
            }
            _ => cleaned.files += 1,
        }
    }
    Ok(cleaned)
}

/// Returns the files of the log by version.
fn list(directory: &Path) -> Result<BTreeMap<u64, Vec<PathBuf>>, TableError> {
    let fail = |source| TableError::CleanUp { path: directory.into(), source };
    let mut files: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if let Some(version) = path.file_name().and_then(|name| version_of(name.to_str()?)) {
            files.entry(version).or_default().push(path);
        }
    }
    Ok(files)
}

/// Returns the version that a file of the log belongs to, and for a compacted range its first; `None` for other files.
fn version_of(name: &str) -> Option<u64> {
    const DIGITS: usize = 20;
    let (version, rest) = name.split_at_checked(DIGITS)?;
    let known = [".json", ".crc"].contains(&rest)
        || rest.starts_with(".checkpoint.")
        || rest.ends_with(".compacted.json");
    known.then(|| version.parse().ok()).flatten()
}

/// Returns the newest version up to `oldest` with a complete checkpoint.
fn newest_checkpoint(files: &BTreeMap<u64, Vec<PathBuf>>, oldest: u64) -> Option<u64> {
    let is_whole = |paths: &Vec<PathBuf>| {
        let names = paths.iter().filter_map(|path| path.file_name()?.to_str()?.split_once(".checkpoint."));
        let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
        for (_, rest) in names {
            match rest.split('.').collect::<Vec<_>>().as_slice() {
                ["parquet"] => return true,
                // `<part>.<parts>.parquet`
                [_, of, "parquet"] => *parts.entry(of).or_default() += 1,
                // A checkpoint with a UUID (V2) may need sidecar files: it does not count as complete.
                _ => {}
            }
        }
        parts.into_iter().any(|(of, found)| of.parse() == Ok(found))
    };
    files.range(..=oldest).rev().find(|(_, paths)| is_whole(paths)).map(|(&version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(names: &[&str]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().to_str().unwrap()).unwrap();
        let log = root.table_path("t").join("_delta_log");
        std::fs::create_dir_all(&log).unwrap();
        for name in names {
            std::fs::write(log.join(name), "").unwrap();
        }
        (dir, root)
    }

    fn left(root: &Root) -> Vec<String> {
        let log = std::fs::read_dir(root.table_path("t").join("_delta_log")).unwrap();
        let mut names: Vec<String> =
            log.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    const NAMES: [&str; 10] = [
        "00000000000000000000.json",
        "00000000000000000001.checkpoint.0000000001.0000000002.parquet",
        "00000000000000000001.checkpoint.0000000002.0000000002.parquet",
        "00000000000000000001.json",
        "00000000000000000002.checkpoint.parquet",
        "00000000000000000002.crc",
        "00000000000000000002.json",
        "00000000000000000003.checkpoint.0000000001.0000000002.parquet",
        "00000000000000000003.json",
        "_last_checkpoint",
    ];

    #[test]
    fn a_version_that_is_needed_stays_readable() {
        for (oldest, files, first) in [(0, 0, 0), (1, 1, 1), (2, 4, 2), (3, 4, 2), (99, 4, 2)] {
            let (_dir, root) = log(&NAMES);
            assert_eq!(clean_log(&root, "t", oldest).unwrap(), Cleaned { files, first }, "{oldest}");
            assert_eq!(left(&root), NAMES[files..], "{oldest}");
            assert_eq!(clean_log(&root, "t", oldest).unwrap(), Cleaned { files: 0, first }, "{oldest}");
        }
    }

    #[test]
    fn what_is_no_part_of_the_log_stays() {
        let names = ["00000000000000000000.json", "00000000000000000001.checkpoint.parquet", "notes.json"];
        let (_dir, root) = log(&names);
        assert_eq!(clean_log(&root, "t", 5).unwrap().files, 1);
        assert_eq!(left(&root), names[1..]);
        std::fs::remove_dir_all(root.table_path("t")).unwrap();
        let error = clean_log(&root, "t", 5).unwrap_err().to_string();
        assert!(error.contains("_delta_log"), "{error}");
    }
}
