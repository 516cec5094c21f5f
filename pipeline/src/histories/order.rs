//! Sorts a bucket's events into histories.
//!
//! The sort uses that events arrive almost in order of time and that a bucket has few users: a counting sort by the rank of
//! the user's text distributes whole rows to their users, and each user's rows are sorted by key only if they are out of
//! order. The filters that need whole histories then take out events (`survivors.rs`), so all that follows sees what is left.
//!
//! **Memory.** The bucket twice (as it comes, and in order), the names of its users, and one batch. A bucket that does not
//! fit into its share is read several times instead: a sample of its rows cuts the users, in text order, into ranges that
//! fit, and the ranges are sorted one after the other. Only the longest single history has to fit. (A bucket of more than
//! some hundred times its share gets fewer ranges than it needs, because the sample is too coarse: such a log needs more
//! `sequences.shards`.)

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, RunArray, StringBuilder, UInt8Array,
    UInt32Array, UInt64Array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int32Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use datafusion::common::cast::{as_fixed_size_binary_array, as_string_array};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::{Stream, StreamExt, TryStreamExt, stream};

use super::columns::{FIT_MARK, FRESH_MARK, HISTORY_SCHEMA};
use super::counts::FilterCounts;
use super::event::{NO_TIME, PackedEvent};
use super::resolve::{Resolution, SortKey};

/// Rows of an output batch.
const BATCH_ROWS: usize = 8_192;

/// Sorts every partition of `input`, which is one bucket of keyed events, into histories ([`HISTORY_SCHEMA`]).
#[derive(Debug)]
pub(super) struct BucketSortExec {
    input: Arc<dyn ExecutionPlan>,
    /// Maximum bytes of a bucket in memory.
    memory_bytes: usize,
    resolution: Arc<Resolution>,
    /// Copies that were dropped, in all partitions.
    copies: Arc<AtomicU64>,
    /// Events that filters took out, in all partitions.
    left_out: Arc<Mutex<FilterCounts>>,
    properties: Arc<PlanProperties>,
}

impl BucketSortExec {
    pub(super) fn new(
        input: Arc<dyn ExecutionPlan>,
        memory_bytes: usize,
        resolution: Arc<Resolution>,
    ) -> Self {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(HISTORY_SCHEMA.clone()),
            input.properties().output_partitioning().clone(),
            EmissionType::Final,
            input.properties().boundedness,
        ));
        Self { input, memory_bytes, resolution, copies: Arc::default(), left_out: Arc::default(), properties }
    }

    /// Copies that were dropped so far.
    pub(super) fn copies(&self) -> u64 {
        self.copies.load(Ordering::Relaxed)
    }

    /// Events that the filters of whole histories took out so far.
    pub(super) fn left_out(&self) -> FilterCounts {
        *self.left_out.lock().unwrap_or_else(PoisonError::into_inner)
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
        Ok(Arc::new(Self::new(children.swap_remove(0), self.memory_bytes, Arc::clone(&self.resolution))))
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), self.memory_bytes, Arc::clone(&self.resolution))))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let bucket = Bucket {
            input: Arc::clone(&self.input),
            partition,
            context,
            memory_bytes: self.memory_bytes,
            resolution: Arc::clone(&self.resolution),
            copies: Arc::clone(&self.copies),
            left_out: Arc::clone(&self.left_out),
        };
        let histories = async move {
            let (ranges, all) = match bucket.read(&Range::default(), bucket.memory_bytes).await? {
                Some(batches) => (Vec::new(), Some(bucket.sort(batches)?)),
                None => (bucket.ranges().await?, None),
            };
            let bucket = Arc::new(bucket);
            let ranges = stream::iter(ranges).then(move |range| {
                let bucket = Arc::clone(&bucket);
                async move { bucket.sort(bucket.read(&range, usize::MAX).await?.unwrap_or_default()) }
            });
            let parts = stream::iter(all).map(Ok).chain(ranges);
            Ok::<_, DataFusionError>(parts.map_ok(Sorted::into_stream).try_flatten())
        };
        let stream = stream::once(histories).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(HISTORY_SCHEMA.clone(), stream)))
    }
}

