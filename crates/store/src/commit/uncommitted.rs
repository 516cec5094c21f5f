//! Shards between their writer and their commit.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Root, Snapshot};

use super::{Change, CommitError, Committed, NewShard, commit_of, discard};

/// Written shards of one table that are not committed yet.
///
/// Dropping it deletes them unless a version names them or may name them: they stay from the request of the log entry until it is
/// known that the entry does not exist, also if the task that waits for the commit is cancelled meanwhile.
#[derive(Debug)]
pub struct Uncommitted {
    root: Root,
    table: String,
    shards: Vec<NewShard>,
    /// True if a version names the shards, or may name them.
    named: AtomicBool,
}

impl Uncommitted {
    /// Empty.
    pub fn new(root: &Root, table: &str) -> Self {
        Self { root: root.clone(), table: table.into(), shards: Vec::new(), named: AtomicBool::new(false) }
    }

    /// Takes ownership of a finished shard.
    pub fn push(&mut self, shard: NewShard) {
        self.shards.push(shard);
    }

    /// The shards in order of arrival, or by path after [`sort`](Self::sort).
    pub fn shards(&self) -> &[NewShard] {
        &self.shards
    }

    /// Number of rows in all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    /// Sorts the shards by path.
    pub fn sort(&mut self) {
        self.shards.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// Deletes the shard at index `at`, and puts `by` in its place or removes the entry.
    ///
    /// # Panics
    ///
    /// If `at` is out of range.
    pub fn replace(&mut self, at: usize, by: Option<NewShard>) {
        let old = match by {
            Some(new) => std::mem::replace(&mut self.shards[at], new),
            None => self.shards.remove(at),
        };
        discard(&self.root, &self.table, &[old]);
    }

    /// Commits `change`, whose shards these are, atomically; creates the table if it does not exist.
    ///
    /// # Errors
    ///
    /// After [`CommitError::Unknown`] the shards stay; after any other error no version names them, and dropping `self` deletes
    /// them.
    pub async fn commit(&self, change: Change<'_>) -> Result<Committed, CommitError> {
        commit_of(&self.root, change, Some(self)).await
    }

    /// [`commit`](Self::commit) on top of a snapshot at `read_version` that the caller has, without reading the table again.
    ///
    /// # Errors
    ///
    /// Those of [`commit`](Self::commit).
    pub async fn commit_on(
        &self,
        snapshot: Option<&Snapshot>,
        change: Change<'_>,
    ) -> Result<Committed, CommitError> {
        super::attempt(&self.root, &change, snapshot, Some(self)).await
    }

    /// Notes that the log entry is requested and may exist from now on.
    pub(super) fn entry_is_asked_for(&self) {
        self.named.store(true, Ordering::Release);
    }

    /// Notes the outcome of the commit.
    pub(super) fn settle(&self, result: &Result<Committed, CommitError>) {
        self.named.store(matches!(result, Ok(_) | Err(CommitError::Unknown { .. })), Ordering::Release);
    }
}

impl Extend<NewShard> for Uncommitted {
    fn extend<T: IntoIterator<Item = NewShard>>(&mut self, shards: T) {
        self.shards.extend(shards);
    }
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        if !*self.named.get_mut() {
            discard(&self.root, &self.table, &self.shards);
        }
    }
}
