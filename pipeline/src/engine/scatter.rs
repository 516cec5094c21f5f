//! A local shuffle: rows to buckets, in memory while they fit and in one scratch file beyond.
//!
//! **Memory.** Rows that wait in memory are at most the limit given to [`Buckets::new`]: half of it in full
//! batches of a bucket, half in the batches that the streams are filling. A bucket that holds its share of
//! the former writes all of it to the scratch file as one Arrow IPC stream, so what is read back is
//! contiguous.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{BatchCoalescer, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::cast::as_uint32_array;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::stream;

use super::{Chunk, Scratch};

/// The rows of a full batch.
const BATCH_ROWS: usize = 8_192;

/// Rows by bucket.
#[derive(Debug)]
pub struct Buckets {
    /// Of the rows, `bucket` first.
    schema: SchemaRef,
    /// Of what is held: without `bucket`.
    stored: SchemaRef,
    /// Bytes that a bucket may hold in memory.
    share: usize,
    /// Rows of a batch under construction.
    batch_rows: usize,
    scratch: Scratch,
    buckets: Vec<Mutex<Bucket>>,
}

#[derive(Debug, Default)]
struct Bucket {
    held: Vec<RecordBatch>,
    held_bytes: usize,
    chunks: Vec<Chunk>,
    rows: u64,
}

impl Buckets {
    /// `count` empty buckets for rows of `schema`, whose first column is the `bucket`. `streams` scatter into
    /// them at once and together with them hold about `memory_bytes`; a row is taken to have `row_bytes`.
    pub fn new(
        schema: SchemaRef,
        count: usize,
        streams: usize,
        memory_bytes: usize,
        row_bytes: usize,
    ) -> Self {
        let stored = Arc::new(Schema::new(schema.fields()[1..].to_vec()));
        let count = count.max(1);
        let filling = memory_bytes / 2 / (count * streams.max(1) * row_bytes.max(1));
        Self {
            schema,
            stored,
            share: memory_bytes / 2 / count,
            batch_rows: filling.clamp(16, BATCH_ROWS),
            scratch: Scratch::default(),
            buckets: (0..count).map(|_| Mutex::default()).collect(),
        }
    }

    /// The number of buckets.
    pub fn count(&self) -> usize {
        self.buckets.len()
    }

    /// Rows of all buckets.
    pub fn rows(&self) -> u64 {
        (0..self.count()).map(|bucket| self.lock(bucket).rows).sum()
    }

    /// Bytes that went to the scratch file.
    pub fn spilled_bytes(&self) -> u64 {
        self.scratch.bytes()
    }

    fn lock(&self, bucket: usize) -> MutexGuard<'_, Bucket> {
        self.buckets[bucket].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, bucket: usize, batch: RecordBatch) -> Result<()> {
        let mut to = self.lock(bucket);
        to.rows += batch.num_rows() as u64;
        to.held_bytes += batch.get_array_memory_size();
        to.held.push(batch);
        if to.held_bytes > self.share {
            let mut writer = StreamWriter::try_new(Vec::with_capacity(to.held_bytes + 4096), &self.stored)?;
            for batch in to.held.drain(..) {
                writer.write(&batch)?;
            }
            to.held_bytes = 0;
            to.chunks.push(self.scratch.append(&writer.into_inner()?)?);
        }
        Ok(())
    }

    /// A chunk's batches.
    fn read(&self, chunk: Chunk) -> Result<Vec<RecordBatch>> {
        let mut bytes = self.scratch.read(chunk)?;
        let mut decoder = StreamDecoder::new();
        let mut batches = Vec::new();
        while !bytes.is_empty() {
            batches.extend(decoder.decode(&mut bytes)?);
        }
        Ok(batches)
    }

    /// Puts the `bucket` back in front.
    fn whole(&self, bucket: u32, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from_value(bucket, batch.num_rows()))];
        columns.extend(batch.columns().iter().cloned());
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

/// One stream's way into the buckets.
pub struct Scatter {
    buckets: Arc<Buckets>,
    filling: Vec<Option<BatchCoalescer>>,
}

impl fmt::Debug for Scatter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scatter").field("buckets", &self.buckets.count()).finish_non_exhaustive()
    }
}

impl Scatter {
    /// An empty stream's.
    pub fn new(buckets: Arc<Buckets>) -> Self {
        let filling = (0..buckets.count()).map(|_| None).collect();
        Self { buckets, filling }
    }

