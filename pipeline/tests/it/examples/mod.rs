//! Logs in which every event has an item of its own, their catalogues, and the examples built from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, ListBuilder, RecordBatch, StringArray,
    StringBuilder, TimestampMillisecondArray, UInt32Array, new_null_array,
};
use arrow::datatypes::{DataType, Float32Type, TimestampMillisecondType, UInt8Type, UInt32Type};
use schemas::hash::mix64;
use schemas::tables::{ITEMS, SFT_SCHEMA, items_schema};
use store::Root;
use store::commit::{Change, CommitMode, ShardWriter, commit};

use crate::common::{DAY_MS, Event};

/// Events with bursts, ties and several actions; some records have a copy with other contents.
pub(crate) fn log(seed: u64, n: u64) -> Vec<Event> {
    let users = 4 + n / 40;
    let mut now = vec![20_000 * DAY_MS; users as usize];
    let mut events: Vec<Event> = Vec::new();
    for i in 0..n {
        let r = mix64(seed, i);
        let user = (r % users) as usize;
        now[user] += [0, 400, 5_000, 60_000, 1_000_000, 40_000_000][(r / 1_000 % 6) as usize];
        let event = Event {
            event_id: format!("e{seed:x}-{i}"),
            user: format!("user{user}"),
            item: format!("i{i:05}"),
            ts: now[user],
            request: r.is_multiple_of(3).then(|| format!("r{}", i / 10)),
            request_ts: None,
            action: ["play", "like", "skip"][(r / 1_000_000 % 3) as usize].into(),
            value: (!r.is_multiple_of(5)).then_some((r / 100_000_000 % 6) as f64),
            source: format!("file{}", r / 10_000_000 % 3),
            position: i as i64,
        };
        events.push(event.clone());
        match i % 29 {
            7 => events.push(event),
            15 => events.push(Event { action: "like".into(), value: Some(0.0), ..event }),
            23 => events.push(Event { value: None, ..event }),
            _ => {}
        }
    }
    events
}

/// One item.
pub(crate) struct Item {
    pub(crate) id: String,
    pub(crate) genres: Vec<&'static str>,
    pub(crate) release_ts: Option<i64>,
    pub(crate) active: bool,
}

/// The items of a log, except every seventh.
pub(crate) fn catalogue(seed: u64, n: u64) -> Vec<Item> {
    let genres = ["Rock", "Jazz", "Folk", "Drum & Bass", "Polka"];
    (0..n)
        .filter(|i| i % 7 != 3)
        .map(|i| {
            let r = mix64(seed ^ 1, i);
            let mut of_item: Vec<&str> = genres[..4].to_vec();
            of_item.retain(|genre| mix64(r, genre.len() as u64).is_multiple_of(3));
            if i % 50 == 1 {
                of_item.push(genres[4]);
            }
            Item {
                id: format!("i{i:05}"),
                genres: of_item,
                // Some items are not released yet, and so younger than any age.
                release_ts: (!r.is_multiple_of(4)).then(|| match r / 1_000 % 6 {
                    0 => 21_000 * DAY_MS,
                    _ => 20_000 * DAY_MS + (r / 10 % 60) as i64 * 3_600_000,
                }),
                active: !r.is_multiple_of(11),
            }
        })
        .collect()
}

/// Commits the items as the table `items`, with the indexes 1, 2, …; some items have one genre twice.
pub(crate) async fn write_items(root: &Root, items: &[Item]) {
    let schema = items_schema(["genre"]);
    let mut genres = ListBuilder::new(StringBuilder::new());
    for item in items {
        let again = item.genres.first().filter(|_| item.genres.len() == 2);
        item.genres.iter().chain(again).for_each(|genre| genres.values().append_value(genre));
        genres.append(true);
    }
    let genres = genres.finish();
    let DataType::List(element) = schema.field_with_name("genre").unwrap().data_type() else {
        panic!("no list")
    };
    let (_, offsets, values, _) = genres.into_parts();
    let release = TimestampMillisecondArray::from_iter(items.iter().map(|item| item.release_ts));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(items.iter().map(|item| &item.id))),
        Arc::new(UInt32Array::from_iter_values(1..=items.len() as u32)),
        new_null_array(&DataType::Utf8, items.len()),
        Arc::new(release.with_timezone("UTC")),
        Arc::new(BooleanArray::from_iter(items.iter().map(|item| Some(item.active)))),
        Arc::new(arrow::array::ListArray::new(Arc::clone(element), offsets, values, None)),
    ];
    let mut writer = ShardWriter::create(root, ITEMS, "part", &schema, &[]).unwrap();
    writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
    let change = Change {
        table: ITEMS,
        schema: &schema,
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: &[writer.finish().unwrap()],
        properties: BTreeMap::new(),
        read_version: root.snapshot(ITEMS).await.unwrap().map(|snapshot| snapshot.version()),
        transactions: Default::default(),
    };
    commit(root, change).await.unwrap();
}

/// One row of `sft/<condition>`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Example {
    pub(crate) user: String,
    pub(crate) item: Vec<u32>,
    pub(crate) ts: Vec<i64>,
    pub(crate) session: Vec<u32>,
    pub(crate) request: Vec<u32>,
    pub(crate) matches: Vec<bool>,
    pub(crate) target_item: u32,
    pub(crate) target_ts: i64,
    pub(crate) visible_len: u32,
    pub(crate) role: u8,
    pub(crate) condition: String,
    pub(crate) weight: f32,
}

/// The examples of every shard, by the part of its name before the UUID.
pub(crate) async fn examples(root: &Root, table: &str) -> BTreeMap<String, Vec<Example>> {
    let snapshot = root.require(table, "pipeline build-sft").await.unwrap();
    let columns: Vec<&str> = SFT_SCHEMA.fields().iter().map(|f| f.name().as_str()).collect();
    let mut shards = BTreeMap::new();
    for shard in snapshot.shards() {
        let mut examples = Vec::new();
        for batch in snapshot.read_shard(shard, &columns).await.unwrap() {
            fn list<T: ArrowPrimitiveType>(batch: &RecordBatch, column: usize, row: usize) -> Vec<T::Native> {
                batch.column(column).as_list::<i32>().value(row).as_primitive::<T>().values().to_vec()
            }
            let number = |column: usize, row| batch.column(column).as_primitive::<UInt32Type>().value(row);
            for row in 0..batch.num_rows() {
                examples.push(Example {
                    user: batch.column(0).as_string::<i32>().value(row).into(),
                    item: list::<UInt32Type>(&batch, 1, row),
                    ts: list::<TimestampMillisecondType>(&batch, 2, row),
                    session: list::<UInt32Type>(&batch, 3, row),
                    request: list::<UInt32Type>(&batch, 4, row),
                    matches: batch
                        .column(5)
                        .as_list::<i32>()
                        .value(row)
                        .as_boolean()
                        .iter()
                        .flatten()
                        .collect(),
                    target_item: number(6, row),
                    target_ts: batch.column(7).as_primitive::<TimestampMillisecondType>().value(row),
                    visible_len: number(8, row),
                    role: batch.column(9).as_primitive::<UInt8Type>().value(row),
                    condition: batch.column(10).as_string::<i32>().value(row).into(),
                    weight: batch.column(11).as_primitive::<Float32Type>().value(row),
                });
            }
        }
        assert_eq!(shard.rows, Some(examples.len() as u64), "the log counts the rows of {}", shard.path);
        let bucket = shard.path.split('-').take(2).collect::<Vec<_>>().join("-");
        assert!(shards.insert(bucket, examples).is_none(), "one shard for each bucket");
    }
    shards
}
