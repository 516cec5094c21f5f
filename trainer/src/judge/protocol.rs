//! Protocols of evaluation.

use serde::{Deserialize, Serialize};

/// The part of a user's history that a prediction may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// All earlier events.
    Standard,
    /// As in production: events of the last `Δτ` are hidden.
    AsServed,
}

impl Protocol {
    /// Both protocols, in the order of the tables.
    pub const ALL: [Self; 2] = [Self::Standard, Self::AsServed];

    /// Returns the name used in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::AsServed => "as-served",
        }
    }
}
