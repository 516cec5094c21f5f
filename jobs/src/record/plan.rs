//! What a run trains, as recorded.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

/// Plan of a run, decided when it begins and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DayPlan {
    pub(crate) training: Training,
    /// Why this training.
    pub(crate) reason: String,
    /// Daily publication that the run follows: its served model predicts the new events, and a refresh continues its base.
    pub(crate) follows: Option<u64>,
    /// Day of the last full training, this one included, and the rows of `events` it was trained on.
    pub(crate) full: (NaiveDate, u64),
}

/// How the base is trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Training {
    /// From scratch, on all of `sequences`.
    Full,
    /// From a published base, on new events.
    Refresh {
        /// The published base.
        #[serde(deserialize_with = "schemas::names::plain")]
        from: String,
        /// Version of `events` that it has learned.
        since: u64,
    },
}

impl Training {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Full => "full training",
            Self::Refresh { .. } => "refresh",
        }
    }
}
