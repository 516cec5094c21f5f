//! Tables on disk for the tests: events in, rows of `sequences` out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Date32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow::datatypes::{TimestampMillisecondType, UInt8Type, UInt32Type};
use schemas::tables::{EVENT_DATE, EVENTS, EVENTS_SCHEMA, ITEMS, SEQUENCES, SEQUENCES_SCHEMA};
use store::Root;
use store::commit::{Change, CommitMode, ShardWriter, commit};

pub(crate) const DAY_MS: i64 = 86_400_000;

/// One row of `events`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    pub(crate) event_id: String,
    pub(crate) user: String,
    pub(crate) item: String,
    pub(crate) ts: i64,
    pub(crate) request: Option<String>,
    pub(crate) request_ts: Option<i64>,
    pub(crate) action: String,
    pub(crate) value: Option<f64>,
    pub(crate) source: String,
    pub(crate) position: i64,
}

/// The events as a batch of the table's columns.
pub(crate) fn batch(events: &[Event]) -> RecordBatch {
    let text = |of: fn(&Event) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(events.iter().map(of)))
    };
    let columns: Vec<ArrayRef> = vec![
        text(|e| &e.event_id),
        text(|e| &e.user),
        text(|e| &e.item),
        Arc::new(
            TimestampMillisecondArray::from_iter_values(events.iter().map(|e| e.ts)).with_timezone("UTC"),
        ),
        Arc::new(StringArray::from_iter(events.iter().map(|e| e.request.as_deref()))),
        Arc::new(
            TimestampMillisecondArray::from_iter(events.iter().map(|e| e.request_ts)).with_timezone("UTC"),
        ),
        text(|e| &e.action),
        Arc::new(Float64Array::from_iter(events.iter().map(|e| e.value))),
        text(|e| &e.source),
        Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.position))),
        Arc::new(Int32Array::new_null(events.len())),
        Arc::new(Date32Array::from_iter_values(events.iter().map(|e| e.ts.div_euclid(DAY_MS) as i32))),
    ];
    RecordBatch::try_new(EVENTS_SCHEMA.clone(), columns).unwrap()
}

/// Appends the events in one commit, one shard for each date.
pub(crate) async fn append(root: &Root, events: &[Event]) {
    let mut dates: BTreeMap<i64, Vec<Event>> = BTreeMap::new();
    for event in events {
        dates.entry(event.ts.div_euclid(DAY_MS)).or_default().push(event.clone());
    }
    let mut shards = Vec::new();
    for (date, events) in dates {
        let date = chrono::DateTime::from_timestamp_millis(date * DAY_MS).unwrap().date_naive().to_string();
        let partition = [(EVENT_DATE, date.as_str())];
        let mut writer = ShardWriter::create(root, EVENTS, "part", &EVENTS_SCHEMA, &partition).unwrap();
        writer.write(&batch(&events)).unwrap();
        shards.push(writer.finish().unwrap());
    }
    let read_version = root.snapshot(EVENTS).await.unwrap().map(|snapshot| snapshot.version());
    let change = Change {
        table: EVENTS,
        schema: &EVENTS_SCHEMA,
        partition_by: &[EVENT_DATE],
        mode: CommitMode::Append,
        shards: &shards,
        properties: BTreeMap::new(),
        read_version,
        transactions: Default::default(),
    };
    commit(root, change).await.unwrap();
}

/// One row of `sequences`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) user: String,
    pub(crate) item: Vec<u32>,
    pub(crate) ts: Vec<i64>,
    pub(crate) session: Vec<u32>,
    pub(crate) request: Vec<u32>,
    pub(crate) visible: Vec<u32>,
    pub(crate) role: Vec<u8>,
    pub(crate) target_from: usize,
}

/// The rows of every shard of `sequences`, by the part of its name before the UUID.
pub(crate) async fn rows(root: &Root) -> BTreeMap<String, Vec<Row>> {
    rows_of(root, SEQUENCES).await
}

/// The rows of every shard of a table with the columns of `sequences`.
pub(crate) async fn rows_of(root: &Root, table: &str) -> BTreeMap<String, Vec<Row>> {
    let snapshot = root.require(table, "pipeline build-sequences").await.unwrap();
    let columns: Vec<&str> = SEQUENCES_SCHEMA.fields().iter().map(|f| f.name().as_str()).collect();
    let mut shards = BTreeMap::new();
    for shard in snapshot.shards() {
        let mut rows = Vec::new();
        for batch in snapshot.read_shard(shard, &columns).await.unwrap() {
            let u32s = |column: usize, row| -> Vec<u32> {
                batch
                    .column(column)
                    .as_list::<i32>()
                    .value(row)
                    .as_primitive::<UInt32Type>()
                    .values()
                    .to_vec()
            };
            for row in 0..batch.num_rows() {
                rows.push(Row {
                    user: batch.column(0).as_string::<i32>().value(row).into(),
                    item: u32s(1, row),
                    ts: batch
                        .column(2)
                        .as_list::<i32>()
                        .value(row)
                        .as_primitive::<TimestampMillisecondType>()
                        .values()
                        .to_vec(),
                    session: u32s(3, row),
                    request: u32s(4, row),
                    visible: u32s(5, row),
                    role: batch
                        .column(6)
                        .as_list::<i32>()
                        .value(row)
                        .as_primitive::<UInt8Type>()
                        .values()
                        .to_vec(),
                    target_from: batch.column(7).as_primitive::<UInt32Type>().value(row) as usize,
                });
            }
        }
        assert_eq!(shard.rows, Some(rows.len() as u64), "the log counts the rows of {}", shard.path);
        let bucket = shard.path.split('-').take(2).collect::<Vec<_>>().join("-");
        assert!(shards.insert(bucket, rows).is_none(), "one shard for each bucket");
    }
    shards
}

/// Index → item, as `items` has it.
pub(crate) async fn item_ids(root: &Root) -> HashMap<u32, String> {
    let snapshot = root.require(ITEMS, "pipeline build-sequences").await.unwrap();
    let mut ids = HashMap::new();
    for batch in snapshot.read(&["item_index", "item_id"]).await.unwrap() {
        let indexes = batch.column(0).as_primitive::<UInt32Type>();
        let names = batch.column(1).as_string::<i32>();
        for (index, name) in indexes.values().iter().zip(names.iter().flatten()) {
            assert!(ids.insert(*index, name.to_owned()).is_none(), "index {index} occurs twice");
        }
    }
    ids
}
