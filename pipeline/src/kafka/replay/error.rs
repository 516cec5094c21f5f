//! What can stop a replay.

use datafusion::error::DataFusionError;
use schemas::config::ConfigError;
use store::TableError;
use store::commit::CommitError;

use crate::kafka::producer::SendError;

/// A replay that failed. What was acknowledged before is recorded, unless the record is what failed.
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
    /// What was sent is not recorded.
    #[error("{sent} records were sent, but that is not recorded: repeating the command sends them again")]
    Record {
        /// How many, since the last time that it was recorded.
        sent: usize,
        /// Why.
        source: CommitError,
    },
}
