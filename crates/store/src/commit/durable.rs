//! Syncs files to disk, so that a power cut cannot leave a log entry without its shards.
//!
//! A file is durable once its bytes and the directory that names it are synced. The file system serves concurrent syncs together:
//! 2,000 small files took 6.7 s one by one, and 0.15 s from 16 threads.

use std::collections::BTreeSet;
use std::fs::File;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{CommitError, NewShard};
use crate::Root;

const THREADS: usize = 16;

/// Syncs new shards and their directories, the table's directory and its parent.
pub(super) fn shards(table: &Path, shards: &[NewShard]) -> Result<(), CommitError> {
    let mut paths: BTreeSet<PathBuf> = [table].into_iter().chain(table.parent()).map(Into::into).collect();
    for shard in shards {
        let file = table.join(&shard.path);
        paths.extend(file.parent().map(Into::into));
        paths.insert(file);
    }
    force(&paths.into_iter().collect::<Vec<_>>())
}

/// Syncs the bytes of a finished shard of `table`, which its commit then need not wait for.
///
/// # Errors
///
/// [`CommitError::Shard`]: the file cannot be synced. It must not be committed: the system tells of such a fault once.
pub fn sync_shard(root: &Root, table: &str, shard: &NewShard) -> Result<(), CommitError> {
    sync(&root.table_path(table).join(&shard.path))
}

fn sync(path: &Path) -> Result<(), CommitError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|e| CommitError::Shard { path: path.display().to_string(), source: e.into() })
}

/// Syncs the log entry of `version` and its directories.
pub(super) fn log_entry(table: &Path, version: u64) -> Result<(), CommitError> {
    let log = table.join("_delta_log");
    force(&[log.join(format!("{version:020}.json")), log, table.into()])
}

/// Syncs files and directories in any order, from up to [`THREADS`] threads.
fn force(paths: &[PathBuf]) -> Result<(), CommitError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), CommitError> {
        while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
            sync(path)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS.min(paths.len())).map(|_| scope.spawn(work)).collect();
        let mine = work();
        let others =
            others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)));
        others.fold(mine, Result::and)
    })
}
