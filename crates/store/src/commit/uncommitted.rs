//! Shards on their way from a writer to a commit.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Root, Snapshot};

use super::{Change, CommitError, Committed, NewShard, commit_of, discard};

/// Shards of one table that are written and not committed yet. Dropped, it deletes them, unless a version names them or may do
/// so: from the moment in which the log entry is asked for until it is known that there is none, they stay, also where whoever
/// waits for the commit goes away meanwhile.
#[derive(Debug)]
pub struct Uncommitted {
    root: Root,
    table: String,
    shards: Vec<NewShard>,
    /// A version names the shards, or may do so.
    named: AtomicBool,
}

impl Uncommitted {
    /// None yet.
    pub fn new(root: &Root, table: &str) -> Self {
        Self { root: root.clone(), table: table.into(), shards: Vec::new(), named: AtomicBool::new(false) }
    }

    /// Takes charge of a finished shard.
    pub fn push(&mut self, shard: NewShard) {
        self.shards.push(shard);
    }

    /// The shards in the order in which they came.
    pub fn shards(&self) -> &[NewShard] {
        &self.shards
    }

    /// Rows of all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().map(|shard| shard.rows).sum()
    }

    /// Puts the shards into the order of their paths.
    pub fn sort(&mut self) {
        self.shards.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// Deletes the shard at this place, and puts another one there, if there is one.
    pub fn replace(&mut self, at: usize, by: Option<NewShard>) {
        let old = match by {
            Some(new) => std::mem::replace(&mut self.shards[at], new),
            None => self.shards.remove(at),
        };
        discard(&self.root, &self.table, &[old]);
    }

    /// Makes `change`, whose shards these are: atomically, and the table too where it does not exist.
    ///
    /// # Errors
    ///
    /// After [`CommitError::Unknown`] the shards stay; after any other error no version names them.
    pub async fn commit(&self, change: Change<'_>) -> Result<Committed, CommitError> {
        commit_of(&self.root, change, Some(self)).await
    }

    /// [`commit`](Self::commit) on top of a snapshot that the caller has, which is the one of `read_version`: the table is not
    /// read again.
    ///
    /// # Errors
    ///
    /// As those of [`commit`](Self::commit).
    pub async fn commit_on(
        &self,
        snapshot: Option<&Snapshot>,
        change: Change<'_>,
    ) -> Result<Committed, CommitError> {
        super::attempt(&self.root, &change, snapshot, Some(self)).await
    }

    /// The log entry is asked for: from now on it may be there.
    pub(super) fn entry_is_asked_for(&self) {
        self.named.store(true, Ordering::Release);
    }

    /// What came of the commit.
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
