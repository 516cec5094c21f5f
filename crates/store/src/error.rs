//! Why a table cannot be opened or read.

use std::path::PathBuf;

use deltalake::DeltaTableError;

/// A table that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The root is not a place for tables.
    #[error("{root} cannot be a root: {problem}")]
    Root {
        /// As given.
        root: String,
        /// Why not.
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
        /// Why.
        source: Box<DeltaTableError>,
    },
    /// A shard cannot be read.
    #[error("shard {shard} of table `{table}` cannot be read; it is missing or damaged")]
    Shard {
        /// The table.
        table: String,
        /// The shard's path inside the table.
        shard: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A version that does not exist yet.
    #[error("table `{table}` has no version {since} yet; its newest is {newest}")]
    Future {
        /// The table.
        table: String,
        /// As asked for.
        since: u64,
        /// The newest version.
        newest: u64,
    },
    /// The log's entry is gone, so what it added is not known any more.
    #[error(
        "what table `{table}` got after version {since} is not known any more: the log entry of version \
         {version} was cleaned up; build `sequences` in full instead"
    )]
    Expired {
        /// The table.
        table: String,
        /// As asked for.
        since: u64,
        /// The first missing version.
        version: u64,
    },
    /// The version's log is gone.
    #[error("version {version} of table `{table}` cannot be read any more: the log was cleaned up behind it")]
    Cleaned {
        /// The table.
        table: String,
        /// As asked for.
        version: u64,
    },
    /// The log cannot be cleaned up.
    #[error("cannot clean up the log: {path}")]
    CleanUp {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A feature of Delta that another engine gave the table.
    #[error(
        "table `{table}` uses Delta's feature {feature}, and this program cannot {doing} such a table; {remedy}"
    )]
    Feature {
        /// The table.
        table: String,
        /// Its name in the log.
        feature: String,
        /// `read` or `write`.
        doing: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A shard of another directory, as shallow clones have them.
    #[error(
        "shard {shard} of table `{table}` lies outside of the table's directory; copy the table as a whole instead"
    )]
    Outside {
        /// The table.
        table: String,
        /// As the log has it.
        shard: String,
    },
    /// Another engine changed the table so that rows do not fit into it.
    #[error(
        "another program has made `{table}` a table {problem}; this program cannot write to it: write it again as it was"
    )]
    Shape {
        /// The table.
        table: String,
        /// The difference.
        problem: String,
    },
    /// A column whose values are not what the contract says.
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
        /// The type of the contract.
        expected: Box<str>,
        /// Why.
        source: Box<arrow::error::ArrowError>,
    },
    /// A null where every row has a value.
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
        /// The row of the shard.
        row: u64,
    },
    /// A directory in which tables are looked for.
    #[error("cannot look for tables in {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A column that every version of the table should have.
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
