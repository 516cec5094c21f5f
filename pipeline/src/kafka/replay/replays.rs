//! The table `replays`: which records were sent to which topic.
//!
//! A record is identified by its source and position and by the time of its rejection, so neither another filter nor a
//! compaction makes it a new one. A record that was rejected after the one at the same position was sent is another
//! record: its file was replaced under the same name. Memory: 24 bytes for each record that was ever sent to the topic.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use schemas::hash::hash128;
use schemas::tables::{REPLAYS, REPLAYS_SCHEMA};
use store::{Root, TableError};

use store::commit::{Change, CommitError, CommitMode, ShardWriter, Uncommitted};

/// The records that were sent to one topic.
pub(super) struct Replays<'a> {
    root: &'a Root,
    topic: &'a str,
    version: Option<u64>,
    /// Record → time at which it was last sent.
    known: HashMap<u128, i64, foldhash::fast::FixedState>,
}

impl<'a> Replays<'a> {
    pub(super) async fn read(root: &'a Root, topic: &'a str) -> Result<Self, TableError> {
        let mut replays = Self { root, topic, version: None, known: HashMap::default() };
        let Some(snapshot) = root.snapshot_to_write(REPLAYS, false).await? else { return Ok(replays) };
        replays.version = Some(snapshot.version());
        for shard in snapshot.shards() {
            for batch in snapshot.read_shard(shard, &["topic", "source", "position", "replayed_at"]).await? {
                let (topics, sources) =
                    (batch.column(0).as_string::<i32>(), batch.column(1).as_string::<i32>());
                let positions = batch.column(2).as_primitive::<Int64Type>().values();
                let times = batch.column(3).as_primitive::<TimestampMillisecondType>().values();
                for (((to, source), &position), &at) in topics.iter().zip(sources).zip(positions).zip(times) {
                    if to == Some(topic) {
                        replays.sent(source.unwrap_or_default(), position, at);
                    }
                }
            }
        }
        Ok(replays)
    }

    /// Whether the record that was rejected at `rejected_ms` was sent.
    pub(super) fn has(&self, source: &str, position: i64, rejected_ms: i64) -> bool {
        !self.known.is_empty()
            && self.known.get(&record(source, position)).is_some_and(|&sent| sent >= rejected_ms)
    }

    fn sent(&mut self, source: &str, position: i64, at: i64) {
        let sent = self.known.entry(record(source, position)).or_insert(at);
        *sent = at.max(*sent);
    }

    /// Adds the sent records in one commit.
    pub(super) async fn add(&mut self, sent: &[(&str, i64)]) -> Result<(), CommitError> {
        if sent.is_empty() {
            return Ok(());
        }
        let now = chrono::Utc::now().timestamp_millis();
        let write = |mut writer: ShardWriter| {
            let columns: Vec<arrow::array::ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(sent.iter().map(|_| self.topic))),
                Arc::new(StringArray::from_iter_values(sent.iter().map(|(source, _)| source))),
                Arc::new(Int64Array::from_iter_values(sent.iter().map(|(_, position)| *position))),
                Arc::new(TimestampMillisecondArray::from(vec![now; sent.len()]).with_timezone("UTC")),
            ];
            let batch = RecordBatch::try_new(REPLAYS_SCHEMA.clone(), columns);
            let fail = |e| CommitError::Shard { path: REPLAYS.into(), source: Box::new(e) };
            writer.write(&batch.map_err(fail)?)?;
            writer.finish()
        };
        let mut shards = Uncommitted::new(self.root, REPLAYS);
        shards.push(write(ShardWriter::create(self.root, REPLAYS, "part", &REPLAYS_SCHEMA, &[])?)?);
        let change = Change {
            table: REPLAYS,
            schema: &REPLAYS_SCHEMA,
            partition_by: &[],
            mode: CommitMode::Append,
            shards: shards.shards(),
            properties: BTreeMap::new(),
            read_version: self.version,
            transactions: BTreeMap::new(),
        };
        self.version = Some(shards.commit(change).await?.version);
        sent.iter().for_each(|&(source, position)| self.sent(source, position, now));
        Ok(())
    }
}

fn record(source: &str, position: i64) -> u128 {
    hash128(&[source.as_bytes(), &[0], &position.to_le_bytes()].concat())
}
