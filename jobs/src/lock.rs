//! One run of a job at a time.
//!
//! The lock is the operating system's, on a file: it ends with its owner, however that ends, and with nothing else. Inside the
//! file stands who the owner is, for the one who has to wait.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use terminal::Interrupt;

use crate::stop::unless_stopped;

/// So often a lock is tried that somebody may be looking at, and the time between two tries.
const LOOKS: u32 = 4;
const LOOK: Duration = Duration::from_millis(100);

/// A lock that cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    /// It is somebody else's.
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

/// Who holds a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The machine.
    pub(crate) host: String,
    /// The process there.
    pub(crate) pid: u32,
    /// Its arguments, without secrets.
    pub(crate) command: String,
    /// When it took the lock.
    pub(crate) since: DateTime<Utc>,
}

impl Owner {
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

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, pid, command, since } = self;
        write!(f, "process {pid} on {host} since {} (`{command}`)", since.format("%F %T UTC"))
    }
}

/// A held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `job` at `path`, or says who has it.
    pub(crate) fn take(job: &'static str, path: &Path) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.into(), source };
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
                return Err(LockError::Held { job, owner, path: path.into() });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let text = serde_json::to_string(&Owner::this_process()).unwrap_or_default();
        // A full disk: the lock is as good without a name in it.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{text}"));
        Ok(Self { _file: file })
    }

    /// Takes the lock at `path` as soon as the other jobs of this root let go of it.
    pub(crate) async fn wait(path: &Path, interrupt: &Interrupt) -> Result<Self> {
        loop {
            match Self::take("another job", path) {
                Err(LockError::Held { .. }) => {}
                taken => return Ok(taken?),
            }
            unless_stopped(interrupt, "waiting for another job", tokio::time::sleep(LOOK)).await?;
        }
    }

    /// Who holds the lock at `path` now; `None` where nobody does.
    pub(crate) fn holder(path: &Path) -> Option<Owner> {
        let mut file = File::open(path).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => owner(&mut file),
            // Taken for this look, and given back with the file.
            _ => None,
        }
    }
}

fn owner(file: &mut File) -> Option<Owner> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jobs/daily.lock");
        let first = Lock::take("climber daily", &path).unwrap();
        let message = Lock::take("climber daily", &path).unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        assert_eq!(Lock::holder(&path).unwrap().pid, std::process::id());
        drop(first);
        assert_eq!(Lock::holder(&path), None);
        // What a dead owner left in the file keeps nobody out.
        Lock::take("climber daily", &path).unwrap();
    }
}
