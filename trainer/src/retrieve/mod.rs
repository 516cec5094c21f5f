//! Retrieval (§3.4): the top `k` items for users, with and without conditions.
//!
//! ```text
//! table sequences ─┐                 retriever.rs: a serve::Recommender reads the history
//! JSON Lines ──────┴─► ListRequest ─────► once, under all conditions; seen items left out,   ─► lists
//! conditions, ─────►  requests.rs     and what is inactive or denied (run.rs)               │
//! table instructions                                                                        │ serve::merge
//! nothing visible ───────────────────► popular items, by condition ──────────────────────────┴─► rows
//! ```
//!
//! Requests are answered a batch at a time, so that memory does not grow with the number of users.

mod case;
mod histories;
mod instructions;
mod output;
mod report;
mod requests;
mod retriever;
mod run;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use schemas::config::ConfigError;
use terminal::Interrupt;

pub use case::UserCase;
pub use histories::{Stored, VisibleHistory, delta_tau, visible_at};
pub use output::{Answer, OutputError, ROWS_SCHEMA, Row, RowsOutput, is_writable};
pub use report::{CountedExamples, GraphReport, Mean, RetrieveReport};
pub use requests::{BATCH, Refusal, parse_time};
pub use retriever::{Ask, ListLimits, ListRequest, Retriever};
pub use run::{case, run};

use crate::checkpoint::CheckpointError;
use crate::data::DataError;
use crate::device::DeviceError;
use crate::serve::{Merge, NotFinite, RecommendError};

/// Whose lists are asked for.
#[derive(Debug, Clone, Copy)]
pub enum Users<'a> {
    /// All of table `sequences`.
    All,
    /// Those in a file, one id a line.
    File(&'a Path),
    /// Those that standard input brings, with their histories.
    Stdin,
}

/// By which conditions.
#[derive(Debug, Clone, Copy)]
pub enum By<'a> {
    /// These for every user; one list without where there is none.
    Conditions(&'a [String]),
    /// Each user's stored instructions.
    Instructions,
}

/// How items are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// All are scored.
    Exact,
    /// By a graph that finds `ef` items.
    Hnsw {
        /// At least `k`.
        ef: usize,
    },
}

/// What a run is to do.
#[derive(Debug, Clone, Copy)]
pub struct RetrieveOptions<'a> {
    /// Name of the model.
    pub model: &'a str,
    /// Whose lists.
    pub users: Users<'a>,
    /// By which conditions.
    pub by: By<'a>,
    /// The time of the requests, epoch milliseconds. Without one all that is stored is visible, and ages count from when each
    /// request is read.
    pub at: Option<i64>,
    /// Length of a list.
    pub k: usize,
    /// How items are found.
    pub method: Method,
    /// Whether a list with a condition is limited to the items that carry it.
    pub only: bool,
    /// Whether items stay that the user has seen.
    pub keep_seen: bool,
    /// Whether items stay that are not active.
    pub keep_inactive: bool,
    /// Ids of items that are never retrieved, one a line.
    pub deny: Option<&'a Path>,
    /// How the lists of a user become one; `None` keeps them apart.
    pub merge: Option<Merge>,
    /// Ends the run between two batches.
    pub interrupt: &'a Interrupt,
}

/// A retrieval that failed.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The model cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Something was asked for that there is not.
    #[error("{0}")]
    Usage(#[source] ConfigError),
    /// A file of ids cannot be read.
    #[error("{path} cannot be read")]
    Ids {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Standard input cannot be read.
    #[error("line {line} of standard input cannot be read")]
    Input {
        /// Its number, from 1.
        line: usize,
        /// Why.
        source: std::io::Error,
    },
    /// `sequences` does not say what a request may see.
    #[error("table `sequences` has no usable property `delta_tau_ms`; `pipeline build-sequences` writes it")]
    DeltaTau,
    /// The rows cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The model diverged.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The user stopped it.
    #[error("interrupted; a file asked for with --out was not written")]
    Interrupted,
}

impl From<RecommendError> for RetrieveError {
    fn from(error: RecommendError) -> Self {
        match error {
            RecommendError::NotFinite(error) => Self::NotFinite(error),
            RecommendError::Tensor(error) => Self::Tensor(error),
            error @ RecommendError::NoVectors { .. } => {
                Self::Usage(ConfigError::Invalid { key: "--search".into(), problem: error.to_string() })
            }
        }
    }
}
