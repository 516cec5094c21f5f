//! A first look over all events, before the sort.
//!
//! It answers what the sort's keys and the rows need to know about the whole table:
//!
//! - which sources there are: the sort compares their *rank* in text order, a number instead of a string;
//! - which items have no index yet;
//! - which events stand in the table more than once, and which of them counts.
//!
//! Duplicates are found by date, the scope of an event's identity. The dates are dealt to the threads whole;
//! a thread keeps 8 bytes (a hash of the id) for each event of the date it is at. Dates where two hashes are
//! equal are read a second time, and those few events compared by their ids themselves. So the memory is that
//! of the largest date's hashes and of the duplicates, not of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, Int64Array, StringArray};
use arrow::datatypes::{Date32Type, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::cast::{as_int64_array, as_primitive_array, as_string_array};
use datafusion::common::runtime::JoinSet;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use schemas::delta::Shard;
use schemas::hash::hash64;
use schemas::tables::EVENT_DATE;

use crate::scan::{Groups, SnapshotTable};

/// What the whole table says.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Rows of the table.
    pub events: u64,
    /// Every source, in text order.
    pub sources: BTreeSet<String>,
    /// Items without an index, in text order.
    pub missing: BTreeSet<String>,
    /// Events that stand in the table more than once.
    pub repeated: Repeated,
}

/// The events of which the table has several.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    hashes: HashSet<(i32, u64)>,
    first: HashMap<(i32, String), Record>,
}

/// An event's place and content: the first of equal ids is the smallest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    source: String,
    position: i64,
    ts: i64,
    user: String,
    item: String,
    action: String,
    request: Option<String>,
}

/// The columns that tell an event apart from another with its id.
pub(super) const RECORD_COLUMNS: [&str; 9] =
    [EVENT_DATE, "event_id", "source", "position", "ts", "user_id", "item_id", "action", "request_id"];

/// A batch with the [`RECORD_COLUMNS`], in their order.
pub(super) struct Records<'a> {
    pub date: &'a arrow::array::Date32Array,
    pub event: &'a StringArray,
    pub source: &'a StringArray,
    pub position: &'a Int64Array,
    pub ts: &'a arrow::array::TimestampMillisecondArray,
    pub user: &'a StringArray,
    pub item: &'a StringArray,
    pub action: &'a StringArray,
    pub request: &'a StringArray,
}

impl<'a> Records<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            date: as_primitive_array::<Date32Type>(batch.column(0))?,
            event: as_string_array(batch.column(1))?,
            source: as_string_array(batch.column(2))?,
            position: as_int64_array(batch.column(3))?,
            ts: as_primitive_array::<TimestampMillisecondType>(batch.column(4))?,
            user: as_string_array(batch.column(5))?,
            item: as_string_array(batch.column(6))?,
            action: as_string_array(batch.column(7))?,
            request: as_string_array(batch.column(8))?,
        })
    }

    fn record(&self, row: usize) -> Record {
        Record {
            source: self.source.value(row).into(),
            position: self.position.value(row),
            ts: self.ts.value(row),
            user: self.user.value(row).into(),
            item: self.item.value(row).into(),
            action: self.action.value(row).into(),
            request: self.request.is_valid(row).then(|| self.request.value(row).into()),
        }
    }
}

impl Repeated {
    /// Whether the row is another copy of an event that counts elsewhere. Copies that are equal in everything
    /// are all kept: they end up side by side, where the history pass drops all but one.
    pub(super) fn is_later_copy(&self, records: &Records<'_>, row: usize, event_hash: u64) -> bool {
        let date = records.date.value(row);
        if self.hashes.is_empty() || !self.hashes.contains(&(date, event_hash)) {
            return false;
        }
        let id = (date, records.event.value(row).to_owned());
        self.first.get(&id).is_some_and(|first| *first != records.record(row))
    }

    fn add(&mut self, records: &Records<'_>) {
        for row in 0..records.event.len() {
            let date = records.date.value(row);
            if self.hashes.contains(&(date, hash64(records.event.value(row).as_bytes()))) {
                let record = records.record(row);
                self.first
                    .entry((date, records.event.value(row).to_owned()))
                    .and_modify(|first| *first = record.clone().min(first.clone()))
                    .or_insert(record);
            }
        }
    }
}

