//! The offsets that the tables have reached in each partition: the `txn` actions of their commits.
//!
//! `events` carries, for each partition, the offset after the last message that is stored or was found to be a duplicate
//! or a dead letter. `dead_letters` carries the same number in commits that add rows of the partition. It is written first,
//! so it is never behind where it has rows, and ahead only if a consumer was killed between the two commits or another
//! writer preceded the second one.
//!
//! An offset is valid in one topic only; a table property, written in the same commit, identifies this topic.

use std::collections::{BTreeMap, BTreeSet};

use schemas::tables::{DEAD_LETTERS, EVENTS};
use store::{Root, Snapshot, TableError};

use super::identity::TopicIdentity;

/// The tables' offsets in one partition: the offset of the next message; `None` if a table does not know the partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StoredOffset {
    pub(super) events: Option<i64>,
    pub(super) dead_letters: Option<i64>,
    /// The topic that the offset in `events` belongs to; `None` in tables written by versions that did not record it.
    pub(super) topic: Option<TopicIdentity>,
}

/// The application id of a partition in `txn` actions.
pub(super) fn application(topic: &str, partition: i32) -> String {
    format!("kafka/{topic}/{partition}")
}

/// The source of a partition's messages: `clicks-3`, or `clicks-3#1` if one earlier topic of this name was read, whose messages
/// had the same offsets.
pub(super) fn source(topic: &str, partition: i32, generation: Option<u32>) -> String {
    match generation {
        None => format!("{topic}-{partition}"),
        Some(generation) => format!("{topic}-{partition}#{generation}"),
    }
}

/// The topic in a [`source`], by Kafka's rules for names; `None` in that of a file.
pub(crate) fn topic_in(source: &str) -> Option<&str> {
    let is_name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    let (topic, partition) = source.rsplit_once('-')?;
    let (partition, generation) = partition.split_once('#').unwrap_or((partition, "0"));
    let fits = (1..=249).contains(&topic.len()) && topic.bytes().all(is_name);
    (fits && partition.parse::<u32>().is_ok() && generation.parse::<u32>().is_ok()).then_some(topic)
}

/// Prefix of the properties that identify the topics that were read.
const PROPERTY: &str = "climberPilot.kafka.";

/// The table property that identifies the topic of the partition's offset.
pub(super) fn property(topic: &str, partition: i32) -> String {
    format!("{PROPERTY}{topic}.{partition}")
}

/// The names of all topics with such a property.
pub(crate) fn topics_of(snapshot: &Snapshot) -> BTreeSet<&str> {
    let partitions = snapshot.properties().keys().filter_map(|key| key.strip_prefix(PROPERTY));
    partitions.filter_map(|partition| Some(partition.rsplit_once('.')?.0)).collect()
}

/// The topic that the table's offset of a partition belongs to.
pub(super) fn topic_of(snapshot: &Snapshot, topic: &str, partition: i32) -> Option<TopicIdentity> {
    TopicIdentity::from_property(snapshot.properties().get(&property(topic, partition))?)
}

/// Reads the tables' current offsets of the `partitions`; opens each table once.
pub(super) async fn read(
    root: &Root,
    topic: &str,
    partitions: &[i32],
) -> Result<BTreeMap<i32, StoredOffset>, TableError> {
    let mut stored: BTreeMap<i32, StoredOffset> =
        partitions.iter().map(|&partition| (partition, StoredOffset::default())).collect();
    let applications: Vec<String> =
        partitions.iter().map(|&partition| application(topic, partition)).collect();
    if let Some(events) = root.snapshot(EVENTS).await? {
        let offsets = events.transactions(&applications).await?;
        for (&partition, stored) in &mut stored {
            stored.events = offsets.get(&application(topic, partition)).copied();
            stored.topic = topic_of(&events, topic, partition);
        }
    }
    if let Some(dead_letters) = root.snapshot(DEAD_LETTERS).await? {
        let offsets = dead_letters.transactions(&applications).await?;
        for (&partition, stored) in &mut stored {
            stored.dead_letters = offsets.get(&application(topic, partition)).copied();
        }
    }
    Ok(stored)
}

/// One table's offsets of the partitions that this consumer reads, kept up to date commit by commit.
#[derive(Debug, Default)]
pub(super) struct Reached {
    topic: String,
    /// The version up to which commits are included; `None` while the table does not exist.
    version: Option<u64>,
    offsets: BTreeMap<i32, Option<i64>>,
    /// Partitions whose offsets were not read yet.
    unread: BTreeSet<i32>,
}

impl Reached {
    pub(super) fn new(topic: &str) -> Self {
        Self { topic: topic.into(), ..Self::default() }
    }

    /// The table's offset of a partition.
    pub(super) fn of(&self, partition: i32) -> Option<i64> {
        self.offsets.get(&partition).copied().flatten()
    }

    /// Begins to follow a partition.
    pub(super) fn begin(&mut self, partition: i32) {
        self.offsets.insert(partition, None);
        self.unread.insert(partition);
    }

    pub(super) fn end(&mut self, partition: i32) {
        self.offsets.remove(&partition);
        self.unread.remove(&partition);
    }

    /// Reads the offsets of all commits since, by any writer.
    pub(super) async fn catch_up(&mut self, now: Option<&Snapshot>) -> Result<(), TableError> {
        let Some(snapshot) = now else { return Ok(()) };
        match self.version {
            Some(version) if version == snapshot.version() => {}
            Some(version) if version < snapshot.version() => match snapshot.transactions_since(version).await
            {
                Ok(reached) => {
                    for (application, offset) in reached {
                        let partition = application.strip_prefix(&format!("kafka/{}/", self.topic));
                        let partition = partition.and_then(|partition| partition.parse().ok());
                        let known = partition.and_then(|partition: i32| self.offsets.get_mut(&partition));
                        if let Some(known) = known {
                            *known = Some(offset);
                        }
                    }
                }
                // The log was cleaned up in the meantime.
                Err(TableError::Expired { .. }) => self.unread.extend(self.offsets.keys()),
                Err(error) => return Err(error),
            },
            _ => self.unread.extend(self.offsets.keys()),
        }
        self.version = Some(snapshot.version());
        let unread = std::mem::take(&mut self.unread);
        if !unread.is_empty() {
            let applications: Vec<String> =
                unread.iter().map(|&partition| application(&self.topic, partition)).collect();
            let reached = snapshot.transactions(&applications).await?;
            for partition in unread {
                self.offsets.insert(partition, reached.get(&application(&self.topic, partition)).copied());
            }
        }
        Ok(())
    }

    /// Records an own commit on top of the version that [`Self::catch_up`] has read.
    pub(super) fn committed(&mut self, version: u64, offsets: impl Iterator<Item = (i32, i64)>) {
        self.version = Some(version);
        for (partition, offset) in offsets {
            if let Some(known) = self.offsets.get_mut(&partition) {
                *known = Some(offset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_says_whether_it_is_a_topic() {
        for (topic, partition, generation) in [("clicks", 3, None), ("a-b.c_1", 0, Some(2))] {
            assert_eq!(topic_in(&source(topic, partition, generation)), Some(topic));
        }
        for file in
            ["log.csv", "log-3.csv", "events/2026-01-01.csv", "a/b-3", "-3", "a-3#", "a-3#x", "a-#1", ""]
        {
            assert_eq!(topic_in(file), None, "{file}");
        }
    }
}
