//! One retrieved list.

use serde::Serialize;

use super::top_k::Scored;
use crate::data::ConditionRow;

/// How a list came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// By the model.
    Model,
    /// By training counts: nothing was visible of the user.
    Popular,
}

impl Origin {
    /// The name in results.
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
    /// Its condition.
    pub condition: Option<ConditionRow>,
    /// The weight of its instruction.
    pub weight: f32,
    /// The factor that the model has learned for the condition's scores; 1 without one.
    pub sharpness: f32,
    /// How it came about.
    pub origin: Origin,
    /// At most `k` items.
    pub items: Vec<Scored>,
}
