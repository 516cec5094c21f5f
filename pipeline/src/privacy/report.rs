//! The report of an erasure. It names no users except look-alikes of the given ones.

use std::fmt::{self, Display};
use std::path::PathBuf;

use serde::Serialize;

use super::look_alikes::shown;

/// One run of `pipeline forget`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ErasureReport {
    /// Users that were asked for.
    pub users: usize,
    /// Number of them that had been forgotten before.
    pub known: usize,
    /// Every table with rows of users.
    pub tables: Vec<ErasedTable>,
    /// Files beside the models.
    pub files: Vec<ErasedFile>,
    /// Links beside the models to targets outside, which were not followed; paths inside the root.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<PathBuf>,
    /// Other users in the tables who look like a given one: with blanks around, or with other characters for the same
    /// letters. They were not forgotten.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub look_alikes: Vec<String>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErasedTable {
    /// Its name.
    pub table: String,
    /// Rows that were removed.
    pub rows: u64,
    /// Shards that were rewritten.
    pub shards: usize,
    /// The version without them.
    pub version: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErasedFile {
    /// Inside the root.
    pub path: PathBuf,
    /// Rows that were taken out.
    pub rows: u64,
}

impl Display for ErasureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, known, tables, files, links, look_alikes } = self;
        writeln!(f, "users: {users}, {known} of them forgotten before")?;
        for ErasedTable { table, rows, shards, version } in tables {
            writeln!(f, "  {table:<24} {rows:>10} rows taken out of {shards} shards; version {version}")?;
        }
        for ErasedFile { path, rows } in files {
            writeln!(f, "  {:<24} {rows:>10} rows taken out", path.display())?;
        }
        let found = tables.iter().any(|table| table.rows > 0) || !files.is_empty();
        if !found && known < users {
            writeln!(f, "No row of theirs was found: the id must be written just as the log has it.")?;
        }
        for link in links {
            writeln!(f, "  {} leads elsewhere: nothing was looked at behind it", link.display())?;
        }
        if !look_alikes.is_empty() {
            let shown: Vec<String> = look_alikes.iter().map(|user| shown(user)).collect();
            let shown = shown.join(", ");
            writeln!(
                f,
                "Not forgotten, and looks the same: {shown}. If that is the same person, forget each of these ids too."
            )?;
        }
        write!(
            f,
            "Still there: older versions of the tables, until a `pipeline vacuum` that comes more than its --keep later; what models have learned, \
             until the next full training; sources outside of the root, and files that `trainer retrieve --out` wrote."
        )
    }
}
