//! `file_access`: who may read what the programs write.

use serde::{Deserialize, Serialize};

/// Who may read the files and directories that a command makes: tables, models, lists, pages, locks, and temporary files beside
/// them. It only takes rights away from what the process's umask leaves, and files that are there already stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileAccess {
    /// As the process's umask says.
    #[default]
    Umask,
    /// The owner writes, the owner's group reads: 0640 and 0750.
    Group,
    /// The owner alone: 0600 and 0700.
    Owner,
}
