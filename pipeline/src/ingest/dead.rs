//! Rejected records on their way to `dead_letters`.
//!
//! They are written to a shard as they come, so memory holds one batch of them, however many there are.
//! Records that an earlier run has stored (same source, position and bytes) are counted, but not stored again.
//! Memory: 16 bytes for each stored record of this run's files, and the records of one stored shard at a time.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, BinaryBuilder, Int64Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder,
};
use arrow::datatypes::Int64Type;
use schemas::tables::{DEAD_LETTERS, DEAD_LETTERS_SCHEMA, Reason};
use store::commit::{NewShard, ShardWriter};
use store::{Root, Snapshot};

use super::error::IngestError;
use crate::records::{KeySet, Rejection, dead_letter_key};

const BATCH_BYTES: usize = 4 << 20;
const BATCH_ROWS: usize = 1 << 14;

/// Where a rejected record, or a rejected element of one, stands in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Letter {
    pub(super) position: u64,
    /// Kept as the letter's key, which tells the elements of a record apart.
    pub(super) element: Option<u32>,
}

/// The rejected records of a run.
pub(super) struct DeadLetters<'a> {
    root: &'a Root,
    stored: KeySet,
    writer: Option<ShardWriter>,
    source: StringBuilder,
    position: Int64Builder,
    key: BinaryBuilder,
    value: BinaryBuilder,
    reason: StringBuilder,
    message: StringBuilder,
    bytes: usize,
    rows: usize,
}

impl<'a> DeadLetters<'a> {
    /// Reads which records of `sources` are stored already.
    pub(super) async fn new(
        root: &'a Root,
        snapshot: Option<&Snapshot>,
        sources: &[&str],
    ) -> Result<Self, IngestError> {
        let sources: HashSet<&str> = sources.iter().copied().collect();
        let mut stored = KeySet::default();
        for shard in snapshot.map(Snapshot::shards).unwrap_or_default() {
            let Some(snapshot) = snapshot else { break };
            // Most shards have no record of these files, and then their records are not read.
            let named = |batch: &RecordBatch| {
                batch.column(0).as_string::<i32>().iter().flatten().any(|source| sources.contains(source))
            };
            if !snapshot.read_shard(shard, &["source"]).await?.iter().any(named) {
                continue;
            }
            for batch in snapshot.read_shard(shard, &["source", "position", "key", "value"]).await? {
                let (source, positions) =
                    (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
                let (keys, values) = (batch.column(2).as_binary::<i32>(), batch.column(3).as_binary::<i32>());
                for row in (0..batch.num_rows()).filter(|&row| sources.contains(source.value(row))) {
                    let key = keys.is_valid(row).then(|| keys.value(row));
                    stored.insert(dead_letter_key(
                        source.value(row),
                        positions.value(row),
                        key,
                        values.value(row),
                    ));
                }
            }
        }
        Ok(Self {
            root,
            stored,
            writer: None,
            source: StringBuilder::new(),
            position: Int64Builder::new(),
            key: BinaryBuilder::new(),
            value: BinaryBuilder::new(),
            reason: StringBuilder::new(),
            message: StringBuilder::new(),
            bytes: 0,
            rows: 0,
        })
    }

    pub(super) fn push(
        &mut self,
        source: &str,
        letter: Letter,
        raw: &[u8],
        rejection: &Rejection,
    ) -> Result<(), IngestError> {
        let position = i64::try_from(letter.position).unwrap_or(i64::MAX);
        let key = letter.element.map(|element| format!("element {element}"));
        let key = key.as_ref().map(String::as_bytes);
        if !self.stored.is_empty() && self.stored.contains(&dead_letter_key(source, position, key, raw)) {
            return Ok(());
        }
        self.key.append_option(key);
        self.source.append_value(source);
        self.position.append_value(position);
        self.value.append_value(raw);
        self.reason.append_value(rejection.reason.code());
        self.message.append_value(&rejection.message);
        self.rows += 1;
        self.bytes += raw.len() + rejection.message.len() + source.len();
        if self.bytes >= BATCH_BYTES || self.rows >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), IngestError> {
        if self.rows == 0 {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        let mut rejected_at = TimestampMillisecondBuilder::new().with_timezone("UTC");
        rejected_at.append_value_n(chrono::Utc::now().timestamp_millis(), rows);
        let batch = RecordBatch::try_new(
            DEAD_LETTERS_SCHEMA.clone(),
            vec![
                Arc::new(self.source.finish()),
                Arc::new(self.position.finish()),
                Arc::new(self.key.finish()),
                Arc::new(self.value.finish()),
                Arc::new(self.reason.finish()),
                Arc::new(self.message.finish()),
                Arc::new(rejected_at.finish()),
            ],
        )
        .map_err(|source| IngestError::Build { table: DEAD_LETTERS, source })?;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                none.insert(ShardWriter::create(self.root, DEAD_LETTERS, "part", &DEAD_LETTERS_SCHEMA, &[])?)
            }
        };
        Ok(writer.write(&batch)?)
    }

    /// The shard with the new records; `None` if there are none.
    pub(super) fn finish(&mut self) -> Result<Option<NewShard>, IngestError> {
        self.flush()?;
        self.writer.take().map(ShardWriter::finish).transpose().map_err(Into::into)
    }
}

/// Reason → number of rejected records, and the first of them as an example.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    reasons: BTreeMap<Reason, (u64, String)>,
}

impl Tally {
    pub(super) fn add(&mut self, source: &str, position: u64, rejection: &Rejection) {
        let entry = self.reasons.entry(rejection.reason);
        entry.or_insert_with(|| (0, format!("{source} row {position}: {}", rejection.message))).0 += 1;
    }

    /// Adds the tally of another part of the run.
    pub(super) fn merge(&mut self, other: Tally) {
        for (reason, (n, example)) in other.reasons {
            self.reasons.entry(reason).or_insert((0, example)).0 += n;
        }
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.reasons.iter().map(|(&reason, &(n, _))| (reason, n))
    }

    /// One line a reason, the most frequent first.
    pub(super) fn lines(&self) -> String {
        let mut reasons: Vec<_> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, (n, _))| std::cmp::Reverse(*n));
        let mut text = String::new();
        for (reason, (n, example)) in reasons {
            let _ = write!(text, "\n  {n:>8}  {:<17} for example {example}", reason.code());
        }
        text
    }
}
