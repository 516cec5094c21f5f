//! The directory for temporary files: what does not fit into memory, and packed files on their way.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use schemas::config::ConfigError;

static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// What an error about such a file says after the directory's name.
pub const HINT: &str = "`scratch` in the configuration, or TMPDIR, names another directory";

/// The directory of this process: the [`configured`] one, or the system's, which TMPDIR names.
pub fn directory() -> PathBuf {
    configured().map_or_else(std::env::temp_dir, Path::to_owned)
}

/// The scratch directory of the configuration, if it names one.
pub fn configured() -> Option<&'static Path> {
    DIRECTORY.get().map(PathBuf::as_path)
}

/// From now on, temporary files of this process lie in `directory`. The first call counts.
///
/// # Errors
///
/// There is no such directory.
pub(crate) fn use_directory(directory: &Path) -> Result<(), ConfigError> {
    if !directory.is_dir() {
        let problem = format!("{} is not a directory", directory.display());
        return Err(ConfigError::Invalid { key: "scratch".into(), problem });
    }
    DIRECTORY.get_or_init(|| directory.to_owned());
    Ok(())
}
