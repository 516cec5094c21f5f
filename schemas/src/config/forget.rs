//! `[forget]`: the right to erasure.

use serde::{Deserialize, Serialize};

/// `[forget]`: the key that identifies forgotten users.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Forget {
    /// File of the secret key with which forgotten users are hashed. By default it is in
    /// `$XDG_STATE_HOME/climber-pilot/erasure-keys` (`~/.local/state` if unset), apart from the root, so that a copy of the
    /// tables does not allow anyone to test guesses. Every machine that reads the log needs the key: name a file if several do,
    /// or if home directories do not last (containers).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<String>,
}
