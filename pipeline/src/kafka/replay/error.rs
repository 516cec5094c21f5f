//! Errors of a replay.

use datafusion::error::DataFusionError;
use schemas::config::ConfigError;
use store::TableError;
use store::commit::CommitError;

use crate::kafka::producer::SendError;

/// A replay that failed. Records acknowledged before are recorded in `replays`, unless recording is what failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A setting that breaks a rule. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Setting(#[from] ConfigError),
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// `dead_letters` cannot be read.
    #[error("cannot read table `dead_letters`")]
    Read(#[from] DataFusionError),
    /// The topic cannot be reached.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Records were sent, but recording them in `replays` failed.
    #[error("{sent} records were sent, but that is not recorded: repeating the command sends them again")]
    Record {
        /// Number of records sent since the last successful commit.
        sent: usize,
        /// Why.
        source: CommitError,
    },
}
