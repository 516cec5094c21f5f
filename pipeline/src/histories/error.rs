//! Errors of a build of histories.

use std::sync::Arc;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use schemas::config::ConfigError;
use schemas::history::WindowError;
use store::TableError;
use store::commit::CommitError;

use super::counts::Counts;
use super::intervals::INTERVALS_MIN;
use crate::engine::ScratchError;

/// Sequences that could not be built. Nothing was committed to `sequences`.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The configuration's split is incomplete.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A table cannot be opened or read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Rows that do not fit into memory cannot be written to a scratch file.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// A table cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// There is nothing to build from.
    #[error("table `events` is empty at version {version}; `pipeline ingest` fills it")]
    NoEvents {
        /// The version.
        version: u64,
    },
    /// The filter leaves nothing.
    #[error("none of the {events} events has an action of sequences.actions, which is {actions:?}")]
    NoActions {
        /// Events of the table.
        events: u64,
        /// The filter.
        actions: Vec<String>,
    },
    /// The filters leave nothing.
    #[error("the filters leave none of the {events} events: {setting} took out the last {last}")]
    NothingLeft {
        /// Events of the table.
        events: u64,
        /// Events that the last filter took out.
        last: u64,
        /// The settings of this filter.
        setting: String,
    },
    /// A user's history that cannot be cut into rows.
    #[error("the history of user `{user}` cannot be cut into rows")]
    Window {
        /// The user.
        user: String,
        /// Why.
        source: WindowError,
    },
    /// `delta_tau = "auto"`, but the log has too few request intervals.
    #[error(
        "sequences.delta_tau is `auto`, but the log has only {count} intervals between requests of one session, \
         and at least {INTERVALS_MIN} are needed; give a duration such as \"15m\", or log request_ts"
    )]
    TooFewIntervals {
        /// How many were found.
        count: u64,
    },
    /// The written rows differ from the counted ones: a defect of this program or of the disk.
    #[error(
        "the shards hold {rows} rows that own {owned} events, which does not fit what was counted ({counts:?}); \
         nothing was committed"
    )]
    Sums {
        /// Rows of the shards.
        rows: u64,
        /// Events that they own.
        owned: u64,
        /// The counters of the build.
        counts: Box<Counts>,
    },
    /// More items than an index can tell apart.
    #[error("the catalogue has more than {} items", u32::MAX)]
    TooManyItems,
    /// The table was deleted while this ran.
    #[error("table `{table}` has lost version {version}, which this run has just committed")]
    Vanished {
        /// The table.
        table: String,
        /// The version.
        version: u64,
    },
    /// The catalogue does not fit the contract.
    #[error("table `items`: {problem}")]
    Items {
        /// What is wrong.
        problem: String,
    },
    /// The scan, the sort or the spilling failed.
    #[error("reading and sorting table `events`")]
    Query {
        /// Why.
        source: Box<DataFusionError>,
    },
}

impl From<DataFusionError> for BuildError {
    /// Unwraps an error of this program that DataFusion has wrapped.
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::External(inner) => match inner.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(other) => match other.downcast::<ScratchError>() {
                    Ok(scratch) => (*scratch).into(),
                    Err(other) => match other.downcast::<DataFusionError>() {
                        Ok(inner) => (*inner).into(),
                        Err(other) => Self::query(DataFusionError::External(other)),
                    },
                },
            },
            DataFusionError::ArrowError(inner, trace) => match *inner {
                ArrowError::ExternalError(inner) => DataFusionError::External(inner).into(),
                inner => Self::query(DataFusionError::ArrowError(Box::new(inner), trace)),
            },
            DataFusionError::Context(_, inner) => (*inner).into(),
            DataFusionError::Shared(inner) => match Arc::try_unwrap(inner) {
                Ok(inner) => inner.into(),
                Err(shared) => Self::query(DataFusionError::Shared(shared)),
            },
            other => Self::query(other),
        }
    }
}

impl From<BuildError> for DataFusionError {
    fn from(error: BuildError) -> Self {
        Self::External(Box::new(error))
    }
}

impl BuildError {
    fn query(source: DataFusionError) -> Self {
        Self::Query { source: Box::new(source) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_errors_come_back_out_of_datafusion() {
        let source = WindowError::HeldOutTooLong { held_out: 9, max_len: 8 };
        let error: DataFusionError = BuildError::Window { user: "u7".into(), source }.into();
        let wrapped = ArrowError::ExternalError(Box::new(error.context("while merging")));
        let error = BuildError::from(DataFusionError::from(wrapped));
        assert!(matches!(error, BuildError::Window { user, .. } if user == "u7"));
    }
}
