//! `[forget]`: a person's right to erasure.

use serde::{Deserialize, Serialize};

/// `[forget]`: how it is known who was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Forget {
    /// The file of the secret key under which users who were forgotten are hashed; `forgotten.key` in the root without one.
    /// Elsewhere, whoever gets hold of the tables cannot even try out who it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}
