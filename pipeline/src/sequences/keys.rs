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
//! Two passes make them. [`Keys`] goes with the scan, and writes codes for what only the whole log can tell
//! (`codes.rs`). [`Resolve`] goes with a bucket: it puts ranks and indexes in the place of codes, and drops the
//! copies that the end of the scan has brought to light (`duplicates.rs`).

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Int64Array, StringBuilder, StringViewArray,
    TimestampMillisecondArray, UInt8Array, UInt32Array, UInt64Array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef, Schema, SchemaRef, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::cast::{
    as_int64_array, as_primitive_array, as_string_array, as_string_view_array, as_uint8_array,
    as_uint32_array, as_uint64_array,
};
use schemas::cli::Progress;
use schemas::config::{Sequences, Ties};
use schemas::hash::{hash64, mix64};
use schemas::tables::{EVENT_DATE, EVENTS_SCHEMA};

use super::codes::{Codes, ItemCodes, ResolvedItems};
use super::duplicates::{Handfuls, Place, Repeated, Suspects};
use super::refresh::Fresh;
use super::report::Counts;
use crate::engine::{Pass, PassSpec, bucket_field};

pub(super) const MS_PER_DAY: i64 = 86_400_000;

/// The columns that the keys are made from, in the order of [`Records`].
pub(super) const INPUT_COLUMNS: [&str; 10] = [
    EVENT_DATE,
    "event_id",
    "source",
    "position",
    "ts",
    "user_id",
    "item_id",
    "action",
    "request_id",
    "request_ts",
];

/// `events` as it is scanned: texts as views, which costs no copy.
pub(super) fn scan_schema() -> Schema {
    let view = |field: &FieldRef| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    };
    Schema::new(EVENTS_SCHEMA.fields().iter().map(view).collect::<Vec<_>>())
}

/// A batch with the [`INPUT_COLUMNS`], in their order.
pub(super) struct Records<'a> {
    pub date: &'a Date32Array,
    pub event: &'a StringViewArray,
    pub source: &'a StringViewArray,
    pub position: &'a Int64Array,
    pub ts: &'a TimestampMillisecondArray,
    pub user: &'a StringViewArray,
    pub item: &'a StringViewArray,
    pub action: &'a StringViewArray,
    pub request: &'a StringViewArray,
    pub request_ts: &'a TimestampMillisecondArray,
}

impl<'a> Records<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            date: as_primitive_array::<Date32Type>(batch.column(0))?,
            event: as_string_view_array(batch.column(1))?,
            source: as_string_view_array(batch.column(2))?,
            position: as_int64_array(batch.column(3))?,
            ts: as_primitive_array::<TimestampMillisecondType>(batch.column(4))?,
            user: as_string_view_array(batch.column(5))?,
            item: as_string_view_array(batch.column(6))?,
            action: as_string_view_array(batch.column(7))?,
            request: as_string_view_array(batch.column(8))?,
            request_ts: as_primitive_array::<TimestampMillisecondType>(batch.column(9))?,
        })
    }
}

/// The columns of a keyed event on its way to a bucket; `source` and `item` are codes.
pub(super) static KEYED_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        bucket_field(),
        Field::new("user_id", DataType::Utf8, false),
        Field::new("ts", DataType::Int64, false),
        Field::new("source", DataType::UInt32, false),
        Field::new("position", DataType::Int64, false),
        Field::new("event", DataType::UInt64, false),
        Field::new("item", DataType::UInt32, false),
        Field::new("request", DataType::UInt64, false),
        Field::new("request_ts", DataType::Int64, false),
        Field::new("fresh", DataType::UInt8, false),
    ]))
});

/// About the bytes of a keyed event.
pub(super) const KEYED_ROW_BYTES: usize = 64;

/// The columns of an event that can be sorted: the key first, in its order.
pub(super) static SORTABLE_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        bucket_field(),
        Field::new("user_id", DataType::Utf8, false),
        Field::new("ts", DataType::Int64, false),
        Field::new("tie", DataType::UInt64, false),
        Field::new("source", DataType::UInt32, false),
        Field::new("position", DataType::Int64, false),
        Field::new("event", DataType::UInt64, false),
        Field::new("item_index", DataType::UInt32, false),
        Field::new("request", DataType::UInt64, false),
        Field::new("request_ts", DataType::Int64, false),
        Field::new("fresh", DataType::UInt8, false),
    ]))
});

/// "No request time", an instant that no log may have.
pub(super) const NO_TIME: i64 = i64::MIN;

