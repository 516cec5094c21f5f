//! Writes batches of rows to shards, one a bucket.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type, UInt64Type};
use datafusion::common::DataFusionError;
use store::Root;
use store::commit::{ShardWriter, Uncommitted};

use crate::engine::{Pass, PassSpec, bucket_field};
use crate::histories::{BuildError, Builder, FilterCounts, Output, Passed, ReadLog, RequestIntervals};

/// One row for each finished shard, with the facts that a driver needs for the commit and its checks.
pub static SHARDS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        bucket_field(),
        Field::new("path", DataType::Utf8, false),
        Field::new("bytes", DataType::UInt64, false),
        Field::new("rows", DataType::UInt64, false),
        Field::new("owned", DataType::UInt64, false),
    ]))
});

/// Writes `part-<bucket>-<uuid>.parquet` for every bucket of its input and yields [`SHARDS_SCHEMA`]. The rows
/// of a bucket come together, so a partition has one file open at a time. Memory: one row group.
#[derive(Debug)]
struct WriteShards {
    written: Arc<WrittenShards>,
    /// Number of events, or examples, that a batch of rows accounts for.
    owned: fn(&RecordBatch) -> u64,
}

/// The sums of the shards that were written.
pub(crate) struct Wrote {
    /// Rows of the shards.
    pub rows: u64,
    /// Events, or examples, that the rows account for.
    pub owned: u64,
    /// Copies of events that were dropped.
    pub copies: u64,
    /// Events that the filters of whole histories took out.
    pub left_out: FilterCounts,
    /// The request intervals of the histories.
    pub intervals: Option<RequestIntervals>,
}

/// Makes rows of the histories of a log, and writes their shards. `owned` returns the number of events, or examples,
/// that a batch of rows accounts for.
pub(crate) async fn write<O: Output>(
    builder: &Builder<'_>,
    log: &ReadLog,
    output: &Arc<O>,
    owned: fn(&RecordBatch) -> u64,
    written: &Arc<WrittenShards>,
) -> Result<Wrote, BuildError> {
    let write = WriteShards { written: Arc::clone(written), owned };
    let Passed { batches: shards, copies, left_out, intervals } =
        builder.pass(log, output, Arc::new(write)).await?;
    let sum = |column: usize| -> u64 {
        let column = shards.iter().map(|batch| batch.column(column).as_primitive::<UInt64Type>());
        column.flat_map(|column| column.values()).sum()
    };
    Ok(Wrote { rows: sum(3), owned: sum(4), copies, left_out, intervals })
}

/// The finished shards of all threads.
#[derive(Debug)]
pub(crate) struct WrittenShards {
    table: String,
    schema: SchemaRef,
    root: Root,
    shards: Mutex<Uncommitted>,
}

impl WrittenShards {
    /// Empty; for shards of a table with these columns.
    pub(crate) fn new(table: &str, schema: &SchemaRef, root: &Root) -> Self {
        let shards = Mutex::new(Uncommitted::new(root, table));
        Self { table: table.to_owned(), schema: Arc::clone(schema), root: root.clone(), shards }
    }

    /// The shards, by path.
    pub(crate) fn take(&self) -> Uncommitted {
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shards = std::mem::replace(&mut *shards, Uncommitted::new(&self.root, &self.table));
        shards.sort();
        shards
    }
}

impl PassSpec for WriteShards {
    fn name(&self) -> &'static str {
        "WriteShards"
    }

    fn schema(&self) -> SchemaRef {
        SHARDS_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(WritePass { written: Arc::clone(&self.written), owned: self.owned, open: None })
    }
}

struct WritePass {
    written: Arc<WrittenShards>,
    owned: fn(&RecordBatch) -> u64,
    open: Option<Open>,
}

struct Open {
    bucket: u32,
    writer: ShardWriter,
    owned: u64,
}

impl Pass for WritePass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>, DataFusionError> {
        let mut done = Vec::new();
        let buckets = batch.column(0).as_primitive::<UInt32Type>();
        let mut start = 0;
        for run in buckets.values().chunk_by(|a, b| a == b) {
            done.extend(self.write(run[0], &batch.slice(start, run.len()))?);
            start += run.len();
        }
        Ok(done)
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>, DataFusionError> {
        Ok(self.close()?.into_iter().collect())
    }
}

impl WritePass {
    /// Appends rows of one bucket. If they are the first of another bucket, finishes the previous shard and describes it.
    fn write(&mut self, bucket: u32, rows: &RecordBatch) -> Result<Option<RecordBatch>, DataFusionError> {
        let done = match &self.open {
            Some(open) if open.bucket != bucket => self.close()?,
            _ => None,
        };
        let open = match &mut self.open {
            Some(open) => open,
            none => {
                let WrittenShards { table, schema, root, .. } = &*self.written;
                let writer = ShardWriter::create(root, table, &format!("part-{bucket:05}"), schema, &[])
                    .map_err(BuildError::from)?;
                none.insert(Open { bucket, writer, owned: 0 })
            }
        };
        open.writer.write(rows).map_err(BuildError::from)?;
        open.owned += (self.owned)(rows);
        Ok(done)
    }

    fn close(&mut self) -> Result<Option<RecordBatch>, DataFusionError> {
        let Some(Open { bucket, writer, owned }) = self.open.take() else { return Ok(None) };
        let shard = writer.finish().map_err(BuildError::from)?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![bucket])),
            Arc::new(StringArray::from(vec![shard.path.as_str()])),
            Arc::new(UInt64Array::from(vec![shard.bytes])),
            Arc::new(UInt64Array::from(vec![shard.rows])),
            Arc::new(UInt64Array::from(vec![owned])),
        ];
        self.written.shards.lock().unwrap_or_else(PoisonError::into_inner).push(shard);
        Ok(Some(RecordBatch::try_new(SHARDS_SCHEMA.clone(), columns).map_err(DataFusionError::from)?))
    }
}