/// A range of users in text order: `from` included, `to` excluded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Range {
    from: Option<String>,
    to: Option<String>,
}

impl Range {
    fn is_all(&self) -> bool {
        self.from.is_none() && self.to.is_none()
    }

    fn has(&self, user: &str) -> bool {
        self.from.as_deref().is_none_or(|from| user >= from) && self.to.as_deref().is_none_or(|to| user < to)
    }
}

/// Maximum users in a sample.
const SAMPLE_MAX: usize = 1 << 14;
/// Minimum sampled users in a range, so that ranges have similar sizes.
const RANGE_SAMPLE_MIN: usize = 64;

/// One partition of the input, which can be read again and again.
struct Bucket {
    input: Arc<dyn ExecutionPlan>,
    partition: usize,
    context: Arc<TaskContext>,
    memory_bytes: usize,
    resolution: Arc<Resolution>,
    copies: Arc<AtomicU64>,
    left_out: Arc<Mutex<FilterCounts>>,
}

impl Bucket {
    /// The rows of the users in `range`; `None` if they take more than `bytes_max`.
    async fn read(&self, range: &Range, bytes_max: usize) -> Result<Option<Vec<RecordBatch>>> {
        let mut rows = self.input.execute(self.partition, Arc::clone(&self.context))?;
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = rows.next().await {
            let mut batch = batch?;
            if !range.is_all() {
                let users = as_string_array(batch.column(1))?;
                let mine: BooleanArray = users.iter().map(|user| user.map(|user| range.has(user))).collect();
                batch = filter_record_batch(&batch, &mine)?;
            }
            bytes += memory_bytes(&batch)?;
            if bytes > bytes_max {
                return Ok(None);
            }
            batches.push(batch);
        }
        Ok(Some(batches))
    }

    /// Ranges whose rows fit into the memory, by a sample of all rows.
    async fn ranges(&self) -> Result<Vec<Range>> {
        let mut rows = self.input.execute(self.partition, Arc::clone(&self.context))?;
        let (mut sample, mut stride, mut at, mut bytes) = (Vec::new(), 1, 0, 0);
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            bytes += memory_bytes(&batch)?;
            for user in as_string_array(batch.column(1))?.iter().flatten() {
                if at % stride == 0 {
                    sample.push(user.to_owned());
                }
                at += 1;
                if sample.len() == SAMPLE_MAX {
                    // Keep every second user, so that all parts of the bucket have the same weight.
                    let mut keep = false;
                    sample.retain(|_| {
                        keep = !keep;
                        keep
                    });
                    stride *= 2;
                }
            }
        }
        sample.sort_unstable();
        // A quarter on top allows for the error of the sample.
        let count = (bytes as f64 * 1.25 / self.memory_bytes.max(1) as f64).ceil() as usize;
        let count = count.clamp(1, (sample.len() / RANGE_SAMPLE_MIN).max(1));
        let mut ends: Vec<String> = (1..count).map(|n| sample[n * sample.len() / count].clone()).collect();
        ends.dedup();
        let starts = std::iter::once(None).chain(ends.iter().cloned().map(Some));
        let ends = ends.iter().cloned().map(Some).chain([None]);
        Ok(starts.zip(ends).map(|(from, to)| Range { from, to }).collect())
    }

    fn sort(&self, batches: Vec<RecordBatch>) -> Result<Sorted> {
        let sorted = Sorted::new(batches, &self.resolution)?;
        self.copies.fetch_add(sorted.copies, Ordering::Relaxed);
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner).add(&sorted.left_out);
        Ok(sorted)
    }
}

/// Bytes of a batch while its bucket is sorted, computed from lengths: batches share buffers, so summing the buffers'
/// capacities would count them several times.
fn memory_bytes(batch: &RecordBatch) -> Result<usize> {
    let mut bytes = ORDER_ROW_BYTES * batch.num_rows();
    for column in batch.columns() {
        bytes += column.to_data().get_slice_memory_size()?;
    }
    Ok(bytes)
}

