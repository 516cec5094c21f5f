//! The arguments that every command takes, and the configuration they name.

use std::path::{Path, PathBuf};

use schemas::config::{Config, ConfigError, FileAccess};
use schemas::secret::shown_setting;

use crate::scratch;

/// Arguments that every command takes.
#[derive(Clone, clap::Args)]
pub struct CommonArgs {
    /// Configuration file (TOML); config/ has examples.
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Directory of the tables and models, instead of the configuration's `root`.
    #[arg(long, value_name = "DIR", global = true)]
    pub root: Option<String>,
    /// Override one key of the configuration, such as --set pretrain.epochs=5; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// Write one JSON object to stdout.
    #[arg(long, global = true)]
    pub json: bool,
}

impl std::fmt::Debug for CommonArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set: Vec<String> = self.set.iter().map(|setting| shown_setting(setting)).collect();
        let Self { config, root, set: _, json } = self;
        f.debug_struct("CommonArgs")
            .field("config", config)
            .field("root", root)
            .field("set", &set)
            .field("json", json)
            .finish()
    }
}

impl CommonArgs {
    /// Resolves the configuration: the file or the defaults, then `--set`, then `--root`. Applies `file_access` and `scratch` to
    /// this process.
    ///
    /// # Errors
    ///
    /// [`ConfigError`]: the file cannot be read, a key or value is wrong, or `scratch` is no directory.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::load(path, &self.set)?,
            None => Config::from_overrides(&self.set)?,
        };
        if let Some(root) = &self.root {
            config.root.clone_from(root);
        }
        config.validate()?;
        apply(config.file_access);
        if let Some(directory) = &config.scratch {
            scratch::use_directory(Path::new(directory))?;
        }
        Ok(config)
    }
}

/// Removes permissions from all files that this process creates from now on, through its umask. Call it before anything is
/// written.
fn apply(access: FileAccess) {
    #[cfg(unix)]
    {
        use rustix::fs::Mode;
        let denied = match access {
            FileAccess::Umask => return,
            FileAccess::Group => Mode::WGRP | Mode::RWXO,
            FileAccess::Owner => Mode::RWXG | Mode::RWXO,
        };
        let before = rustix::process::umask(denied);
        rustix::process::umask(before | denied);
    }
}
