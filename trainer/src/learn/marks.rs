//! Owner of an unfinished training: `models/.training/<name>/made-by.json`, written if a job begins it.
//!
//! A finished model names its job itself ([`Lineage::made_by`]); a training in its first epoch has no checkpoint yet.
//!
//! [`Lineage::made_by`]: crate::checkpoint::Lineage::made_by

use std::path::Path;
use std::{fs, io};

use store::files;

use crate::checkpoint::{self, CheckpointError, MadeBy};

const FILE: &str = "made-by.json";

/// Returns the job that began the training in `directory`; `None` if there is no training or a person began it. Checkpoints take
/// precedence over the mark, and must agree.
pub fn made_by(directory: &Path) -> Option<MadeBy> {
    let checkpoints = ["latest", "best"].map(|name| directory.join(name));
    let found: Vec<_> = checkpoints.iter().filter(|path| checkpoint::find(path).is_some()).collect();
    if let [first, rest @ ..] = &found[..] {
        let mark = checkpoint::made_by(first);
        return mark.filter(|mark| rest.iter().all(|path| checkpoint::made_by(path).as_ref() == Some(mark)));
    }
    serde_json::from_slice(&fs::read(directory.join(FILE)).ok()?).ok()
}

/// True if `directory` contains anything.
pub fn is_there(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Marks the training in `directory` as that of a job; `None` removes the mark.
pub(super) fn write(directory: &Path, made_by: Option<&MadeBy>) -> Result<(), CheckpointError> {
    let path = directory.join(FILE);
    let io = |source| CheckpointError::Io { path: path.clone(), source };
    match made_by {
        Some(mark) => {
            let write = || {
                fs::create_dir_all(directory)?;
                files::replace(&path, &serde_json::to_vec_pretty(mark)?)
            };
            write().map_err(io)
        }
        None => gone(fs::remove_file(&path)).map_err(io),
    }
}

/// Removes the mark, and `directory` if it is then empty.
pub(super) fn clear(directory: &Path) -> Result<(), CheckpointError> {
    write(directory, None)?;
    // Fails if the directory still holds a checkpoint or another file, both of which may stay.
    let _ = fs::remove_dir(directory);
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
