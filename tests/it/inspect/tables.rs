//! Reads tables, to be tampered with and committed again.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, AsArray, ListArray, PrimitiveArray, RecordBatch, StringArray,
    TimestampMillisecondArray, UInt8Array, UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, TimestampMillisecondType, UInt8Type, UInt32Type};
use schemas::tables::SEQUENCES_SCHEMA;
use store::Root;
use store::commit::{Change, CommitMode, NewShard, ShardWriter, commit};

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
    pub(crate) target_from: u32,
}

impl Row {
    /// Removes position `k` from every list.
    pub(super) fn remove(&mut self, k: usize) {
        self.item.remove(k);
        self.ts.remove(k);
        self.session.remove(k);
        self.request.remove(k);
        self.visible.remove(k);
        self.role.remove(k);
    }
}

pub(crate) type Properties = BTreeMap<String, String>;

/// Reads the rows of each shard, and the table's properties.
pub(crate) async fn rows(root: &Root, table: &str) -> (Vec<Vec<Row>>, Properties) {
    let snapshot = root.require(table, "pipeline build-sequences").await.unwrap();
    let columns: Vec<&str> = SEQUENCES_SCHEMA.fields().iter().map(|f| f.name().as_str()).collect();
    let mut shards = Vec::new();
    for shard in snapshot.shards() {
        let mut rows = Vec::new();
        for batch in snapshot.read_shard(shard, &columns).await.unwrap() {
            for row in 0..batch.num_rows() {
                rows.push(Row {
                    user: batch.column(0).as_string::<i32>().value(row).to_owned(),
                    item: list::<UInt32Type>(&batch, 1, row),
                    ts: list::<TimestampMillisecondType>(&batch, 2, row),
                    session: list::<UInt32Type>(&batch, 3, row),
                    request: list::<UInt32Type>(&batch, 4, row),
                    visible: list::<UInt32Type>(&batch, 5, row),
                    role: list::<UInt8Type>(&batch, 6, row),
                    target_from: batch.column(7).as_primitive::<UInt32Type>().value(row),
                });
            }
        }
        shards.push(rows);
    }
    (shards, snapshot.properties().clone().into_iter().collect())
}

fn list<T: ArrowPrimitiveType>(batch: &RecordBatch, column: usize, row: usize) -> Vec<T::Native> {
    batch.column(column).as_list::<i32>().value(row).as_primitive::<T>().values().to_vec()
}

/// Replaces the table's rows and properties.
pub(super) async fn write_rows(root: &Root, table: &str, shards: &[Vec<Row>], properties: &Properties) {
    let mut written = Vec::new();
    for (s, rows) in shards.iter().enumerate() {
        let mut writer =
            ShardWriter::create(root, table, &format!("part-{s:05}"), &SEQUENCES_SCHEMA, &[]).unwrap();
        writer.write(&batch(rows)).unwrap();
        written.push(writer.finish().unwrap());
    }
    replace(root, table, &SEQUENCES_SCHEMA, &[], &written, properties).await;
}

fn batch(rows: &[Row]) -> RecordBatch {
    let lists = |column: usize, lengths: Vec<usize>, values: ArrayRef| -> ArrayRef {
        let DataType::List(element) = SEQUENCES_SCHEMA.field(column).data_type() else { panic!("no list") };
        let offsets = OffsetBuffer::from_lengths(lengths);
        Arc::new(ListArray::new(Arc::clone(element), offsets, values, None))
    };
    let u32s = |column: usize, of: fn(&Row) -> &Vec<u32>| {
        let values = UInt32Array::from_iter_values(rows.iter().flat_map(of).copied());
        lists(column, rows.iter().map(|row| of(row).len()).collect(), Arc::new(values))
    };
    let ts = TimestampMillisecondArray::from_iter_values(rows.iter().flat_map(|row| row.ts.clone()));
    let roles = UInt8Array::from_iter_values(rows.iter().flat_map(|row| row.role.clone()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.user.as_str()))),
        u32s(1, |row| &row.item),
        lists(2, rows.iter().map(|row| row.ts.len()).collect(), Arc::new(ts.with_timezone("UTC"))),
        u32s(3, |row| &row.session),
        u32s(4, |row| &row.request),
        u32s(5, |row| &row.visible),
        lists(6, rows.iter().map(|row| row.role.len()).collect(), Arc::new(roles)),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.target_from))),
    ];
    RecordBatch::try_new(SEQUENCES_SCHEMA.clone(), columns).unwrap()
}

