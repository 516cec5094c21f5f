//! Leases: one run of a job at a time.
//!
//! A lease is an operating-system lock on a file. It is released when it is dropped or its process ends, however it ends; it
//! never expires. The file names the holder, so that a second run can report it.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Retries before the lease counts as held: `climber status` takes the lock for a moment to look.
const LOOKS: u32 = 4;
/// Time between two tries.
pub const LOOK: Duration = Duration::from_millis(100);

/// A lease cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another run holds it.
    #[error("{job} is running already: {owner}; it holds {path} until it ends")]
    Held {
        /// The job.
        job: &'static str,
        /// Description of the holder.
        owner: String,
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be used.
    #[error("cannot lock {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
}

/// The process that holds a lease, as its file names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseHolder {
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// Command line, without secrets.
    pub command: String,
    /// Time at which it took the lock.
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

/// A held lease; dropping it releases the lock.
#[derive(Debug)]
pub struct Lease {
    _file: File,
}

impl Lease {
    /// Takes the lease of `job` at `path`.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Held`], naming the holder, if another run has it; [`LeaseError::Io`] if the file cannot be used.
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
            // `climber status` may hold the lock for a moment.
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
        // On a full disk the lock holds, only without a name.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{text}"));
        Ok(Self { _file: file })
    }

    /// Returns the holder of the lease at `path`; `None` if it is free.
    pub fn holder(path: &Path) -> Option<LeaseHolder> {
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => owner(&mut file),
            // The shared lock of this look is released when `file` is dropped.
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
        // The name of a dead holder in the file blocks no other run.
        Lease::take("climber daily", &path).unwrap();
    }
}
