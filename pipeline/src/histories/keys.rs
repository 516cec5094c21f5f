//! Turns scanned events into sort keys: integers, except for the user's id.
//!
//! The order of a history is *total*, so two builds are equal whatever the threads or the memory:
//!
//! | key | | |
//! |---|---|---|
//! | `bucket` | `hash64(user_id) % shards` | one shard each |
//! | `user_id` | text | a user's events stand together, users sorted inside a shard |
//! | `ts` | milliseconds | event time |
//! | `tie` | `file-order`: 0; `shuffled`: `mix64(tie_seed, hash64(event_id))` | the policy for equal times |
//! | `source` | rank of the source, compared as text | so `part-10` stands before `part-9` |
//! | `place` | number | place in the source: position, then element of the record |
//! | `event` | `hash64(event_id)` | a file that was replaced under its own name has other events at its places |
//!
//! [`Keys`] runs within the scan. Ranks of sources and indexes of new items are known only after the whole log has been
//! read, so it writes codes for them (`codes.rs`). A bucket's sort replaces the codes by ranks and indexes, and drops the
//! copies that were found at the end of the scan (`resolve.rs`).

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use arrow::array::{Array, ArrayRef, FixedSizeBinaryArray, UInt32Array};
use arrow::buffer::Buffer;
use arrow::compute::take;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use schemas::hash::hash64;
use schemas::history::LogFilters;

use super::counts::Counts;
use super::event::{NO_TIME, PackedEvent, request_hash};
use super::event_columns::{KEYED_SCHEMA, ScannedEvents};
use super::fresh::Fresh;
use super::learned::Learned;
use crate::engine::{PartitionBuffers, Pass, PassSpec};

/// Which events are fit to be learned under a condition (`[conditions]`): by their action and value.
#[derive(Debug, Clone)]
pub(crate) struct Quality {
    pub actions: Vec<String>,
    pub min_value: Option<f64>,
}

impl Quality {
    /// Whether an event is fit; one without a value does not reach a configured smallest value.
    fn fits(&self, action: &str, value: Option<f64>) -> bool {
        let wanted = self.actions.is_empty() || self.actions.iter().any(|a| a == action);
        wanted && self.min_value.is_none_or(|min| value.is_some_and(|value| value >= min))
    }
}

/// The pass over scanned events: applies the filters that judge an event by itself (and, for a refresh, takes users),
/// and computes the keys.
/// Memory: one batch.
#[derive(Debug)]
pub(super) struct Keys {
    pub learned: Arc<Learned>,
    pub filters: Arc<LogFilters>,
    pub shards: u64,
    /// `build-sequences --since`: the fresh events.
    pub since: Option<Arc<Fresh>>,
    /// Whether the histories of users without fresh events are wanted too.
    pub all_users: bool,
    /// Whether all events of this scan are fresh.
    pub fresh: bool,
    /// `build-sft`: which events are fit.
    pub quality: Option<Quality>,
}

impl PassSpec for Keys {
    fn name(&self) -> &'static str {
        "EventKeys"
    }

    fn schema(&self) -> SchemaRef {
        KEYED_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(KeyPass {
            learned: Arc::clone(&self.learned),
            suspects: PartitionBuffers::new(Arc::clone(&self.learned.suspects)),
            filters: Arc::clone(&self.filters),
            shards: self.shards,
            since: self.since.clone(),
            all_users: self.all_users,
            fresh: self.fresh,
            quality: self.quality.clone(),
            counts: Counts::default(),
        })
    }
}

struct KeyPass {
    learned: Arc<Learned>,
    suspects: PartitionBuffers,
    filters: Arc<LogFilters>,
    shards: u64,
    since: Option<Arc<Fresh>>,
    all_users: bool,
    fresh: bool,
    quality: Option<Quality>,
    counts: Counts,
}

impl KeyPass {
    /// Whether an event of the user with this hash is wanted; counts the event if it is not.
    fn is_wanted(&mut self, action: &str, value: Option<f64>, ts: i64, user: u64) -> bool {
        if let Some(by) = self.filters.taken_by(action, value, ts) {
            self.counts.take_out(by);
            return false;
        }
        let wanted = self.all_users || self.since.as_ref().is_none_or(|since| since.has_user(user));
        self.counts.other_users += u64::from(!wanted);
        wanted
    }

    fn is_fresh(&self, date: i32, event: u64) -> bool {
        self.fresh || self.since.as_ref().is_some_and(|since| since.moved(date, event) > 0)
    }
}

impl Pass for KeyPass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let records = ScannedEvents::of(batch)?;
        let rows = batch.num_rows();
        let items = self.learned.items.codes(records.item);
        let mut source = 0;
        let mut buckets = Vec::with_capacity(rows);
        let mut events = Vec::with_capacity(rows * PackedEvent::BYTES);
        // The wanted rows; `None` as long as all rows are wanted.
        let mut wanted: Option<Vec<u32>> = None;
        for (row, item) in items.into_iter().enumerate() {
            let event = hash64(records.event.value(row).as_bytes());
            let date = records.date(row);
            self.suspects.push(date, event)?;
            if !records.same_source(row) {
                source = self.learned.sources.code(records.source.value(row));
            }
            let user = hash64(records.user.value(row).as_bytes());
            let action = records.action.value(row);
            if !self.is_wanted(action, records.value(row), records.ts.value(row), user) {
                wanted.get_or_insert_with(|| (0..row as u32).collect());
                continue;
            }
            if let Some(wanted) = &mut wanted {
                wanted.push(row as u32);
            }
            buckets.push((user % self.shards) as u32);
            let request = records.request.is_valid(row).then(|| records.request.value(row));
            let request_ts = records.request_ts.is_valid(row).then(|| records.request_ts.value(row));
            let event = PackedEvent {
                ts: records.ts.value(row),
                place: records.place(row)?,
                event,
                request: request_hash(request),
                request_ts: request_ts.unwrap_or(NO_TIME),
                item,
                ..PackedEvent::default()
            };
            let fit = self.quality.as_ref().is_some_and(|quality| quality.fits(action, records.value(row)));
            let event = event.fit(fit).sourced(source, self.is_fresh(date, event.event));
            events.extend_from_slice(&event.packed());
        }
        if let Some(newest) = arrow::compute::max(records.ts) {
            self.learned.newest.fetch_max(newest, Ordering::Relaxed);
        }
        self.counts.events += rows as u64;
        self.learned.decoded.fetch_add(rows as u64, Ordering::Relaxed);
        self.learned.progress.lock().unwrap_or_else(PoisonError::into_inner).add(rows as u64);
        if buckets.is_empty() {
            return Ok(Vec::new());
        }
        let users = match wanted {
            Some(rows) => take(records.user, &UInt32Array::from(rows), None)?,
            None => Arc::clone(batch.column(4)),
        };
        let events =
            FixedSizeBinaryArray::try_new(PackedEvent::BYTES as i32, Buffer::from_vec(events), None)?;
        let columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from(buckets)), users, Arc::new(events)];
        Ok(vec![RecordBatch::try_new(KEYED_SCHEMA.clone(), columns)?])
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        self.suspects.finish()?;
        let counts = std::mem::take(&mut self.counts);
        self.learned.counts.lock().unwrap_or_else(PoisonError::into_inner).add(&counts);
        Ok(Vec::new())
    }
}
