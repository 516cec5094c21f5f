//! One run of a job at a time.
//!
//! A lease is the operating system's lock on a file: it ends when its holder does, however that ends, and with nothing else. The
//! file names the holder, for whoever has to wait.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Tries before a lease is held: `climber status` holds it for the time of a look.
const LOOKS: u32 = 4;
/// Time between two tries.
pub const LOOK: Duration = Duration::from_millis(100);

/// A lease that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another run has it.
    #[error("{job} is running already: {owner}; it holds {path} until it ends")]
    Held {
        /// The job.
        job: &'static str,
        /// Who it is.
        owner: String,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be used.
    #[error("cannot lock {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Who holds a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    /// The machine.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// Its arguments, without secrets.
    pub command: String,
    /// When it took the lock.
    pub since: DateTime<Utc>,
}

impl LeaseHolder {
    fn this_process() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            host: host.trim().to_owned(),
            pid: std::process::id(),
            command: schemas::secret::command_line(),
            since: Utc::now(),
        }
    }
}

impl std::fmt::Display for LeaseHolder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, pid, command, since } = self;
        write!(f, "process {pid} on {host} since {} (`{command}`)", since.format("%F %T UTC"))
    }
}

/// A held lease; dropping it lets go.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

impl Lease {
    /// Takes the lease of `job` at `path`.
    ///
    /// # Errors
    ///
    /// Another run has it, which the error names; or the file cannot be used.
    pub fn take(job: &'static str, path: &Path) -> Result<Self, LeaseError> {
        let io = |source| LeaseError::Io { path: path.into(), source };
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(io)?;
        }
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut locked = file.try_lock();
        for _ in 0..LOOKS {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            // `climber status` holds it for the time of a look.
            std::thread::sleep(LOOK);
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner =
                    owner(&mut file).map_or_else(|| "its owner is not known".into(), |o| o.to_string());
                return Err(LeaseError::Held { job, owner, path: path.into() });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let text = serde_json::to_string(&LeaseHolder::this_process()).unwrap_or_default();
        // A full disk: the lock is as good without a name in it.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{text}"));
        Ok(Self { _file: file })
    }

    /// Who holds the lease at `path` now, if anyone does.
    pub fn holder(path: &Path) -> Option<LeaseHolder> {
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => owner(&mut file),
            // Taken for this look, and given back with the file.
            _ => None,
        }
    }
}

fn owner(file: &mut File) -> Option<LeaseHolder> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_names_the_holder() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs/daily.lock");
        let first = Lease::take("climber daily", &path).unwrap();
        let message = Lease::take("climber daily", &path).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        assert_eq!(Lease::holder(&path).unwrap().pid, std::process::id());
        drop(first);
        assert_eq!(Lease::holder(&path), None);
        // A dead holder's name in the file keeps no other run out.
        Lease::take("climber daily", &path).unwrap();
    }
}
