//! Shards on their way from a writer to a commit.

use schemas::delta::Root;

use super::{CommitError, Committed, NewShard, discard};

/// Shards of one table that are written and not committed yet. Dropped, it deletes them, whatever went wrong; what
/// [`commit`](super::commit) made of them is told by [`settle`](Self::settle).
#[derive(Debug)]
pub struct Uncommitted {
    root: Root,
    table: String,
    shards: Vec<NewShard>,
    kept: bool,
}

impl Uncommitted {
    /// None yet.
    pub fn new(root: &Root, table: &str) -> Self {
        Self { root: root.clone(), table: table.into(), shards: Vec::new(), kept: false }
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

    /// The shards stay: a version names them.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Keeps the shards if the commit stands, or may stand.
    ///
    /// # Errors
    ///
    /// Those of the commit.
    pub fn settle(&mut self, result: Result<Committed, CommitError>) -> Result<Committed, CommitError> {
        if matches!(result, Ok(_) | Err(CommitError::Unknown { .. })) {
            self.keep();
        }
        result
    }
}

impl Extend<NewShard> for Uncommitted {
    fn extend<T: IntoIterator<Item = NewShard>>(&mut self, shards: T) {
        self.shards.extend(shards);
    }
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        if !self.kept {
            discard(&self.root, &self.table, &self.shards);
        }
    }
}
