//! `file_access`: permissions of the files that the programs write.

use serde::{Deserialize, Serialize};

/// Permissions of new files and directories: tables, models, lists, pages, locks, and temporary files beside them. It only
/// removes permissions from those that the process's umask leaves; existing files keep theirs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileAccess {
    /// As the process's umask determines.
    #[default]
    Umask,
    /// The owner writes, the group reads: 0640 and 0750.
    Group,
    /// The owner only: 0600 and 0700.
    Owner,
}
