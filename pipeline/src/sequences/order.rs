//! A bucket's events in the order of their histories.
//!
//! Most of what a sort does is known before: events come in almost the order in which they happened, and a
//! bucket has few users. So the rows are dealt to their users (a counting sort by the rank of the user's
//! text), each user's rows are put in order by their keys where they are not already, and the batches are
//! gathered once, in the final order.
//!
//! **Memory.** The bucket, 16 bytes a row, and one batch. A bucket that does not fit into its share is left to
//! DataFusion's external sort instead, which spills sorted runs and merges them: slower, with the same rows.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, StringArray};
use arrow::compute::interleave_record_batch;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::cast::{as_int64_array, as_string_array, as_uint32_array, as_uint64_array};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{StreamExt, stream};

use super::keys::{HISTORY_SCHEMA, key_order};

/// Rows of a batch in order.
const BATCH_ROWS: usize = 8_192;

/// Sorts every partition of `input`, each one bucket of [`HISTORY_SCHEMA`], by [`key_order`].
#[derive(Debug)]
pub(super) struct BucketSortExec {
    input: Arc<dyn ExecutionPlan>,
    /// Bytes that a bucket may have in memory.
    memory_bytes: usize,
    properties: Arc<PlanProperties>,
}

impl BucketSortExec {
    pub(super) fn new(input: Arc<dyn ExecutionPlan>, memory_bytes: usize) -> Self {
        let orders = [key_order()];
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new_with_orderings(HISTORY_SCHEMA.clone(), orders),
            input.properties().output_partitioning().clone(),
            EmissionType::Final,
            input.properties().boundedness,
        ));
        Self { input, memory_bytes, properties }
    }
}

impl DisplayAs for BucketSortExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BucketSort: memory_bytes={}", self.memory_bytes)
    }
}

impl ExecutionPlan for BucketSortExec {
    fn name(&self) -> &str {
        "BucketSort"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), self.memory_bytes)))
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), self.memory_bytes)))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (input, memory_bytes) = (Arc::clone(&self.input), self.memory_bytes);
        let sorted = async move {
            let mut rows = input.execute(partition, Arc::clone(&context))?;
            let (mut batches, mut bytes) = (Vec::new(), 0);
            while let Some(batch) = rows.next().await {
                let batch = batch?;
                bytes += batch.get_array_memory_size() + ORDER_ROW_BYTES * batch.num_rows();
                batches.push(batch);
                if bytes > memory_bytes {
                    // Let go of what is there, and start again with the sort that spills.
                    drop((rows, batches));
                    let sort = SortExec::new(key_order(), input).with_preserve_partitioning(true);
                    return sort.execute(partition, context);
                }
            }
            drop(rows);
            let sorted = Sorted::new(batches)?;
            let batches = stream::try_unfold(sorted, |mut sorted| async move {
                Ok(sorted.next()?.map(|batch| (batch, sorted)))
            });
            Ok(Box::pin(RecordBatchStreamAdapter::new(HISTORY_SCHEMA.clone(), batches))
                as SendableRecordBatchStream)
        };
        let stream = stream::once(sorted);
        let stream = futures::TryStreamExt::try_flatten(stream);
        Ok(Box::pin(RecordBatchStreamAdapter::new(HISTORY_SCHEMA.clone(), stream)))
    }
}

/// What the order of a row costs.
const ORDER_ROW_BYTES: usize = 16;

/// Where a row is: batch and row.
type At = (u32, u32);

/// A bucket's rows and their order.
struct Sorted {
    batches: Vec<RecordBatch>,
    order: Vec<At>,
    given: usize,
}

impl Sorted {
    fn new(batches: Vec<RecordBatch>) -> Result<Self> {
        let columns = batches.iter().map(Key::of).collect::<Result<Vec<_>>>()?;
        let (mut order, ends) = by_user(&columns);
        let mut start = 0;
        for end in ends {
            let rows = &mut order[start..end];
            let compare = |one: &At, two: &At| {
                let (a, b) = (&columns[one.0 as usize], &columns[two.0 as usize]);
                let (one, two) = (one.1 as usize, two.1 as usize);
                a.ts[one].cmp(&b.ts[two]).then_with(|| a.rest(one).cmp(&b.rest(two)))
            };
            if !rows.is_sorted_by(|one, two| compare(one, two).is_le()) {
                rows.sort_unstable_by(compare);
            }
            start = end;
        }
        Ok(Self { batches, order, given: 0 })
    }

    /// The next rows, or nothing at the end.
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let end = (self.given + BATCH_ROWS).min(self.order.len());
        let rows = &self.order[self.given..end];
        if rows.is_empty() {
            return Ok(None);
        }
        self.given = end;
        let at: Vec<(usize, usize)> = rows.iter().map(|&(b, r)| (b as usize, r as usize)).collect();
        let batches: Vec<&RecordBatch> = self.batches.iter().collect();
        Ok(Some(interleave_record_batch(&batches, &at)?))
    }
}

/// The rows dealt to their users, users in text order; where each user's rows end.
fn by_user(columns: &[Key<'_>]) -> (Vec<At>, Vec<usize>) {
    let rows = columns.iter().map(|c| c.user.len()).sum();
    let mut numbers: HashMap<&str, u32, foldhash::fast::FixedState> = HashMap::default();
    let mut counts: Vec<usize> = Vec::new();
    let mut users: Vec<u32> = Vec::with_capacity(rows);
    for columns in columns {
        for row in 0..columns.user.len() {
            let next = counts.len() as u32;
            let number = *numbers.entry(columns.user.value(row)).or_insert(next);
            if number == next {
                counts.push(0);
            }
            counts[number as usize] += 1;
            users.push(number);
        }
    }
    let mut sorted: Vec<(&str, u32)> = numbers.into_iter().collect();
    sorted.sort_unstable();
    let (mut starts, mut ends, mut start) = (vec![0; counts.len()], Vec::with_capacity(counts.len()), 0);
    for (_, number) in sorted {
        starts[number as usize] = start;
        start += counts[number as usize];
        ends.push(start);
    }
    let mut order = vec![(0, 0); rows];
    let all =
        columns.iter().zip(0..).flat_map(|(c, batch)| (0..c.user.len() as u32).map(move |r| (batch, r)));
    for (number, at) in users.into_iter().zip(all) {
        let place = &mut starts[number as usize];
        order[*place] = at;
        *place += 1;
    }
    (order, ends)
}

/// The key columns of a batch.
struct Key<'a> {
    user: &'a StringArray,
    ts: &'a [i64],
    tie: &'a [u64],
    source: &'a [u32],
    position: &'a [i64],
    event: &'a [u64],
}

impl<'a> Key<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            user: as_string_array(batch.column(1))?,
            ts: as_int64_array(batch.column(2))?.values(),
            tie: as_uint64_array(batch.column(3))?.values(),
            source: as_uint32_array(batch.column(4))?.values(),
            position: as_int64_array(batch.column(5))?.values(),
            event: as_uint64_array(batch.column(6))?.values(),
        })
    }

    /// What orders events at the same time.
    fn rest(&self, row: usize) -> (u64, u32, i64, u64) {
        (self.tie[row], self.source[row], self.position[row], self.event[row])
    }
}
