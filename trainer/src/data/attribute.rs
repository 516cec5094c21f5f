//! The values of an attribute, as checkpoints store them.

use serde::{Deserialize, Serialize};

/// Values of one attribute; a value's index is its row in the embedding table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeVocabulary {
    /// Name of the attribute.
    pub name: String,
    /// Distinct values, in the order of their rows.
    pub values: Vec<String>,
}
