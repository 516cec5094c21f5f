//! From an event to what is sorted: integers wherever a text is not the answer itself.
//!
//! The order of a history is *total*, so that two builds are equal whatever the threads or the memory:
//!
//! | key | | |
//! |---|---|---|
//! | `bucket` | `hash64(user_id) % shards` | one shard each |
//! | `user_id` | text | a user's events stand together, users sorted inside a shard |
//! | `ts` | milliseconds | event time |
//! | `tie` | `file-order`: 0; `shuffled`: `mix64(tie_seed, hash64(event_id))` | the policy for equal times |
//! | `source` | rank of the source, compared as text | so `part-10` stands before `part-9` |
//! | `position` | number | place in the source |
//! | `event` | `hash64(event_id)` | a file that was replaced under its own name has other events at its places |
//!
//! [`Keys`] goes with the scan, and writes codes for what only the whole log can tell (`codes.rs`). A bucket's
//! sort puts ranks and indexes in their place, and drops the copies that the end of the scan has brought to
//! light (`resolve.rs`).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::{
    Array, ArrayRef, FixedSizeBinaryArray, Float64Array, Int64Array, StringViewArray,
    TimestampMillisecondArray, UInt32Array,
};
use arrow::buffer::Buffer;
use arrow::compute::take;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::cast::{as_float64_array, as_int64_array, as_primitive_array, as_string_view_array};
use schemas::hash::hash64;
use schemas::tables::EVENTS_SCHEMA;
use terminal::Progress;

use super::codes::{Codes, ItemCodes};
use super::event::{Event, NO_REQUEST, NO_TIME};
use super::refresh::Fresh;
use super::report::Counts;
use crate::engine::{PartitionBuffers, Pass, PassSpec, Suspects, bucket_schema, scattered_schema};

pub(super) const MS_PER_DAY: i64 = 86_400_000;

/// The columns that the keys are made from, in the order of [`Records`].
pub(super) const INPUT_COLUMNS: [&str; 9] =
    ["event_id", "source", "position", "ts", "user_id", "item_id", "action", "request_id", "request_ts"];

/// The column that comes after them where a smallest value is asked for.
pub(super) const VALUE_COLUMN: &str = "value";

/// `events` as it is scanned: texts as views, which costs no copy.
pub(crate) fn scan_schema() -> Schema {
    let view = |field: &FieldRef| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    };
    Schema::new(EVENTS_SCHEMA.fields().iter().map(view).collect::<Vec<_>>())
}

/// A batch with the [`INPUT_COLUMNS`], in their order, and perhaps the [`VALUE_COLUMN`].
pub(super) struct Records<'a> {
    pub event: &'a StringViewArray,
    pub source: &'a StringViewArray,
    pub position: &'a Int64Array,
    pub ts: &'a TimestampMillisecondArray,
    pub user: &'a StringViewArray,
    pub item: &'a StringViewArray,
    pub action: &'a StringViewArray,
    pub request: &'a StringViewArray,
    pub request_ts: &'a TimestampMillisecondArray,
    pub value: Option<&'a Float64Array>,
}

impl<'a> Records<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            event: as_string_view_array(batch.column(0))?,
            source: as_string_view_array(batch.column(1))?,
            position: as_int64_array(batch.column(2))?,
            ts: as_primitive_array::<TimestampMillisecondType>(batch.column(3))?,
            user: as_string_view_array(batch.column(4))?,
            item: as_string_view_array(batch.column(5))?,
            action: as_string_view_array(batch.column(6))?,
            request: as_string_view_array(batch.column(7))?,
            request_ts: as_primitive_array::<TimestampMillisecondType>(batch.column(8))?,
            value: batch.columns().get(9).map(|column| as_float64_array(column)).transpose()?,
        })
    }

    /// The event's date, in days: that of its time. (Reading the column would take longer.)
    pub(super) fn date(&self, row: usize) -> i32 {
        date(self.ts.value(row))
    }

    /// The event's value, where it has one and the column was read.
    fn value(&self, row: usize) -> Option<f64> {
        self.value.filter(|values| values.is_valid(row)).map(|values| values.value(row))
    }

    /// Whether a row's source is that of the row before. It nearly always is, and then the two views point to
    /// one text.
    fn same_source(&self, row: usize) -> bool {
        let views = self.source.views();
        row > 0 && (views[row] == views[row - 1] || self.source.value(row) == self.source.value(row - 1))
    }
}

