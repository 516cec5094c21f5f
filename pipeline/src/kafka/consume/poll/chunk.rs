//! The channel from the poller to the assembler: chunks of messages, and the beginnings and ends of partitions.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Message as _};

use super::super::batch;
use super::super::identity::TopicIdentity;
use super::super::reached::StoredOffset;

/// A chunk is sent when it has this many messages or bytes, or this long after its first message.
const CHUNK_MESSAGES: usize = 4_096;
const CHUNK_BYTES: usize = 1 << 20;
pub(super) const CHUNK_AGE: Duration = Duration::from_millis(5);
/// Maximum chunks that wait for the assembler.
const CHUNKS: usize = 16;
/// The channel to the assembler.
pub(in super::super) fn channel() -> (SyncSender<Input>, Receiver<Input>) {
    sync_channel(CHUNKS)
}

/// Input of the assembler, in order.
pub(in super::super) enum Input {
    /// Messages of partitions that were begun.
    Messages(MessageChunk),
    /// Messages of a partition follow, from `read` on. `stored`: the tables' offsets; `topic`: its topic, if the brokers
    /// report it; `anew`: it replaces the topic that the tables' offsets belong to.
    Begin { partition: i32, stored: StoredOffset, read: i64, topic: Option<TopicIdentity>, anew: bool },
    /// No more messages of the partition follow. Messages that were read and not flushed are dropped.
    End { partition: i32 },
    /// Commit everything before this, then answer.
    Flush(SyncSender<()>),
}

/// Messages with their bytes in one buffer.
#[derive(Default)]
pub(in super::super) struct MessageChunk {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    /// Partition → the offset behind its last message.
    ends: Vec<(i32, i64)>,
}

struct Entry {
    partition: i32,
    offset: i64,
    sent: i64,
    start: usize,
    key: Option<usize>,
    value: Option<usize>,
}

/// The bytes and entries of a chunk.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChunkSize {
    bytes: usize,
    messages: usize,
}

impl MessageChunk {
    pub(super) fn push(&mut self, message: &BorrowedMessage<'_>) {
        let (key, value) = (message.key(), message.payload());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key.unwrap_or_default());
        self.bytes.extend_from_slice(value.unwrap_or_default());
        let next = (message.partition(), message.offset() + 1);
        // Messages of a partition come in runs, so search from the back.
        match self.ends.iter_mut().rev().find(|(partition, _)| *partition == next.0) {
            Some(end) => *end = next,
            None => self.ends.push(next),
        }
        let now = || chrono::Utc::now().timestamp_millis();
        self.entries.push(Entry {
            partition: message.partition(),
            offset: message.offset(),
            sent: message.timestamp().to_millis().filter(|&ms| ms > 0).unwrap_or_else(now),
            start,
            key: key.map(<[u8]>::len),
            value: value.map(<[u8]>::len),
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Partition → the offset behind its last message.
    pub(super) fn ends(&self) -> &[(i32, i64)] {
        &self.ends
    }

    /// Messages.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Reserves memory for a chunk of this size.
    pub(super) fn reserve(&mut self, size: ChunkSize) {
        self.bytes.reserve(size.bytes);
        self.entries.reserve(size.messages);
    }

    pub(super) fn size(&self) -> ChunkSize {
        ChunkSize { bytes: self.bytes.len(), messages: self.entries.len() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() >= CHUNK_MESSAGES || self.bytes.len() >= CHUNK_BYTES
    }

    /// The messages, each with its partition.
    pub(in super::super) fn messages(&self) -> impl Iterator<Item = (i32, batch::Message<'_>)> {
        self.entries.iter().map(|entry| {
            let value = entry.start + entry.key.unwrap_or_default();
            let message = batch::Message {
                offset: entry.offset,
                sent: entry.sent,
                key: entry.key.map(|length| &self.bytes[entry.start..entry.start + length]),
                value: entry.value.map(|length| &self.bytes[value..value + length]),
            };
            (entry.partition, message)
        })
    }
}
