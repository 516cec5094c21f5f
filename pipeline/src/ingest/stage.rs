//! Accepted events on their way to the table: staged in the order they came, written date by date.
//!
//! ```text
//!   files in the order of their paths ─▶ batches of columns, in order of (source, position)
//!                                             │ grouped by date
//!                                             ▼
//!        for each date: the stored ids of that date ─▶ first of equal ids wins ─▶ one shard
//! ```
//!
//! Memory: all accepted events of the run once, as columns without their source (about 120 bytes each), the
//! batch being written, and the ids of one date. The staged batches are only read back date by date, so a
//! run larger than memory needs no more than another [`Stage`] that keeps them in files by date.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Builder, Int64Builder, RecordBatch, StringArray, StringBuilder,
    TimestampMillisecondBuilder,
};
use arrow::compute::interleave_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use schemas::delta::{Root, Snapshot};
use schemas::tables::{EVENT_DATE, EVENTS, EVENTS_SCHEMA};

use super::error::IngestError;
use super::mapping::Event;
use crate::commit::{NewShard, ShardWriter};
use crate::interrupt::Interrupt;

const BATCH_ROWS: usize = 1 << 16;
const MS_PER_DAY: i64 = 86_400_000;

fn build(source: arrow::error::ArrowError) -> IngestError {
    IngestError::Build { table: EVENTS, source }
}

/// Events of one file, in order.
struct Batch {
    file: usize,
    rows: RecordBatch,
    dates: Vec<i32>,
}

/// The accepted events of a run.
pub(super) struct Stage {
    schema: SchemaRef,
    batches: Vec<Batch>,
    columns: Columns,
}

/// The batch under construction.
struct Columns {
    event_id: StringBuilder,
    user_id: StringBuilder,
    item_id: StringBuilder,
    ts: TimestampMillisecondBuilder,
    request_id: StringBuilder,
    request_ts: TimestampMillisecondBuilder,
    action: StringBuilder,
    value: Float64Builder,
    position: Int64Builder,
    dates: Vec<i32>,
}

impl Columns {
    fn new() -> Self {
        let time = || TimestampMillisecondBuilder::new().with_timezone("UTC");
        Self {
            event_id: StringBuilder::new(),
            user_id: StringBuilder::new(),
            item_id: StringBuilder::new(),
            ts: time(),
            request_id: StringBuilder::new(),
            request_ts: time(),
            action: StringBuilder::new(),
            value: Float64Builder::new(),
            position: Int64Builder::new(),
            dates: Vec::new(),
        }
    }
}

impl Stage {
    pub(super) fn new() -> Self {
        let fields = EVENTS_SCHEMA.fields().iter();
        let fields = fields.filter(|f| f.name() != "source" && f.name() != EVENT_DATE).cloned();
        Self {
            schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
            batches: Vec::new(),
            columns: Columns::new(),
        }
    }

    /// Adds an event of the current file. Events come in order of source and position.
    pub(super) fn push(
        &mut self,
        file: usize,
        id: &str,
        event: &Event<'_>,
        position: u64,
    ) -> Result<(), IngestError> {
        let columns = &mut self.columns;
        columns.event_id.append_value(id);
        columns.user_id.append_value(&event.user_id);
        columns.item_id.append_value(&event.item_id);
        columns.ts.append_value(event.ts);
        columns.request_id.append_option(event.request_id.as_deref());
        columns.request_ts.append_option(event.request_ts);
        columns.action.append_value(&event.action);
        columns.value.append_option(event.value);
        columns.position.append_value(i64::try_from(position).unwrap_or(i64::MAX));
        columns.dates.push(i32::try_from(event.ts.div_euclid(MS_PER_DAY)).unwrap_or(i32::MAX));
        if columns.dates.len() == BATCH_ROWS { self.end_batch(file) } else { Ok(()) }
    }

    /// Closes the batch of the current file.
    pub(super) fn end_batch(&mut self, file: usize) -> Result<(), IngestError> {
        let mut done = std::mem::replace(&mut self.columns, Columns::new());
        if done.dates.is_empty() {
            return Ok(());
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(done.event_id.finish()),
            Arc::new(done.user_id.finish()),
            Arc::new(done.item_id.finish()),
            Arc::new(done.ts.finish()),
            Arc::new(done.request_id.finish()),
            Arc::new(done.request_ts.finish()),
            Arc::new(done.action.finish()),
            Arc::new(done.value.finish()),
            Arc::new(done.position.finish()),
        ];
        let rows = RecordBatch::try_new(self.schema.clone(), columns).map_err(build)?;
        self.batches.push(Batch { file, rows, dates: done.dates });
        Ok(())
    }

