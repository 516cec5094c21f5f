//! The directory for temporary files: spilled data, and compressed Parquet inputs while they are unpacked.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use schemas::config::ConfigError;

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// Hint that errors about temporary files append to the directory's name.
pub const HINT: &str = "`scratch` in the configuration, or TMPDIR, names another directory";

/// Returns the temporary directory of this process: the [`configured`] one, or else the system's (`TMPDIR`).
pub fn directory() -> PathBuf {
    configured().map_or_else(std::env::temp_dir, Path::to_owned)
}

/// Returns the configuration's `scratch` directory, if set.
pub fn configured() -> Option<&'static Path> {
    DIRECTORY.get().map(PathBuf::as_path)
}

/// Sets the temporary directory of this process. Only the first call has an effect.
///
/// # Errors
///
/// [`ConfigError::Invalid`] if there is no such directory.
pub(crate) fn use_directory(directory: &Path) -> Result<(), ConfigError> {
    if !directory.is_dir() {
        let problem = format!("{} is not a directory", directory.display());
        return Err(ConfigError::Invalid { key: "scratch".into(), problem });
    }
    DIRECTORY.get_or_init(|| directory.to_owned());
    Ok(())
}
