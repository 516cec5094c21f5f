//! What the poller hands to the assembler: messages in chunks, and where partitions begin and end.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Message as _};

use super::super::batch;
use super::super::identity::TopicIdentity;
use super::super::reached::StoredOffset;

/// A chunk is handed on when it has so many messages or bytes, or this long after its first.
const CHUNK_MESSAGES: usize = 4_096;
const CHUNK_BYTES: usize = 1 << 20;
pub(super) const CHUNK_AGE: Duration = Duration::from_millis(5);
/// Chunks that wait for the assembler, at most.
const CHUNKS: usize = 16;
/// The channel to the assembler.
pub(in super::super) fn channel() -> (SyncSender<Input>, Receiver<Input>) {
    sync_channel(CHUNKS)
}

/// Messages to the assembler, in order.
pub(in super::super) enum Input {
    /// Messages of partitions that were begun.
    Messages(MessageChunk),
    /// A partition's messages come, from `read` on; what the tables know of it. `topic`: which topic it is, if the brokers
    /// say; `anew`: it takes the place of another one, of which the tables' offsets are.
    Begin { partition: i32, stored: StoredOffset, read: i64, topic: Option<TopicIdentity>, anew: bool },
    /// No more messages of it come. What was read of it and not flushed is forgotten.
    End { partition: i32 },
    /// Everything before this is to be committed, and then answered.
    Flush(SyncSender<()>),
}

/// Messages, their bytes behind each other.
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

/// What a chunk takes.
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
        // Messages of a partition come in runs.
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

    /// Makes room for as much as a chunk of this size holds.
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
