//! A local shuffle: distributes rows to buckets, in memory while they fit and in scratch files beyond.
//!
//! A row is a key text and a packed record of fixed size: scattering it is one write, and the layout in the file is that
//! in memory, so reading back copies nothing.
//!
//! **Memory.** Waiting rows take at most the limit given to [`Buckets::new`]: at most half of it in the batches that the
//! streams are filling, the rest in the buckets. Rows for a bucket that already holds its share go to scratch files.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, ArrayRef, FixedSizeBinaryArray, StringArray, UInt32Array};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, ToByteSlice};
use arrow::record_batch::RecordBatch;
use datafusion::common::cast::{as_fixed_size_binary_array, as_string_view_array, as_uint32_array};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream;

use super::scratch::{Scratch, ScratchChunk};

/// Maximum rows of a batch.
const BATCH_ROWS: usize = 8_192;
/// Minimum rows of a full batch, however little memory there is.
const BATCH_ROWS_MIN: usize = 16;
/// Typical bytes of a row besides its record: an offset and the text.
const ROW_BYTES: usize = 16;

/// The columns of scattered rows: the bucket, a key text as a view, a record of `record_bytes` bytes.
pub(crate) fn scattered_schema(key: &str, record: &str, record_bytes: usize) -> SchemaRef {
    row_schema(key, DataType::Utf8View, record, record_bytes)
}

/// The columns of rows read back from a bucket.
pub(crate) fn bucket_schema(key: &str, record: &str, record_bytes: usize) -> SchemaRef {
    row_schema(key, DataType::Utf8, record, record_bytes)
}

fn row_schema(key: &str, text: DataType, record: &str, record_bytes: usize) -> SchemaRef {
    Arc::new(Schema::new(vec![
        bucket_field(),
        Field::new(key, text, false),
        Field::new(record, DataType::FixedSizeBinary(record_bytes as i32), false),
    ]))
}

/// The first column of every batch of a shuffle.
pub(crate) fn bucket_field() -> Field {
    Field::new("bucket", DataType::UInt32, false)
}

/// Rows by bucket.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// The schema of the batches read back from a bucket.
    schema: SchemaRef,
    record_bytes: usize,
    /// Bytes that a bucket may hold in memory.
    share: usize,
    /// Approximate rows of a full batch.
    batch_rows: usize,
    scratch: Scratch,
    buckets: Vec<Mutex<Bucket>>,
}

#[derive(Debug, Default)]
struct Bucket {
    held: Vec<Rows>,
    held_bytes: usize,
    spilled: Vec<Spilled>,
    rows: u64,
}

/// Rows in columns: their records, and their concatenated texts with `i32` offsets.
#[derive(Debug, Clone)]
struct Rows {
    records: Buffer,
    offsets: Buffer,
    texts: Buffer,
}

/// [`Rows`] in the scratch file.
#[derive(Debug, Clone, Copy)]
struct Spilled {
    chunk: ScratchChunk,
    record_bytes: usize,
    offset_bytes: usize,
}

impl Buckets {
    /// `count` empty buckets, which return rows of [`bucket_schema`]. `streams` streams scatter into them at once; streams
    /// and buckets together hold about `memory_bytes`.
    pub(crate) fn new(
        schema: SchemaRef,
        record_bytes: usize,
        count: usize,
        streams: usize,
        memory_bytes: usize,
    ) -> Self {
        let row_bytes = record_bytes + ROW_BYTES;
        let (count, streams) = (count.max(1), streams.max(1));
        let batch_rows = (memory_bytes / 2 / (count * streams * row_bytes)).clamp(BATCH_ROWS_MIN, BATCH_ROWS);
        // Records precede the offsets, which must be aligned.
        assert!(record_bytes > 0 && record_bytes.is_multiple_of(align_of::<i32>()));
        Self {
            schema,
            record_bytes,
            share: memory_bytes.saturating_sub(batch_rows * count * streams * row_bytes) / count,
            batch_rows,
            scratch: Scratch::new(streams),
            buckets: (0..count).map(|_| Mutex::default()).collect(),
        }
    }

    /// The number of buckets.
    pub(crate) fn count(&self) -> usize {
        self.buckets.len()
    }

    /// Rows of all buckets.
    pub(crate) fn rows(&self) -> u64 {
        (0..self.count()).map(|bucket| self.lock(bucket).rows).sum()
    }

