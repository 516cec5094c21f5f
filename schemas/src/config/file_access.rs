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

impl FileAccess {
    /// Takes the rights of the others away from all files that this process makes from now on, whichever library makes them. To be
    /// called before anything is written.
    pub fn apply(self) {
        #[cfg(unix)]
        {
            use rustix::fs::Mode;
            let denied = match self {
                Self::Umask => return,
                Self::Group => Mode::WGRP | Mode::RWXO,
                Self::Owner => Mode::RWXG | Mode::RWXO,
            };
            let before = rustix::process::umask(denied);
            rustix::process::umask(before | denied);
        }
    }
}
