//! The values of an attribute, in the order of their rows.

use serde::{Deserialize, Serialize};

/// The values of one attribute, in the order of their rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeVocabulary {
    /// The attribute.
    pub name: String,
    /// Its values.
    pub values: Vec<String>,
}