/// Bytes of a sorted row and the number of its user.
const ORDER_ROW_BYTES: usize = size_of::<PackedEvent>() + size_of::<u32>();

/// Users in text order, each with the end of the range of its events.
type Users = Vec<(String, usize)>;

/// A bucket's events in order.
struct Sorted {
    bucket: u32,
    events: Vec<PackedEvent>,
    users: Users,
    /// Duplicate events that were dropped.
    copies: u64,
    /// Events that filters took out.
    left_out: FilterCounts,
    given: usize,
    given_users: usize,
}

impl Sorted {
    fn new(batches: Vec<RecordBatch>, resolution: &Resolution) -> Result<Self> {
        let bucket = batches.iter().find(|batch| batch.num_rows() > 0);
        let bucket = bucket.map_or(0, |batch| batch.column(0).as_primitive::<UInt32Type>().value(0));
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let (mut events, mut users) = by_user(&batches, resolution)?;
        drop(batches);
        let key = |event: &PackedEvent| resolution.key(event);
        let (mut start, mut equal) = (0, false);
        for (_, end) in &users {
            let events = &mut events[start..*end];
            // Nearly always in order, and without equal neighbours.
            if !events.is_sorted_by(|one, two| key(one) < key(two)) {
                events.sort_unstable_by_key(key);
                equal |= events.windows(2).any(|pair| key(&pair[0]) == key(&pair[1]));
            }
            start = *end;
        }
        if equal {
            drop_copies(&mut events, &mut users, key);
        }
        let copies = (rows - events.len()) as u64;
        let left_out = resolution.survivors.leave_out(&mut events, &mut users);
        Ok(Self { bucket, events, users, copies, left_out, given: 0, given_users: 0 })
    }

    fn into_stream(self) -> impl Stream<Item = Result<RecordBatch>> + Send {
        stream::try_unfold(self, |mut sorted| async move { Ok(sorted.next()?.map(|batch| (batch, sorted))) })
    }

    /// The next batch; `None` at the end.
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let end = (self.given + BATCH_ROWS).min(self.events.len());
        let events = &self.events[self.given..end];
        if events.is_empty() {
            return Ok(None);
        }
        let (mut users, mut run_ends) = (StringBuilder::new(), Vec::new());
        let start = std::mem::replace(&mut self.given, end);
        while run_ends.last().is_none_or(|&last| last < (end - start) as i32) {
            let (user, user_end) = &self.users[self.given_users];
            users.append_value(user);
            run_ends.push((end.min(*user_end) - start) as i32);
            self.given_users += usize::from(*user_end <= end);
        }
        let users = RunArray::<Int32Type>::try_new(&Int32Array::from(run_ends), &users.finish())?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_value(self.bucket, events.len())),
            Arc::new(users),
            Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.ts))),
            Arc::new(UInt64Array::from_iter_values(events.iter().map(|e| e.event))),
            Arc::new(UInt32Array::from_iter_values(events.iter().map(|e| e.item))),
            Arc::new(UInt64Array::from_iter_values(events.iter().map(|e| e.request))),
            Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.request_ts))),
            Arc::new(UInt8Array::from_iter_values(events.iter().map(marks))),
        ];
        Ok(Some(RecordBatch::try_new(HISTORY_SCHEMA.clone(), columns)?))
    }
}

fn marks(event: &PackedEvent) -> u8 {
    u8::from(event.is_fresh()) * FRESH_MARK + u8::from(event.is_fit()) * FIT_MARK
}