    /// Bytes that went to the scratch file.
    pub(crate) fn spilled_bytes(&self) -> u64 {
        self.scratch.bytes()
    }

    fn lock(&self, bucket: usize) -> MutexGuard<'_, Bucket> {
        self.buckets[bucket].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the rows of `filling` into the bucket, or into the scratch file if the bucket holds its share.
    fn add(&self, bucket: usize, filling: &mut Filling) -> Result<()> {
        let bytes = filling.bytes();
        let mut to = self.lock(bucket);
        to.rows += filling.rows() as u64;
        if to.held_bytes + bytes <= self.share {
            to.held_bytes += bytes;
            to.held.push(std::mem::take(filling).into_rows());
            return Ok(());
        }
        drop(to);
        let offsets = filling.offsets[..].to_byte_slice();
        let spilled = Spilled {
            chunk: self.scratch.append(&[&filling.records, offsets, &filling.texts])?,
            record_bytes: filling.records.len(),
            offset_bytes: offsets.len(),
        };
        self.lock(bucket).spilled.push(spilled);
        filling.clear();
        Ok(())
    }

    fn read(&self, spilled: Spilled) -> Result<Rows> {
        let bytes = self.scratch.read(spilled.chunk)?;
        let texts = spilled.record_bytes + spilled.offset_bytes;
        Ok(Rows {
            records: bytes.slice_with_length(0, spilled.record_bytes),
            offsets: bytes.slice_with_length(spilled.record_bytes, spilled.offset_bytes),
            texts: bytes.slice(texts),
        })
    }

    /// Rows as a batch.
    fn batch(&self, bucket: u32, rows: Rows) -> Result<RecordBatch> {
        let records = FixedSizeBinaryArray::try_new(self.record_bytes as i32, rows.records, None)?;
        let offsets = OffsetBuffer::new(ScalarBuffer::from(rows.offsets));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_value(bucket, records.len())),
            Arc::new(StringArray::try_new(offsets, rows.texts, None)?),
            Arc::new(records),
        ];
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

/// The rows that one stream collects for one bucket.
#[derive(Debug, Default)]
struct Filling {
    records: Vec<u8>,
    /// 0, then the end of each text.
    offsets: Vec<i32>,
    texts: Vec<u8>,
}

impl Filling {
    fn rows(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    fn bytes(&self) -> usize {
        self.records.len() + self.offsets.len() * size_of::<i32>() + self.texts.len()
    }

    fn reserve(&mut self, rows: usize, record_bytes: usize) {
        self.records.reserve(rows * record_bytes);
        self.offsets.reserve(rows + 1);
        self.offsets.push(0);
    }

    fn push(&mut self, text: &str, record: &[u8]) -> Result<()> {
        self.records.extend_from_slice(record);
        self.texts.extend_from_slice(text.as_bytes());
        let end = i32::try_from(self.texts.len());
        self.offsets.push(end.map_err(|e| DataFusionError::External(e.into()))?);
        Ok(())
    }

    fn clear(&mut self) {
        self.records.clear();
        self.offsets.truncate(1);
        self.texts.clear();
    }

    fn into_rows(self) -> Rows {
        Rows {
            records: self.records.into(),
            offsets: Buffer::from_vec(self.offsets),
            texts: self.texts.into(),
        }
    }
}

/// Scatters one stream's rows into the buckets.
#[derive(Debug)]
pub(crate) struct Scatter {
    buckets: Arc<Buckets>,
    filling: Vec<Filling>,
}

impl Scatter {
    /// A scatter into `buckets`.
    pub(crate) fn new(buckets: Arc<Buckets>) -> Self {
        let filling = (0..buckets.count()).map(|_| Filling::default()).collect();
        Self { buckets, filling }
    }

    /// Distributes the rows of a batch of [`scattered_schema`].
    pub(crate) fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let bucket = as_uint32_array(batch.column(0))?.values();
        let texts = as_string_view_array(batch.column(1))?;
        let records = as_fixed_size_binary_array(batch.column(2))?;
        let record_bytes = self.buckets.record_bytes;
        let records = records.value_data().chunks_exact(record_bytes);
        for ((row, &bucket), record) in bucket.iter().enumerate().zip(records) {
            let filling = &mut self.filling[bucket as usize];
            if filling.offsets.is_empty() {
                filling.reserve(self.buckets.batch_rows, record_bytes);
            }
            filling.push(texts.value(row), record)?;
            if filling.bytes() >= self.buckets.batch_rows * (record_bytes + ROW_BYTES) {
                self.buckets.add(bucket as usize, filling)?;
            }
        }
        Ok(())
    }