/// Looks over all events; `known` are the items that have an index.
pub(super) async fn survey(
    context: &SessionContext,
    events: &SnapshotTable,
    known: &Arc<HashMap<String, u32>>,
) -> Result<Survey> {
    let shards = events.snapshot().shards();
    let threads = context.state().config().target_partitions();
    let columns = [EVENT_DATE, "event_id", "source", "item_id"];
    let plan = events.plan(&context.runtime_env(), &columns, whole_dates(shards, threads), Groups::Pinned)?;
    let mut tasks = JoinSet::new();
    for partition in 0..plan.properties().output_partitioning().partition_count() {
        tasks.spawn(look(Arc::clone(&plan), partition, context.task_ctx(), Arc::clone(known)));
    }
    let mut survey = Survey::default();
    while let Some(part) = tasks.join_next().await {
        let part = part.map_err(|e| datafusion::error::DataFusionError::External(Box::new(e)))??;
        survey.events += part.events;
        survey.sources.extend(part.sources);
        survey.missing.extend(part.missing);
        survey.repeated.hashes.extend(part.repeated.hashes);
    }

    let dates: BTreeSet<i32> = survey.repeated.hashes.iter().map(|&(date, _)| date).collect();
    if !dates.is_empty() {
        let of_dates: Vec<&Shard> = shards
            .iter()
            .filter(|shard| shard_date(shard).is_none_or(|date| dates.contains(&date)))
            .collect();
        let plan = events.plan(&context.runtime_env(), &RECORD_COLUMNS, [of_dates], Groups::Shared)?;
        let mut stream = plan.execute(0, context.task_ctx())?;
        while let Some(batch) = stream.next().await {
            survey.repeated.add(&Records::of(&batch?)?);
        }
    }
    Ok(survey)
}

/// One thread's part of the table.
async fn look(
    plan: Arc<dyn ExecutionPlan>,
    partition: usize,
    context: Arc<TaskContext>,
    known: Arc<HashMap<String, u32>>,
) -> Result<Survey> {
    let mut survey = Survey::default();
    let mut stream = plan.execute(partition, context)?;
    let (mut date, mut hashes) = (None, Vec::new());
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let dates = as_primitive_array::<Date32Type>(batch.column(0))?;
        let ids = as_string_array(batch.column(1))?;
        let sources = as_string_array(batch.column(2))?;
        let items = as_string_array(batch.column(3))?;
        survey.events += batch.num_rows() as u64;
        for row in 0..batch.num_rows() {
            if date != Some(dates.value(row)) {
                survey.repeated.hashes.extend(repeats(date, &mut hashes));
                date = Some(dates.value(row));
            }
            hashes.push(hash64(ids.value(row).as_bytes()));
            let source = sources.value(row);
            // Neighbours nearly always share their source.
            if (row == 0 || sources.value(row - 1) != source) && !survey.sources.contains(source) {
                survey.sources.insert(source.to_owned());
            }
            let item = items.value(row);
            if !known.contains_key(item) && !survey.missing.contains(item) {
                survey.missing.insert(item.to_owned());
            }
        }
    }
    survey.repeated.hashes.extend(repeats(date, &mut hashes));
    Ok(survey)
}

/// The hashes that occur more than once; empties `hashes` for the next date.
fn repeats(date: Option<i32>, hashes: &mut Vec<u64>) -> Vec<(i32, u64)> {
    hashes.sort_unstable();
    let found = hashes.windows(2).filter(|pair| pair[0] == pair[1]);
    let found = found.filter_map(|pair| date.map(|date| (date, pair[0]))).collect();
    hashes.clear();
    found
}

/// Deals shards to `threads` such that all shards of a date stand together in one group.
fn whole_dates(shards: &[Shard], threads: usize) -> Vec<Vec<&Shard>> {
    let mut dates: BTreeMap<Option<&str>, Vec<&Shard>> = BTreeMap::new();
    for shard in shards {
        dates.entry(partition_value(shard)).or_default().push(shard);
    }
    let mut groups = vec![(0u64, Vec::new()); threads.max(1)];
    for of_date in dates.into_values() {
        if let Some((bytes, group)) = groups.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            *bytes += of_date.iter().map(|shard| shard.bytes).sum::<u64>();
            group.extend(of_date);
        }
    }
    groups.into_iter().map(|(_, group)| group).filter(|group| !group.is_empty()).collect()
}

fn partition_value(shard: &Shard) -> Option<&str> {
    shard.partition.get(EVENT_DATE).and_then(Option::as_deref)
}

fn shard_date(shard: &Shard) -> Option<i32> {
    let date: chrono::NaiveDate = partition_value(shard)?.parse().ok()?;
    i32::try_from(date.signed_duration_since(chrono::DateTime::UNIX_EPOCH.date_naive()).num_days()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(path: &str, date: &str, bytes: u64) -> Shard {
        let partition = [(EVENT_DATE.to_owned(), Some(date.to_owned()))].into();
        Shard { path: path.into(), bytes, rows: None, partition }
    }

    #[test]
    fn a_date_stays_in_one_group() {
        let shards = [shard("a", "2020-01-02", 5), shard("b", "2020-01-01", 4), shard("c", "2020-01-02", 1)];
        let paths: Vec<Vec<&str>> = whole_dates(&shards, 2)
            .into_iter()
            .map(|group| group.into_iter().map(|shard| shard.path.as_str()).collect())
            .collect();
        assert_eq!(paths, [vec!["b"], vec!["a", "c"]]);
        assert_eq!(shard_date(&shards[0]), Some(18263));
    }

    #[test]
    fn repeats_are_found_within_a_date() {
        let mut hashes = vec![3, 1, 3, 2, 3];
        assert_eq!(repeats(Some(7), &mut hashes), [(7, 3), (7, 3)]);
        assert!(hashes.is_empty());
    }
}