/// A table with any columns: one batch per shard, with each shard's partition.
pub(super) struct Stored {
    pub(super) batches: Vec<RecordBatch>,
    pub(super) partitions: Vec<BTreeMap<String, String>>,
    pub(super) schema: arrow::datatypes::SchemaRef,
    /// Added to the first shard's row count in the log.
    pub(super) miscounted: u64,
}

/// Reads the table; `schema` names all of its columns.
pub(super) async fn stored(root: &Root, table: &str, schema: &arrow::datatypes::SchemaRef) -> Stored {
    let snapshot = root.require(table, "pipeline ingest").await.unwrap();
    let mut stored =
        Stored { batches: Vec::new(), partitions: Vec::new(), schema: Arc::clone(schema), miscounted: 0 };
    for shard in snapshot.shards() {
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let columns: Vec<&str> = names.filter(|name| !shard.partition.contains_key(*name)).collect();
        let batches = snapshot.read_shard(shard, &columns).await.unwrap();
        stored.batches.push(concat_batches(&batches[0].schema(), &batches).unwrap());
        let partition = shard.partition.iter().map(|(k, v)| (k.clone(), v.clone().unwrap())).collect();
        stored.partitions.push(partition);
    }
    stored
}

impl Stored {
    /// Replaces the column `name` of the first shard, possibly with another type.
    pub(super) fn set(&mut self, name: &str, column: ArrayRef) {
        let schema = self.batches[0].schema();
        let mut columns = self.batches[0].columns().to_vec();
        columns[schema.index_of(name).unwrap()] = column;
        let fields = schema.fields().iter().zip(&columns).map(|(field, column)| {
            field.as_ref().clone().with_data_type(column.data_type().clone()).with_nullable(true)
        });
        let schema = arrow::datatypes::Schema::new(fields.collect::<Vec<_>>());
        self.batches[0] = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
    }

    /// Returns the texts of a column of the first shard.
    pub(super) fn texts(&self, name: &str) -> Vec<Option<String>> {
        let column = self.batches[0].column_by_name(name).unwrap();
        column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
    }

    /// Returns the numbers of a column of the first shard.
    pub(super) fn numbers<T: ArrowPrimitiveType>(&self, name: &str) -> PrimitiveArray<T> {
        self.batches[0].column_by_name(name).unwrap().as_primitive::<T>().clone()
    }

    /// Commits the table in place of its present content.
    pub(super) async fn write(&self, root: &Root, table: &str) {
        let mut shards: Vec<NewShard> = Vec::new();
        for (batch, partition) in self.batches.iter().zip(&self.partitions) {
            let partition: Vec<(&str, &str)> =
                partition.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            let mut writer = ShardWriter::create(root, table, "part", &batch.schema(), &partition).unwrap();
            writer.write(batch).unwrap();
            shards.push(writer.finish().unwrap());
        }
        // The first shard by path is the first in `stored`.
        shards[0].rows += self.miscounted;
        let keys: Vec<&str> =
            self.partitions.first().map_or_else(Vec::new, |p| p.keys().map(String::as_str).collect());
        replace(root, table, &self.schema, &keys, &shards, &Properties::new()).await;
    }
}

async fn replace(
    root: &Root,
    table: &str,
    schema: &arrow::datatypes::SchemaRef,
    partition_by: &[&str],
    shards: &[NewShard],
    properties: &Properties,
) {
    let change = Change {
        table,
        schema,
        partition_by,
        mode: CommitMode::Replace,
        shards,
        properties: properties.clone(),
        read_version: root.snapshot(table).await.unwrap().map(|snapshot| snapshot.version()),
        transactions: BTreeMap::new(),
    };
    commit(root, change).await.unwrap();
}
