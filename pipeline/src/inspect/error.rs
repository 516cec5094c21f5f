//! Errors of inspecting and verifying tables.

use datafusion::error::DataFusionError;
use schemas::config::ConfigError;
use schemas::tables::SEQUENCES;
use store::{Root, TableError};

use crate::privacy::ForgetError;

/// Tables that cannot be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// A table cannot be opened or read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The list of forgotten users cannot be read.
    #[error(transparent)]
    Forgotten(#[from] ForgetError),
    /// The configuration's split is incomplete.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The root holds no table at all.
    #[error("{root} holds no tables; `pipeline ingest` writes the first ones")]
    NoTables {
        /// The root.
        root: String,
    },
    /// The root holds no table of that name.
    #[error("no table `{table}` in {root}; its tables are {}", known.join(", "))]
    UnknownTable {
        /// As asked for.
        table: String,
        /// The root.
        root: String,
        /// The existing tables.
        known: Vec<String>,
    },
    /// The user has no history in the table.
    #[error("user `{user}` is not in table `{table}` at version {version}")]
    UnknownUser {
        /// As asked for.
        user: String,
        /// The table.
        table: String,
        /// Its version.
        version: u64,
    },
    /// The user has no event at that position.
    #[error("user `{user}` has no position {target}; the history has the positions 0 to {}", events - 1)]
    UnknownTarget {
        /// The user.
        user: String,
        /// As asked for.
        target: u64,
        /// Events of the history.
        events: u64,
    },
    /// A user's history was asked for from a table whose rows are not histories.
    #[error("table `{table}` holds no histories; --user draws those of `{SEQUENCES}`")]
    NoHistories {
        /// The table.
        table: String,
    },
    /// A shard cannot be read.
    #[error("reading table `{table}`")]
    Query {
        /// The table.
        table: String,
        /// Why.
        source: Box<DataFusionError>,
    },
}

pub(super) fn query(table: &str) -> impl Fn(DataFusionError) -> InspectError {
    move |source| InspectError::Query { table: table.into(), source: Box::new(source) }
}

/// The name of an existing table; fails for an unknown one.
pub(crate) fn known_table(root: &Root, name: &str) -> Result<String, InspectError> {
    let known = root.tables()?;
    let place = root.path().display().to_string();
    if known.is_empty() {
        return Err(InspectError::NoTables { root: place });
    }
    if known.iter().any(|table| table == name) {
        Ok(name.to_owned())
    } else {
        Err(InspectError::UnknownTable { table: name.into(), root: place, known })
    }
}
