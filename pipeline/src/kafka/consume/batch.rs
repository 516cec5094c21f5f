//! A micro-batch: the messages of each partition that were read since the previous one.

use std::collections::BTreeMap;
use std::time::Instant;

use arrow::error::ArrowError;

use crate::records::{Columns, Event, EventBatch, Place, Rejection};

const MS_PER_DAY: i64 = 86_400_000;

/// A message that is no event.
#[derive(Debug)]
pub(super) struct DeadLetter {
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Vec<u8>,
    pub(super) rejection: Rejection,
}

/// The messages of one partition with offsets in `from..to`.
pub(super) struct Part {
    pub(super) from: i64,
    pub(super) to: i64,
    columns: Columns,
    /// For each event, whether its id must be searched among the stored ones.
    check: Vec<bool>,
    pub(super) dead_letters: Vec<DeadLetter>,
    /// Messages of users who were forgotten.
    pub(super) forgotten: u64,
    /// Events earlier than one before them in the partition, and those of an earlier date.
    pub(super) out_of_order: u64,
    pub(super) late: u64,
    newest: i64,
    /// When the first message was sent, epoch milliseconds.
    pub(super) first_sent: Option<i64>,
    /// Whether the part is committed even if it is empty, so that the table records where reading began.
    pin: bool,
    /// Number of earlier topics of this name; `None` for the first.
    pub(super) generation: Option<u32>,
}

/// A message as it was polled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) offset: i64,
    /// When it was sent, by its own clock or the broker's, epoch milliseconds.
    pub(super) sent: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
}

impl Part {
    /// An empty part. The table has everything before `from`; reading continues at `to`.
    pub(super) fn new(from: i64, to: i64, pin: bool) -> Self {
        Self {
            from,
            to,
            columns: Columns::new(),
            check: Vec::new(),
            dead_letters: Vec::new(),
            forgotten: 0,
            out_of_order: 0,
            late: 0,
            newest: i64::MIN,
            first_sent: None,
            pin,
            generation: None,
        }
    }

    pub(super) fn event(
        &mut self,
        message: Message<'_>,
        event: &Event<'_>,
        given: bool,
        dedup_days: u32,
    ) -> Result<(), ArrowError> {
        self.columns.push(event, Place::record(message.offset))?;
        let (day, sent) = (event.ts.div_euclid(MS_PER_DAY), message.sent.div_euclid(MS_PER_DAY));
        self.check.push(given && sent - day <= i64::from(dedup_days));
        self.out_of_order += u64::from(event.ts < self.newest);
        self.late += u64::from(day < self.newest.div_euclid(MS_PER_DAY) && self.newest != i64::MIN);
        self.newest = self.newest.max(event.ts);
        self.read(message);
        Ok(())
    }

    pub(super) fn dead_letter(&mut self, message: Message<'_>, rejection: Rejection) {
        self.dead_letters.push(DeadLetter {
            offset: message.offset,
            key: message.key.map(<[u8]>::to_vec),
            value: message.value.unwrap_or_default().to_vec(),
            rejection,
        });
        self.read(message);
    }

    pub(super) fn forgotten(&mut self, message: Message<'_>) {
        self.forgotten += 1;
        self.read(message);
    }

    fn read(&mut self, message: Message<'_>) {
        self.to = message.offset + 1;
        self.first_sent.get_or_insert(message.sent);
    }

    /// Takes the messages so far; the part continues, empty, from their end.
    fn take(&mut self, partition: i32) -> Result<TakenPart, ArrowError> {
        let (newest, generation) = (self.newest, self.generation);
        let next = Self { newest, generation, ..Self::new(self.to, self.to, false) };
        // The column builders keep their memory.
        let batch = self.columns.finish(u32::try_from(partition).unwrap_or_default())?;
        let mut done = std::mem::replace(self, next);
        std::mem::swap(&mut self.columns, &mut done.columns);
        Ok(TakenPart {
            partition,
            from: done.from,
            to: done.to,
            events: batch,
            check: done.check,
            dead_letters: done.dead_letters,
            forgotten: done.forgotten,
            out_of_order: done.out_of_order,
            late: done.late,
            first_sent: done.first_sent,
        })
    }
}

/// A part that is complete.
pub(super) struct TakenPart {
    pub(super) partition: i32,
    pub(super) from: i64,
    pub(super) to: i64,
    /// The file's number is the partition.
    pub(super) events: EventBatch,
    pub(super) check: Vec<bool>,
    pub(super) dead_letters: Vec<DeadLetter>,
    pub(super) forgotten: u64,
    pub(super) out_of_order: u64,
    pub(super) late: u64,
    pub(super) first_sent: Option<i64>,
}

impl TakenPart {
    /// Messages.
    pub(super) fn read(&self) -> u64 {
        (self.events.dates.len() + self.dead_letters.len()) as u64 + self.forgotten
    }
}

/// The micro-batch that is being filled.
#[derive(Default)]
pub(super) struct MicroBatch {
    pub(super) parts: BTreeMap<i32, Part>,
    pub(super) messages: usize,
    pub(super) bytes: u64,
    /// When its first message was taken.
    pub(super) since: Option<Instant>,
}

impl MicroBatch {
    /// Takes everything that was read, and leaves an empty batch.
    pub(super) fn take(&mut self) -> Result<Vec<TakenPart>, ArrowError> {
        (self.messages, self.bytes, self.since) = (0, 0, None);
        let read = self.parts.iter_mut().filter(|(_, part)| part.to > part.from || part.pin);
        read.map(|(&partition, part)| part.take(partition)).collect()
    }
}