/// Keeps one of each user's neighbours with equal keys: the one with the earliest request time, a choice that depends on
/// the log alone; one without a request time only if none has any. The kept event is fit if all of them are.
fn drop_copies(
    events: &mut Vec<PackedEvent>,
    users: &mut [(String, usize)],
    key: impl Fn(&PackedEvent) -> SortKey,
) {
    let (mut kept, mut start) = (Vec::with_capacity(events.len()), 0);
    for (_, end) in users {
        let of_user = &events[start..*end];
        start = *end;
        let equal = of_user.chunk_by(|one, two| key(one) == key(two));
        kept.extend(equal.filter_map(|equal| {
            let first = equal.iter().min_by_key(|event| (event.request_ts == NO_TIME, event.request_ts))?;
            Some(first.fit(equal.iter().all(PackedEvent::is_fit)))
        }));
        *end = kept.len();
    }
    *events = kept;
}

/// Stands for the user's number of a row that is dropped as a copy.
const COPY: u32 = u32::MAX;

/// Groups the rows by user, users in text order; returns them with the end of each user's rows.
fn by_user(batches: &[RecordBatch], resolution: &Resolution) -> Result<(Vec<PackedEvent>, Users)> {
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    let mut numbers: HashMap<&str, u32, foldhash::fast::FixedState> = HashMap::default();
    let mut counts: Vec<usize> = Vec::new();
    let mut number_of: Vec<u32> = Vec::with_capacity(rows);
    for batch in batches {
        let users = as_string_array(batch.column(1))?.iter().flatten();
        for (user, event) in users.zip(packed(batch)?) {
            if resolution.is_later_copy(user, &PackedEvent::unpacked(event)) {
                number_of.push(COPY);
                continue;
            }
            let next = counts.len() as u32;
            let number = *numbers.entry(user).or_insert(next);
            if number == next {
                counts.push(0);
            }
            counts[number as usize] += 1;
            number_of.push(number);
        }
    }
    let mut sorted: Vec<(&str, u32)> = numbers.into_iter().collect();
    sorted.sort_unstable();
    let (mut next, mut users, mut start) = (vec![0; counts.len()], Vec::with_capacity(counts.len()), 0);
    for (user, number) in sorted {
        next[number as usize] = start;
        start += counts[number as usize];
        users.push((user.to_owned(), start));
    }

    let mut events = vec![PackedEvent::default(); start];
    let mut number_of = number_of.into_iter();
    for batch in batches {
        for (event, number) in packed(batch)?.zip(&mut number_of) {
            if number != COPY {
                let place = &mut next[number as usize];
                events[*place] = resolution.resolved(PackedEvent::unpacked(event));
                *place += 1;
            }
        }
    }
    Ok((events, users))
}

/// The packed events of a bucket's batch.
fn packed(batch: &RecordBatch) -> Result<impl Iterator<Item = &[u8; PackedEvent::BYTES]>> {
    Ok(as_fixed_size_binary_array(batch.column(2))?.value_data().as_chunks().0.iter())
}

#[cfg(test)]
mod tests {
    use arrow::array::{FixedSizeBinaryArray, StringArray};
    use arrow::datatypes::{Int64Type, UInt8Type, UInt64Type};
    use datafusion::datasource::memory::MemorySourceConfig;
    use proptest::prelude::*;
    use schemas::hash::mix64;
    use schemas::history::LogFilters;

    use super::super::codes::{ItemCodes, ItemIndexes};
    use super::super::columns::HistoryColumns;
    use super::super::duplicates::RepeatedEvents;
    use super::super::event_columns::BUCKET_SCHEMA;
    use super::super::survivors::Survivors;
    use super::*;

    /// User, time, source, position, id, time of the request.
    type Row = (u8, i64, u32, i64, u64, i64);

    /// Ranks of the sources 0 and 1.
    const RANKS: [u32; 2] = [1, 0];

    fn event(&(_, ts, source, position, event, request_ts): &Row) -> PackedEvent {
        let rest = PackedEvent { item: event as u32 + 1, request: event * 3, ..PackedEvent::default() };
        PackedEvent { ts, place: position, event, request_ts, ..rest }
            .fit(request_ts == 0)
            .sourced(source, event == 2)
    }

