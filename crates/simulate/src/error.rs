//! Errors of `pipeline simulate`.

use std::path::{Path, PathBuf};

use schemas::config::ConfigError;

/// A run that stopped. Complete files stay; the configuration, which is written last, is missing.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// A setting that breaks a rule. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Setting(#[from] ConfigError),
    /// The directory is not empty.
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
        /// Number of files of a complete run.
        of: u64,
    },
}

impl SimulateError {
    pub(crate) fn write(path: &Path, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Write { path: path.into(), source: source.into() }
    }
}
