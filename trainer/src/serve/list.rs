//! One retrieved list and its origin.

use serde::Serialize;

use super::top_k::Scored;
use crate::data::ConditionRow;

/// How a list was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Scored by the model.
    Model,
    /// Ranked by training counts, because no event of the user was visible.
    Popular,
}

impl Origin {
    /// Returns the name used in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Popular => "popular",
        }
    }
}

/// One retrieved list, best first.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// Condition of the list.
    pub condition: Option<ConditionRow>,
    /// Weight of its instruction.
    pub weight: f32,
    /// Learned factor of the condition's scores; 1 without one.
    pub sharpness: f32,
    /// How the list was made.
    pub origin: Origin,
    /// Items and scores, at most `k`.
    pub items: Vec<Scored>,
}