    /// Writes one shard for each date, without the events that are in `stored` or came before. Returns for
    /// each file how many of its events were duplicates, and the items of the new events in order of their
    /// first. On an error the caller deletes the shards pushed to `shards` so far.
    pub(super) async fn write(
        self,
        root: &Root,
        stored: Option<&Snapshot>,
        sources: &[String],
        interrupt: &Interrupt,
        shards: &mut Vec<NewShard>,
    ) -> Result<(Vec<u64>, Vec<String>), IngestError> {
        let mut by_date: BTreeMap<i32, Vec<(usize, usize)>> = BTreeMap::new();
        for (at, batch) in self.batches.iter().enumerate() {
            for (row, &date) in batch.dates.iter().enumerate() {
                by_date.entry(date).or_default().push((at, row));
            }
        }
        let stored_shards = stored.map(shards_by_date).unwrap_or_default();
        let ids: Vec<&StringArray> =
            self.batches.iter().map(|b| b.rows.column(0).as_string::<i32>()).collect();
        let rows: Vec<&RecordBatch> = self.batches.iter().map(|b| &b.rows).collect();
        let mut new: Vec<Vec<bool>> = self.batches.iter().map(|b| vec![false; b.dates.len()]).collect();
        let mut duplicates = vec![0; sources.len()];
        for (&date, events) in &by_date {
            if interrupt.requested() {
                return Err(IngestError::Interrupted);
            }
            let partition = date_text(date);
            let stored_ids = match (stored, stored_shards.get(partition.as_str())) {
                (Some(snapshot), Some(shards)) => stored_ids(snapshot, shards).await?,
                _ => Vec::new(),
            };
            let mut known: HashSet<&str> = HashSet::with_capacity(events.len());
            for batch in &stored_ids {
                known.extend(batch.column(0).as_string::<i32>().iter().flatten());
            }
            let mut kept = Vec::with_capacity(events.len());
            for &(batch, row) in events {
                if known.insert(ids[batch].value(row)) {
                    new[batch][row] = true;
                    kept.push((batch, row));
                } else {
                    duplicates[self.batches[batch].file] += 1;
                }
            }
            if !kept.is_empty() {
                let mut writer =
                    ShardWriter::create(root, EVENTS, "part", &EVENTS_SCHEMA, &[(EVENT_DATE, &partition)])?;
                for chunk in kept.chunks(BATCH_ROWS) {
                    writer.write(&self.gather(&rows, chunk, sources)?)?;
                }
                shards.push(writer.finish()?);
            }
        }
        Ok((duplicates, self.items(&new)))
    }

    /// The rows at `places` with their source, as the shards have them.
    fn gather(
        &self,
        batches: &[&RecordBatch],
        places: &[(usize, usize)],
        sources: &[String],
    ) -> Result<RecordBatch, IngestError> {
        let rows = interleave_record_batch(batches, places).map_err(build)?;
        let sources = places.iter().map(|&(batch, _)| sources[self.batches[batch].file].as_str());
        let mut fields = rows.schema().fields().to_vec();
        let mut columns = rows.columns().to_vec();
        if let Ok(at) = EVENTS_SCHEMA.index_of("source") {
            fields.push(EVENTS_SCHEMA.fields()[at].clone());
            columns.push(Arc::new(StringArray::from_iter_values(sources)));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(build)
    }

    fn items(&self, new: &[Vec<bool>]) -> Vec<String> {
        let mut seen: HashSet<&str> = HashSet::new();
        let mut items = Vec::new();
        for (batch, new) in self.batches.iter().zip(new) {
            let ids = batch.rows.column(2).as_string::<i32>();
            for row in (0..ids.len()).filter(|&row| new[row]) {
                if seen.insert(ids.value(row)) {
                    items.push(ids.value(row).to_owned());
                }
            }
        }
        items
    }
}

/// `2026-11-22`.
fn date_text(days: i32) -> String {
    chrono::NaiveDate::from_epoch_days(days).map_or_else(|| days.to_string(), |date| date.to_string())
}

fn shards_by_date(snapshot: &Snapshot) -> BTreeMap<&str, Vec<&schemas::delta::Shard>> {
    let mut by_date: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for shard in snapshot.shards() {
        if let Some(Some(date)) = shard.partition.get(EVENT_DATE) {
            by_date.entry(date).or_default().push(shard);
        }
    }
    by_date
}

async fn stored_ids(
    snapshot: &Snapshot,
    shards: &[&schemas::delta::Shard],
) -> Result<Vec<RecordBatch>, IngestError> {
    let mut batches = Vec::new();
    for shard in shards {
        batches.extend(snapshot.read_shard(shard, &["event_id"]).await?);
    }
    Ok(batches)
}
