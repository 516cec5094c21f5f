//! Errors of opening and reading tables.

use std::path::PathBuf;

use deltalake::DeltaTableError;

/// A table that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The path cannot be a root.
    #[error("{root} cannot be a root: {problem}")]
    Root {
        /// As given.
        root: String,
        /// Reason.
        problem: String,
    },
    /// The table has never been written.
    #[error("{root} has no table `{table}`; `{command}` writes it")]
    Missing {
        /// The root.
        root: PathBuf,
        /// The table.
        table: String,
        /// The command that writes it.
        command: &'static str,
    },
    /// The table's log cannot be read or written.
    #[error("the log of table {table}")]
    Log {
        /// The table's path.
        table: String,
        /// Cause.
        source: Box<DeltaTableError>,
    },
    /// A shard cannot be read.
    #[error("shard {shard} of table `{table}` cannot be read; it is missing or damaged")]
    Shard {
        /// The table.
        table: String,
        /// The shard's path inside the table.
        shard: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The requested version does not exist yet.
    #[error("table `{table}` has no version {since} yet; its newest is {newest}")]
    Future {
        /// The table.
        table: String,
        /// The requested version.
        since: u64,
        /// The newest version.
        newest: u64,
    },
    /// A log entry after the requested version is gone, so the rows added since are unknown.
    #[error(
        "what table `{table}` got after version {since} is not known any more: the log entry of version \
         {version} was cleaned up; build `sequences` in full instead"
    )]
    Expired {
        /// The table.
        table: String,
        /// The requested version.
        since: u64,
        /// The first missing version.
        version: u64,
    },
    /// The requested version cannot be read: its log was cleaned up.
    #[error("version {version} of table `{table}` cannot be read any more: the log was cleaned up behind it")]
    Cleaned {
        /// The table.
        table: String,
        /// The requested version.
        version: u64,
    },
    /// The log cannot be cleaned up.
    #[error("cannot clean up the log: {path}")]
    CleanUp {
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The table uses a feature of Delta that this program does not support.
    #[error(
        "table `{table}` uses Delta's feature {feature}, and this program cannot {doing} such a table; {remedy}"
    )]
    Feature {
        /// The table.
        table: String,
        /// The feature's name in the log.
        feature: String,
        /// `read` or `write`.
        doing: &'static str,
        /// Advice to the user.
        remedy: &'static str,
    },
    /// A shard lies outside the table's directory, as in a shallow clone.
    #[error(
        "shard {shard} of table `{table}` lies outside of the table's directory; copy the table as a whole instead"
    )]
    Outside {
        /// The table.
        table: String,
        /// The shard's path in the log.
        shard: String,
    },
    /// Another engine changed the table's columns or partitions so that this program's rows do not fit.
    #[error(
        "another program has made `{table}` a table {problem}; this program cannot write to it: write it again as it was"
    )]
    Shape {
        /// The table.
        table: String,
        /// The difference.
        problem: String,
    },
    /// A column's values cannot be read as the type in `schemas::tables`.
    #[error(
        "column `{column}` in shard {shard} of table `{table}` is {found}, which cannot be read as {expected}"
    )]
    Type {
        /// The table.
        table: String,
        /// The shard's path inside the table.
        shard: String,
        /// The column.
        column: String,
        /// Its type in the shard.
        found: Box<str>,
        /// The type in `schemas::tables`.
        expected: Box<str>,
        /// Cause.
        source: Box<arrow::error::ArrowError>,
    },
    /// A column that allows no nulls has one.
    #[error(
        "column `{column}` in shard {shard} of table `{table}` has no value in row {row}, counted from 0"
    )]
    Null {
        /// The table.
        table: String,
        /// The shard's path inside the table.
        shard: String,
        /// The column.
        column: String,
        /// Row within the shard, from 0.
        row: u64,
    },
    /// A directory cannot be searched for tables or shards.
    #[error("cannot look for tables in {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A shard lacks a required column.
    #[error("shard {shard} of table `{table}` has no column `{column}`")]
    Column {
        /// The table.
        table: String,
        /// The shard's path inside the table.
        shard: String,
        /// The column.
        column: String,
    },
}