/// The UTC date of a time, in days since 1970.
pub(super) fn date(ts: i64) -> i32 {
    ts.div_euclid(MS_PER_DAY) as i32
}

/// A keyed event on its way to a bucket: the user and the packed [`Event`], `source` and `item` being codes.
pub(super) static KEYED_SCHEMA: LazyLock<SchemaRef> =
    LazyLock::new(|| scattered_schema("user_id", "event", Event::BYTES));

/// A keyed event in its bucket.
pub(super) static BUCKET_SCHEMA: LazyLock<SchemaRef> =
    LazyLock::new(|| bucket_schema("user_id", "event", Event::BYTES));

/// A request's id as a number. Two requests of one user have the same with a probability of 2⁻⁶⁴.
pub(super) fn request_hash(id: Option<&str>) -> u64 {
    id.map_or(NO_REQUEST, |id| hash64(id.as_bytes()).max(1))
}

/// What the scan learns about the whole log, shared by its streams.
#[derive(Debug)]
pub(super) struct Learned {
    pub sources: Codes,
    pub items: ItemCodes,
    pub suspects: Arc<Suspects>,
    pub counts: Mutex<Counts>,
    /// The time of the newest event, in epoch milliseconds.
    pub newest: AtomicI64,
    /// Events of which more was decoded than what a filter asks.
    pub decoded: AtomicU64,
    pub progress: Mutex<Progress>,
}

/// Which events are fit to be learned under a condition (`[conditions]`): by their action and value.
#[derive(Debug, Clone)]
pub(crate) struct Quality {
    pub actions: Vec<String>,
    pub min_value: Option<f64>,
}

impl Quality {
    /// An event without a value has none that is large enough.
    fn fits(&self, action: &str, value: Option<f64>) -> bool {
        let wanted = self.actions.is_empty() || self.actions.iter().any(|a| a == action);
        wanted && self.min_value.is_none_or(|min| value.is_some_and(|value| value >= min))
    }
}

/// The pass over scanned events: filters actions (and, for a refresh, users), and computes the keys.
/// Memory: one batch.
#[derive(Debug)]
pub(super) struct Keys {
    pub learned: Arc<Learned>,
    pub actions: Vec<String>,
    pub shards: u64,
    /// `build-sequences --since`: what is fresh.
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
            actions: self.actions.clone(),
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
    actions: Vec<String>,
    shards: u64,
    since: Option<Arc<Fresh>>,
    all_users: bool,
    fresh: bool,
    quality: Option<Quality>,
    counts: Counts,
}

impl KeyPass {
    /// Whether an event of the user with this hash is wanted; counts it where it is not.
    fn is_wanted(&mut self, action: &str, user: u64) -> bool {
        if !self.actions.is_empty() && !self.actions.iter().any(|a| a == action) {
            self.counts.filtered += 1;
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
        let records = Records::of(batch)?;
        let rows = batch.num_rows();
        let items = self.learned.items.codes(records.item);
        let mut source = 0;
        let mut buckets = Vec::with_capacity(rows);
        let mut events = Vec::with_capacity(rows * Event::BYTES);
        // The rows that are wanted, once one is not.
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
            if !self.is_wanted(action, user) {
                wanted.get_or_insert_with(|| (0..row as u32).collect());
                continue;
            }
            if let Some(wanted) = &mut wanted {
                wanted.push(row as u32);
            }
            buckets.push((user % self.shards) as u32);
            let request = records.request.is_valid(row).then(|| records.request.value(row));
            let request_ts = records.request_ts.is_valid(row).then(|| records.request_ts.value(row));
            let event = Event {
                ts: records.ts.value(row),
                position: records.position.value(row),
                event,
                request: request_hash(request),
                request_ts: request_ts.unwrap_or(NO_TIME),
                item,
                ..Event::default()
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
        let events = FixedSizeBinaryArray::try_new(Event::BYTES as i32, Buffer::from_vec(events), None)?;
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
