//! Retrieval (§3.4): the top `k` items for each user, with and without conditions.
//!
//! ```text
//! table sequences ─┐                 retriever.rs: a serve::Recommender reads the history
//! JSON Lines ──────┴─► ListRequest ─────► once, under all conditions; seen, inactive and     ─► lists
//! conditions, ─────►  requests.rs     denied items are excluded (run.rs)                    │
//! table instructions                                                                        │ serve::merge
//! no visible event ────────────────────► popular items, by condition ───────────────────────┴─► rows
//! ```
//!
//! Requests are answered in batches, so memory does not grow with the number of requests read from standard input. The tables are
//! held whole.

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

/// The users to retrieve for.
#[derive(Debug, Clone, Copy)]
pub enum Users<'a> {
    /// All users of table `sequences`.
    All,
    /// Users listed in a file, one id per line.
    File(&'a Path),
    /// Users sent on standard input with their histories, as JSON Lines.
    Stdin,
}

/// The source of each user's conditions.
#[derive(Debug, Clone, Copy)]
pub enum By<'a> {
    /// The same conditions for every user; if empty, one list without a condition.
    Conditions(&'a [String]),
    /// Each user's instructions in table `instructions`.
    Instructions,
}

/// Search method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Scores every item.
    Exact,
    /// Searches a graph (HNSW) that finds `ef` items.
    Hnsw {
        /// Items found per search; raised to `k` if smaller.
        ef: usize,
    },
}

/// Options of a run.
#[derive(Debug, Clone, Copy)]
pub struct RetrieveOptions<'a> {
    /// Name of the model.
    pub model: &'a str,
    /// Users to retrieve for.
    pub users: Users<'a>,
    /// Conditions to retrieve by.
    pub by: By<'a>,
    /// Time of the requests, epoch milliseconds. `None` shows all stored events and computes ages from the time each request is
    /// read.
    pub at: Option<i64>,
    /// Maximum length of a list.
    pub k: usize,
    /// Search method.
    pub method: Method,
    /// Whether a list with a condition contains only items that carry it.
    pub only: bool,
    /// Whether lists may contain items that the user has seen.
    pub keep_seen: bool,
    /// Whether lists may contain inactive items.
    pub keep_inactive: bool,
    /// File of item ids that are never retrieved, one per line.
    pub deny: Option<&'a Path>,
    /// Rule that merges a user's lists; `None` keeps them separate.
    pub merge: Option<Merge>,
    /// Stops the run between two batches.
    pub interrupt: &'a Interrupt,
}

/// An error that ends a retrieval.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// The device cannot be opened.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A table cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The checkpoint cannot be loaded.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An option names something that does not exist.
    #[error("{0}")]
    Usage(#[source] ConfigError),
    /// A file of ids cannot be read.
    #[error("{path} cannot be read")]
    Ids {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// Standard input cannot be read.
    #[error("line {line} of standard input cannot be read")]
    Input {
        /// Line number, from 1.
        line: usize,
        /// The I/O error.
        source: std::io::Error,
    },
    /// Table `sequences` has no `delta_tau_ms`, so the visible events are unknown.
    #[error("table `sequences` has no usable property `delta_tau_ms`; `pipeline build-sequences` writes it")]
    DeltaTau,
    /// The rows cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A score is not finite: the model diverged.
    #[error(transparent)]
    NotFinite(#[from] NotFinite),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The user interrupted the run.
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