    /// Deals the rows of a batch.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let bucket = as_uint32_array(batch.column(0))?.values();
        let count = self.buckets.count();
        let mut starts = vec![0u32; count + 1];
        bucket.iter().for_each(|&b| starts[b as usize + 1] += 1);
        for b in 0..count {
            starts[b + 1] += starts[b];
        }
        let (mut next, mut order) = (starts.clone(), vec![0u32; bucket.len()]);
        for (row, &b) in bucket.iter().enumerate() {
            order[next[b as usize] as usize] = row as u32;
            next[b as usize] += 1;
        }
        let rows: Vec<usize> = (1..batch.num_columns()).collect();
        let dealt = take_record_batch(&batch.project(&rows)?, &UInt32Array::from(order))?;
        for b in 0..count {
            let (start, end) = (starts[b] as usize, starts[b + 1] as usize);
            if start == end {
                continue;
            }
            let filling = self.filling[b].get_or_insert_with(|| {
                BatchCoalescer::new(Arc::clone(&self.buckets.stored), self.buckets.batch_rows)
            });
            filling.push_batch(dealt.slice(start, end - start))?;
            while let Some(full) = filling.next_completed_batch() {
                self.buckets.add(b, full)?;
            }
        }
        Ok(())
    }

    /// Hands over what is left.
    pub fn finish(self) -> Result<()> {
        for (b, filling) in self.filling.into_iter().enumerate() {
            let Some(mut filling) = filling else { continue };
            filling.finish_buffered_batch()?;
            while let Some(rest) = filling.next_completed_batch() {
                self.buckets.add(b, rest)?;
            }
        }
        Ok(())
    }
}

/// Reads the buckets: a leaf with one partition for each. It can be run again.
#[derive(Debug)]
pub struct BucketExec {
    buckets: Arc<Buckets>,
    properties: Arc<PlanProperties>,
}

impl BucketExec {
    /// All of `buckets`, which are complete.
    pub fn new(buckets: Arc<Buckets>) -> Self {
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
        let (chunks, held) = {
            let bucket = buckets.lock(partition);
            (bucket.chunks.clone(), bucket.held.clone())
        };
        let parts = chunks.into_iter().map(Part::Chunk).chain([Part::Held(held)]);
        let batches = parts.flat_map(move |part| {
            let batches = match part {
                Part::Chunk(chunk) => buckets.read(chunk),
                Part::Held(held) => Ok(held),
            };
            let whole = |batches: Vec<RecordBatch>| -> Vec<_> {
                batches.iter().map(|batch| buckets.whole(partition as u32, batch)).collect()
            };
            batches.map_or_else(|error| vec![Err(error)], whole)
        });
        let schema = Arc::clone(&self.buckets.schema);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches))))
    }
}

enum Part {
    Chunk(Chunk),
    Held(Vec<RecordBatch>),
}

/// The column that every batch of a shuffle begins with.
pub(crate) fn bucket_field() -> Field {
    Field::new("bucket", DataType::UInt32, false)
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, StringArray};
    use arrow::datatypes::UInt32Type;
    use futures::TryStreamExt;

    use super::*;

    /// Every row comes back once, in its bucket, whether it was spilled or not.
    async fn round_trip(memory_bytes: usize) -> u64 {
        let schema = Arc::new(Schema::new(vec![bucket_field(), Field::new("text", DataType::Utf8, false)]));
        let buckets = Arc::new(Buckets::new(Arc::clone(&schema), 7, 2, memory_bytes, 20));
        for stream in 0..2u32 {
            let mut scatter = Scatter::new(Arc::clone(&buckets));
            for start in (0..5_000u32).step_by(1_000) {
                let numbers = (start..start + 1_000).map(|n| n * 2 + stream);
                let bucket = UInt32Array::from_iter_values(numbers.clone().map(|n| n % 5));
                let text = StringArray::from_iter_values(numbers.map(|n| n.to_string()));
                let columns: Vec<ArrayRef> = vec![Arc::new(bucket), Arc::new(text)];
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
                let numbers = batch.column(1).as_string::<i32>().iter().flatten();
                let numbers: Vec<u32> = numbers.map(|text| text.parse().unwrap()).collect();
                assert!(numbers.iter().all(|n| n % 5 == bucket as u32));
                seen.extend(numbers);
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