/// "No request id".
pub(super) const NO_REQUEST: u64 = 0;

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
    pub progress: Mutex<Progress>,
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
            handfuls: Handfuls::new(Arc::clone(&self.learned.suspects)),
            actions: self.actions.clone(),
            shards: self.shards,
            since: self.since.clone(),
            all_users: self.all_users,
            fresh: self.fresh,
            counts: Counts::default(),
        })
    }
}

struct KeyPass {
    learned: Arc<Learned>,
    handfuls: Handfuls,
    actions: Vec<String>,
    shards: u64,
    since: Option<Arc<Fresh>>,
    all_users: bool,
    fresh: bool,
    counts: Counts,
}

impl KeyPass {
    fn is_wanted(&self, action: &str) -> bool {
        self.actions.is_empty() || self.actions.iter().any(|a| a == action)
    }

    fn is_wanted_user(&self, user: u64) -> bool {
        self.all_users || self.since.as_ref().is_none_or(|since| since.has_user(user))
    }

    fn is_fresh(&self, date: i32, event: u64) -> bool {
        self.fresh || self.since.as_ref().is_some_and(|since| since.moved(date, event) > 0)
    }
}

impl Pass for KeyPass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let records = Records::of(batch)?;
        let rows = batch.num_rows();
        let mut keyed = Keyed::with_capacity(rows);
        let items = self.learned.items.codes(records.item);
        let mut source = 0;
        for (row, item) in items.into_iter().enumerate() {
            let event = hash64(records.event.value(row).as_bytes());
            self.handfuls.push(records.date.value(row), event)?;
            // Neighbours nearly always share their source.
            if row == 0 || records.source.value(row) != records.source.value(row - 1) {
                source = self.learned.sources.code(records.source.value(row));
            }
            if !self.is_wanted(records.action.value(row)) {
                self.counts.filtered += 1;
                continue;
            }
            let user = records.user.value(row);
            let user_hash = hash64(user.as_bytes());
            if !self.is_wanted_user(user_hash) {
                self.counts.other_users += 1;
                continue;
            }
            keyed.bucket.push((user_hash % self.shards) as u32);
            keyed.user.append_value(user);
            keyed.ts.push(records.ts.value(row));
            keyed.source.push(source);
            keyed.position.push(records.position.value(row));
            keyed.event.push(event);
            keyed.item.push(item);
            keyed
                .request
                .push(request_hash(records.request.is_valid(row).then(|| records.request.value(row))));
            let request_ts = records.request_ts.is_valid(row).then(|| records.request_ts.value(row));
            keyed.request_ts.push(request_ts.unwrap_or(NO_TIME));
            keyed.fresh.push(u8::from(self.is_fresh(records.date.value(row), event)));
        }
        self.counts.events += rows as u64;
        self.learned.progress.lock().unwrap_or_else(PoisonError::into_inner).add(rows as u64);
        Ok(if keyed.bucket.is_empty() { Vec::new() } else { vec![keyed.finish()?] })
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        self.handfuls.finish()?;
        let counts = std::mem::take(&mut self.counts);
        self.learned.counts.lock().unwrap_or_else(PoisonError::into_inner).add(&counts);
        Ok(Vec::new())
    }
}

/// Columns of [`KEYED_SCHEMA`] in the making.
struct Keyed {
    bucket: Vec<u32>,
    user: StringBuilder,
    ts: Vec<i64>,
    source: Vec<u32>,
    position: Vec<i64>,
    event: Vec<u64>,
    item: Vec<u32>,
    request: Vec<u64>,
    request_ts: Vec<i64>,
    fresh: Vec<u8>,
}

impl Keyed {
    fn with_capacity(rows: usize) -> Self {
        Self {
            bucket: Vec::with_capacity(rows),
            user: StringBuilder::with_capacity(rows, rows * 8),
            ts: Vec::with_capacity(rows),
            source: Vec::with_capacity(rows),
            position: Vec::with_capacity(rows),
            event: Vec::with_capacity(rows),
            item: Vec::with_capacity(rows),
            request: Vec::with_capacity(rows),
            request_ts: Vec::with_capacity(rows),
            fresh: Vec::with_capacity(rows),
        }
    }