    /// Moves the remaining rows into the buckets.
    pub(crate) fn finish(mut self) -> Result<()> {
        for (bucket, filling) in self.filling.iter_mut().enumerate() {
            if filling.rows() > 0 {
                self.buckets.add(bucket, filling)?;
            }
        }
        Ok(())
    }
}

/// A leaf operator that reads the buckets, one partition a bucket. It can run several times.
#[derive(Debug)]
pub(crate) struct BucketExec {
    buckets: Arc<Buckets>,
    properties: Arc<PlanProperties>,
}

impl BucketExec {
    /// Reads `buckets`, which must be complete.
    pub(crate) fn new(buckets: Arc<Buckets>) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&buckets.schema)),
            Partitioning::UnknownPartitioning(buckets.count()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Self { buckets, properties }
    }
}

impl DisplayAs for BucketExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buckets: {}", self.buckets.count())
    }
}

impl ExecutionPlan for BucketExec {
    fn name(&self) -> &str {
        "Buckets"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let buckets = Arc::clone(&self.buckets);
        let (spilled, held) = {
            let bucket = buckets.lock(partition);
            (bucket.spilled.clone(), bucket.held.clone())
        };
        let schema = Arc::clone(&buckets.schema);
        let parts = held.into_iter().map(Part::Held).chain(spilled.into_iter().map(Part::Spilled));
        let batches = parts.map(move |part| {
            let rows = match part {
                Part::Held(rows) => rows,
                Part::Spilled(spilled) => buckets.read(spilled)?,
            };
            buckets.batch(partition as u32, rows)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches))))
    }
}

enum Part {
    Held(Rows),
    Spilled(Spilled),
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, StringViewArray};
    use arrow::datatypes::UInt32Type;
    use futures::TryStreamExt;

    use super::*;

    /// Every row comes back once, in its bucket, whether it was spilled or not.
    async fn round_trip(memory_bytes: usize) -> u64 {
        let schema = scattered_schema("text", "number", 4);
        let buckets = Arc::new(Buckets::new(bucket_schema("text", "number", 4), 4, 7, 2, memory_bytes));
        for stream in 0..2u32 {
            let mut scatter = Scatter::new(Arc::clone(&buckets));
            for start in (0..5_000u32).step_by(1_000) {
                let numbers = (start..start + 1_000).map(|n| n * 2 + stream);
                let bucket = UInt32Array::from_iter_values(numbers.clone().map(|n| n % 5));
                let text = StringViewArray::from_iter_values(numbers.clone().map(|n| n.to_string()));
                let record = FixedSizeBinaryArray::try_from_iter(numbers.map(u32::to_le_bytes)).unwrap();
                let columns: Vec<ArrayRef> = vec![Arc::new(bucket), Arc::new(text), Arc::new(record)];
                scatter.push(&RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()).unwrap();
            }
            scatter.finish().unwrap();
        }
        assert_eq!(buckets.rows(), 10_000);
        let leaf = BucketExec::new(Arc::clone(&buckets));
        let mut seen = vec![];
        for bucket in 0..7 {
            let batches: Vec<RecordBatch> =
                leaf.execute(bucket, Arc::default()).unwrap().try_collect().await.unwrap();
            for batch in batches {
                assert!(
                    batch.column(0).as_primitive::<UInt32Type>().values().iter().all(|&b| b == bucket as u32)
                );
                let texts = batch.column(1).as_string::<i32>().iter().flatten();
                let numbers = batch.column(2).as_fixed_size_binary().iter().flatten();
                for (text, number) in texts.zip(numbers) {
                    let number = u32::from_le_bytes(number.try_into().unwrap());
                    assert_eq!((text, number % 5), (number.to_string().as_str(), bucket as u32));
                    seen.push(number);
                }
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..10_000).collect::<Vec<_>>());
        buckets.spilled_bytes()
    }

    #[tokio::test]
    async fn rows_come_back_in_their_buckets() {
        assert_eq!(round_trip(100 << 20).await, 0);
        assert!(round_trip(20_000).await > 50_000);
    }
}
