//! Errors of `pipeline instructions`.

use datafusion::error::DataFusionError;
use schemas::config::ConfigError;
use store::TableError;

use store::commit::CommitError;

/// Instructions that could not be computed. Nothing was committed.
#[derive(Debug, thiserror::Error)]
pub enum InstructionsError {
    /// The configuration asks for no attribute or derived condition.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A table cannot be opened or read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The table cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The log has no event.
    #[error("table `events` is empty at version {version}; `pipeline ingest` fills it")]
    NoEvents {
        /// The version.
        version: u64,
    },
    /// The stored catalogue lacks an attribute that the configuration asks for.
    #[error(
        "table `items` has no column for the attribute `{attribute}` (it has {}); \
         `pipeline ingest --items PATH` with the present configuration stores it",
        if known.is_empty() { "none".into() } else { known.join(", ") }
    )]
    Attribute {
        /// The attribute.
        attribute: String,
        /// The stored attributes.
        known: Vec<String>,
    },
    /// The table was deleted while this ran.
    #[error("table `instructions` has lost version {version}, which this run has just committed")]
    Vanished {
        /// The version.
        version: u64,
    },
    /// A scan, an aggregation or the spilling failed.
    #[error("counting what users met in table `events`; if memory was exhausted, give more with --memory")]
    Query(#[from] Box<DataFusionError>),
}

impl From<DataFusionError> for InstructionsError {
    fn from(error: DataFusionError) -> Self {
        Self::Query(Box::new(error))
    }
}