    fn batch(rows: &[Row]) -> RecordBatch {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![3; rows.len()])),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| format!("user{}", row.0)))),
            Arc::new(
                FixedSizeBinaryArray::try_from_iter(rows.iter().map(|row| event(row).packed())).unwrap(),
            ),
        ];
        RecordBatch::try_new(BUCKET_SCHEMA.clone(), columns).unwrap()
    }

    /// The rows in order, and how many were copies.
    async fn sorted(
        batches: Vec<RecordBatch>,
        memory_bytes: usize,
        shuffle: Option<u64>,
    ) -> (Vec<(String, PackedEvent)>, u64) {
        let resolution = Arc::new(Resolution {
            ranks: RANKS.to_vec(),
            items: ItemCodes::new(ItemIndexes::default(), 9).resolve(Vec::new(), 10),
            repeated: RepeatedEvents::default(),
            shuffle,
            survivors: Survivors::new(&LogFilters::default()),
        });
        let input = MemorySourceConfig::try_new_exec(&[batches], BUCKET_SCHEMA.clone(), None).unwrap();
        let sort = BucketSortExec::new(input, memory_bytes, resolution);
        let batches: Vec<RecordBatch> = sort.execute(0, Arc::default()).unwrap().try_collect().await.unwrap();
        let mut rows = Vec::new();
        for batch in batches {
            let numbers = |column: usize| batch.column(column).as_primitive::<UInt64Type>().values();
            let times = |column: usize| batch.column(column).as_primitive::<Int64Type>().values();
            for (user, range) in HistoryColumns::of(&batch).unwrap().users() {
                rows.extend(range.map(|row| {
                    let event = PackedEvent {
                        ts: times(2)[row],
                        event: numbers(3)[row],
                        item: batch.column(4).as_primitive::<UInt32Type>().value(row),
                        request: numbers(5)[row],
                        request_ts: times(6)[row],
                        ..PackedEvent::default()
                    };
                    let marks = batch.column(7).as_primitive::<UInt8Type>().value(row);
                    (user.to_owned(), event.fit(marks & FIT_MARK > 0).sourced(0, marks & FRESH_MARK > 0))
                }));
            }
        }
        (rows, sort.copies())
    }

    fn request_ts() -> impl Strategy<Value = i64> {
        prop_oneof![Just(NO_TIME), 0i64..2]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_sort_at_once_and_the_one_by_ranges_agree(
            batches in prop::collection::vec(
                prop::collection::vec((0u8..12, 0i64..6, 0u32..2, 0i64..4, 0u64..3, request_ts()), 1..40), 1..6),
            shuffle in prop::option::of(0u64..3),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let input: Vec<RecordBatch> = batches.iter().map(|rows| batch(rows)).collect();
                let place = |&(user, ts, source, position, event, _): &Row| (user, ts, source, position, event);
                let mut expected = batches.concat();
                expected.sort_by_key(|&(user, ts, source, position, event, request_ts)| {
                    let tie = shuffle.map_or(0, |seed| mix64(seed, event));
                    (format!("user{user}"), ts, tie, RANKS[source as usize], position, event,
                     request_ts == NO_TIME, request_ts)
                });
                expected.dedup_by_key(|row| place(row));
                let expected: Vec<(String, PackedEvent)> = expected
                    .iter()
                    .map(|row| {
                        let mut copies = batches.iter().flatten().filter(|other| place(other) == place(row));
                        let event = event(row).fit(copies.all(|copy| event(copy).is_fit()));
                        let given = PackedEvent { place: 0, ..event }.sourced(0, event.is_fresh());
                        (format!("user{}", row.0), given)
                    })
                    .collect();
                for memory_bytes in [usize::MAX, 0, 500, 2_000] {
                    let (rows, copies) = sorted(input.clone(), memory_bytes, shuffle).await;
                    prop_assert_eq!(&rows, &expected);
                    prop_assert_eq!(copies as usize, batches.concat().len() - rows.len());
                }
                Ok(())
            })?;
        }
    }
}