    fn finish(mut self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(self.bucket)),
            Arc::new(self.user.finish()),
            Arc::new(Int64Array::from(self.ts)),
            Arc::new(UInt32Array::from(self.source)),
            Arc::new(Int64Array::from(self.position)),
            Arc::new(UInt64Array::from(self.event)),
            Arc::new(UInt32Array::from(self.item)),
            Arc::new(UInt64Array::from(self.request)),
            Arc::new(Int64Array::from(self.request_ts)),
            Arc::new(UInt8Array::from(self.fresh)),
        ];
        Ok(RecordBatch::try_new(KEYED_SCHEMA.clone(), columns)?)
    }
}

/// What the whole scan has told, for the passes over its buckets.
#[derive(Debug)]
pub(super) struct Resolution {
    /// Code of a source → its rank.
    pub ranks: Vec<u32>,
    pub items: ResolvedItems,
    pub repeated: Repeated,
    /// The seed of the `shuffled` order.
    pub shuffle: Option<u64>,
    /// Where copies are counted.
    pub counts: Mutex<Counts>,
}

impl Resolution {
    /// The seed of the configured tie policy.
    pub(super) fn shuffle(config: &Sequences) -> Option<u64> {
        (config.ties == Ties::Shuffled).then_some(config.tie_seed)
    }
}

/// The pass from [`KEYED_SCHEMA`] to [`SORTABLE_SCHEMA`]. Memory: one batch.
#[derive(Debug)]
pub(super) struct Resolve(pub Arc<Resolution>);

impl PassSpec for Resolve {
    fn name(&self) -> &'static str {
        "Resolve"
    }

    fn schema(&self) -> SchemaRef {
        SORTABLE_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(ResolvePass { resolution: Arc::clone(&self.0), duplicates: 0 })
    }
}

struct ResolvePass {
    resolution: Arc<Resolution>,
    duplicates: u64,
}

impl Pass for ResolvePass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let Resolution { ranks, items, repeated, shuffle, .. } = &*self.resolution;
        let source = as_uint32_array(batch.column(3))?;
        let event = as_uint64_array(batch.column(5))?;
        let item = as_uint32_array(batch.column(6))?;
        let tie: UInt64Array = match *shuffle {
            Some(seed) => event.values().iter().map(|&event| mix64(seed, event)).collect(),
            None => UInt64Array::from(vec![0; batch.num_rows()]),
        };
        let mut columns = batch.columns().to_vec();
        // The scan gave these codes, so each has a rank and an index.
        let rank: UInt32Array = source.values().iter().map(|&code| ranks[code as usize]).collect();
        columns[3] = Arc::new(rank);
        if !items.all_known() {
            let index: UInt32Array = item.values().iter().map(|&code| items.index(code)).collect();
            columns[6] = Arc::new(index);
        }
        columns.insert(3, Arc::new(tie));
        if repeated.is_empty() {
            return Ok(vec![RecordBatch::try_new(SORTABLE_SCHEMA.clone(), columns)?]);
        }
        let (kept, fresh) = self.without_copies(batch)?;
        columns[10] = Arc::new(fresh);
        let resolved = RecordBatch::try_new(SORTABLE_SCHEMA.clone(), columns)?;
        Ok(vec![filter_record_batch(&resolved, &kept)?])
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        let mut counts = self.resolution.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.duplicates += std::mem::take(&mut self.duplicates);
        Ok(Vec::new())
    }
}

impl ResolvePass {
    /// Which rows are no later copies, and which are fresh.
    fn without_copies(&mut self, batch: &RecordBatch) -> Result<(BooleanArray, UInt8Array)> {
        let repeated = &self.resolution.repeated;
        let user = as_string_array(batch.column(1))?;
        let ts = as_int64_array(batch.column(2))?;
        let source = as_uint32_array(batch.column(3))?;
        let position = as_int64_array(batch.column(4))?;
        let event = as_uint64_array(batch.column(5))?;
        let item = as_uint32_array(batch.column(6))?;
        let request = as_uint64_array(batch.column(7))?;
        let was_fresh = as_uint8_array(batch.column(9))?;
        let rows = 0..batch.num_rows();
        let kept: BooleanArray = rows
            .clone()
            .map(|row| {
                let place = Place {
                    event: event.value(row),
                    ts: ts.value(row),
                    source: source.value(row),
                    position: position.value(row),
                    item: item.value(row),
                    request: request.value(row),
                    user: hash64(user.value(row).as_bytes()),
                };
                Some(!repeated.is_later_copy(&place))
            })
            .collect();
        self.duplicates += kept.false_count() as u64;
        let still = |row: usize| u8::from(!repeated.is_stale(event.value(row), ts.value(row)));
        let fresh = rows.map(|row| was_fresh.value(row) & still(row)).collect();
        Ok((kept, fresh))
    }
}
