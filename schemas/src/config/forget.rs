//! `[forget]`: a person's right to erasure.

use serde::{Deserialize, Serialize};

/// `[forget]`: how it is known who was forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Forget {
    /// The file of the secret key under which users who were forgotten are hashed. Without one it is in
    /// `$XDG_STATE_HOME/climber-pilot/erasure-keys` (`~/.local/state` where that is not set): apart from the root, so that whoever
    /// gets hold of the tables cannot even try out who it was. Each machine that reads the log needs the key: where several do, or
    /// where home directories do not last (containers), name a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}
