//! How far the tables have come in each partition: the `txn` actions of their commits.
//!
//! `events` carries, for each partition, the offset behind the last message that is stored or was found to be a duplicate
//! or a dead letter. `dead_letters` carries the same number for its own rows, in commits that have some; it is written
//! first, so it is never behind where there is something to find, and ahead only when a consumer was killed in between or
//! another writer preceded its second commit.

use std::collections::BTreeMap;

use schemas::delta::{Root, Snapshot, TableError};
use schemas::tables::{DEAD_LETTERS, EVENTS};

/// Where the tables are in one partition: the offset of the next message, if they know any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) events: Option<i64>,
    pub(super) dead_letters: Option<i64>,
}

/// The writer of a partition, as `txn` actions name it.
pub(super) fn application(topic: &str, partition: i32) -> String {
    format!("kafka/{topic}/{partition}")
}

/// What the tables know of `partition` now.
pub(super) async fn read(root: &Root, topic: &str, partition: i32) -> Result<Stored, TableError> {
    let application = application(topic, partition);
    let of = async |table| match root.snapshot(table).await? {
        Some(snapshot) => snapshot.transaction(&application).await,
        None => Ok(None),
    };
    Ok(Stored { events: of(EVENTS).await?, dead_letters: of(DEAD_LETTERS).await? })
}

/// One table's offsets of the partitions that this consumer reads, kept up to date commit by commit.
#[derive(Debug, Default)]
pub(super) struct Reached {
    topic: String,
    /// The version up to which the others' commits were seen; `None` while the table does not exist.
    version: Option<u64>,
    offsets: BTreeMap<i32, Option<i64>>,
}

impl Reached {
    pub(super) fn new(topic: &str) -> Self {
        Self { topic: topic.into(), ..Self::default() }
    }

    /// The next offset of a partition, by the table.
    pub(super) fn of(&self, partition: i32) -> Option<i64> {
        self.offsets.get(&partition).copied().flatten()
    }

    /// Begins to follow a partition.
    pub(super) async fn begin(&mut self, now: Option<&Snapshot>, partition: i32) -> Result<(), TableError> {
        self.catch_up(now).await?;
        let offset = match now {
            Some(snapshot) => snapshot.transaction(&application(&self.topic, partition)).await?,
            None => None,
        };
        self.offsets.insert(partition, offset);
        Ok(())
    }

    pub(super) fn end(&mut self, partition: i32) {
        self.offsets.remove(&partition);
    }

    /// Takes in what was committed since, by whomever.
    pub(super) async fn catch_up(&mut self, now: Option<&Snapshot>) -> Result<(), TableError> {
        let Some(snapshot) = now else { return Ok(()) };
        match self.version {
            Some(version) if version == snapshot.version() => {}
            Some(version) if version < snapshot.version() => {
                for (application, offset) in snapshot.transactions_since(version).await? {
                    let partition = application.strip_prefix(&format!("kafka/{}/", self.topic));
                    let partition = partition.and_then(|partition| partition.parse().ok());
                    if let Some(known) = partition.and_then(|partition: i32| self.offsets.get_mut(&partition))
                    {
                        *known = Some(offset);
                    }
                }
            }
            _ => {
                for (partition, offset) in &mut self.offsets {
                    *offset = snapshot.transaction(&application(&self.topic, *partition)).await?;
                }
            }
        }
        self.version = Some(snapshot.version());
        Ok(())
    }

    /// After a commit of one's own on top of the version that was caught up with.
    pub(super) fn committed(&mut self, version: u64, offsets: impl Iterator<Item = (i32, i64)>) {
        self.version = Some(version);
        for (partition, offset) in offsets {
            if let Some(known) = self.offsets.get_mut(&partition) {
                *known = Some(offset);
            }
        }
    }
}
