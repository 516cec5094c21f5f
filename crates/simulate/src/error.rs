//! What can stop a run of `pipeline simulate`.

use std::path::{Path, PathBuf};

use schemas::config::ConfigError;

/// A run that stopped. Files that were complete stay; the configuration, which is written last, is not there.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// A setting that breaks a rule. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Setting(#[from] ConfigError),
    /// The directory has something in it.
    #[error("{path} is not empty; choose another --out, or replace an earlier simulation with --force")]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A file or directory that cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Ctrl-C.
    #[error("stopped on request; {files} of {of} files of events are complete; run again with --force")]
    Interrupted {
        /// Complete files of events.
        files: u64,
        /// How many there would be.
        of: u64,
    },
}

impl SimulateError {
    pub(crate) fn write(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Write { path: path.into(), source: source.into() }
    }
}
