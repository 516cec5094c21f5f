//! What an erasure came to. It names nobody.

use std::fmt::{self, Display};
use std::path::PathBuf;

use serde::Serialize;

/// One run of `pipeline forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Users that were asked for.
    pub users: usize,
    /// How many of them had been forgotten before.
    pub known: usize,
    /// Every table with rows of users.
    pub tables: Vec<TableReport>,
    /// Files beside the models.
    pub files: Vec<FileReport>,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// Its name.
    pub table: String,
    /// Rows that were taken out.
    pub rows: u64,
    /// Shards that were written again.
    pub shards: usize,
    /// The version without them.
    pub version: u64,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// Inside the root.
    pub path: PathBuf,
    /// Rows that were taken out.
    pub rows: u64,
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, known, tables, files } = self;
        writeln!(f, "users: {users}, {known} of them forgotten before")?;
        for TableReport { table, rows, shards, version } in tables {
            writeln!(f, "  {table:<24} {rows:>10} rows taken out of {shards} shards; version {version}")?;
        }
        for FileReport { path, rows } in files {
            writeln!(f, "  {:<24} {rows:>10} rows taken out", path.display())?;
        }
        let found = tables.iter().any(|table| table.rows > 0) || !files.is_empty();
        if !found && known < users {
            writeln!(f, "No row of theirs was found: the id must be written just as the log has it.")?;
        }
        write!(
            f,
            "Still there: older versions of the tables, until a `pipeline vacuum` that comes more than its --keep later; what models have learned, \
             until the next full training; sources outside of the root, and files that `trainer retrieve --out` wrote."
        )
    }
}
