//! What a run was to train.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

/// Decided at the beginning of a run, and kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DayPlan {
    pub(crate) training: Training,
    /// Why.
    pub(crate) reason: String,
    /// The publication of a daily job that the run follows: its served model predicts what is new, and a refresh continues its
    /// base.
    pub(crate) follows: Option<u64>,
    /// The day of the last full training, this one included, and the rows of `events` that it was made of.
    pub(crate) full: (NaiveDate, u64),
}

/// How the base comes about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Training {
    /// From nothing, on all of `sequences`.
    Full,
    /// From a published base, on what is new.
    Refresh {
        /// The base.
        #[serde(deserialize_with = "schemas::names::plain")]
        from: String,
        /// The version of `events` that it has learned up to.
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
