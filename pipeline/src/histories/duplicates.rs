//! Events that are stored more than once, and which of their copies counts.
//!
//! Ingestion stores an event once within `events.dedup_days`. Duplicates that it let through, or that were stored before
//! ingestion checked this window, are found here in two steps:
//!
//! 1. While the log is read, [`Suspects`](crate::engine::Suspects) collects 8 bytes an event. Equal ids of dates within
//!    the window are suspects. A refresh reads the histories of some users only; [`OtherIds`] collects ids of the others'
//!    events, and `compared.rs` limits which.
//! 2. The dates with suspects are read again, one after the other: the ids of all rows, and the whole rows of the suspects,
//!    whose ids are compared as texts ([`RepeatedEvents`]). Nearly always there are no suspects, and nothing is read. Memory: the
//!    repeated events of the dates that one window spans (some 350 bytes each), and 64 bytes for every copy that does not count.
//!
//! A copy counts unless a smaller one, by source, position and content, lies within the window. Copies that a bucket cannot
//! distinguish (they may differ in action or request time) are neighbours after its sort, which keeps one of them. An event
//! is fresh (`build-sequences --since`) only if all of its copies are: then it was never a target before.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{SchemaRef, TimestampMillisecondType};
use datafusion::common::cast::{as_primitive_array, as_string_view_array};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use futures::StreamExt;
use schemas::hash::hash64;
use schemas::history::LogFilters;
use store::Shard;

use super::event::request_hash;
use super::event_columns::{KEYED_SCHEMA, ScannedEvents};
use super::fresh::{Fresh, Scan};
use super::learned::Learned;
use crate::engine::{PartitionBuffers, Pass, PassSpec, date_in, hash_in, suspect};
use crate::records::{date_of, dates_around, shard_date};

/// The dates of the `suspects` (low 16 bits of the date), each with the shards that can hold copies from that date.
/// [`Search::look_through`] takes the shards of one date together.
pub(super) fn by_date<'a>(shards: &'a [Shard], suspects: &HashSet<u64>) -> BTreeMap<u16, Vec<&'a Shard>> {
    let dates: BTreeSet<u16> = suspects.iter().map(|&suspect| date_in(suspect)).collect();
    let of = |shard: &Shard, date| shard_date(shard).is_none_or(|d| d as u16 == date);
    dates.into_iter().map(|date| (date, shards.iter().filter(|shard| of(shard, date)).collect())).collect()
}

/// An event as it is stored. Among copies with one id, the smallest counts first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Record {
    source: String,
    place: i64,
    ts: i64,
    user: String,
    item: String,
    action: String,
    request: Option<String>,
    /// The value in total order, where a filter depends on it.
    value: Option<i64>,
    /// Whether the event passes the filters that judge it by itself; a function of the other fields.
    is_wanted: bool,
}

/// An integer in the total order of the numbers.
fn in_order(value: f64) -> i64 {
    let bits = value.to_bits() as i64;
    bits ^ (((bits >> 63) as u64) >> 1) as i64
}

impl Record {
    fn of(records: &ScannedEvents<'_>, row: usize, filters: &LogFilters) -> Result<Self> {
        let value = filters.min_value.and_then(|_| records.value(row));
        let taken = filters.taken_by(records.action.value(row), value, records.ts.value(row));
        Ok(Self {
            source: records.source.value(row).into(),
            place: records.place(row)?,
            ts: records.ts.value(row),
            user: records.user.value(row).into(),
            item: records.item.value(row).into(),
            action: records.action.value(row).into(),
            request: records.request.is_valid(row).then(|| records.request.value(row).into()),
            value: value.map(in_order),
            is_wanted: taken.is_none(),
        })
    }
}

/// Identifies a copy of an event in a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CopyKey {
    pub event: u64,
    pub ts: i64,
    pub source: u32,
    pub place: i64,
    pub item: u32,
    pub request: u64,
    pub user: u64,
}

/// The pass over the events of users whose histories are not read: it collects their ids for [`Suspects`](crate::engine::Suspects)
/// and returns no rows.
#[derive(Debug)]
pub(super) struct OtherIds {
    pub learned: Arc<Learned>,
    /// Users whose histories are read; [`Keys`](super::keys::Keys) collects their ids.
    pub fresh: Arc<Fresh>,
}

impl OtherIds {
    /// The columns that the pass reads.
    pub(super) const COLUMNS: [&str; 3] = ["event_id", "user_id", "ts"];
}

impl PassSpec for OtherIds {
    fn name(&self) -> &'static str {
        "OtherIds"
    }

    fn schema(&self) -> SchemaRef {
        KEYED_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        let (learned, fresh) = (Arc::clone(&self.learned), Arc::clone(&self.fresh));
        let suspects = PartitionBuffers::new(Arc::clone(&learned.suspects));
        Box::new(OtherIdsPass { learned, fresh, suspects })
    }
}

struct OtherIdsPass {
    learned: Arc<Learned>,
    fresh: Arc<Fresh>,
    suspects: PartitionBuffers,
}

impl Pass for OtherIdsPass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let (ids, users) = (as_string_view_array(batch.column(0))?, as_string_view_array(batch.column(1))?);
        let times = as_primitive_array::<TimestampMillisecondType>(batch.column(2))?;
        for row in 0..batch.num_rows() {
            if !self.fresh.has_user(hash64(users.value(row).as_bytes())) {
                self.suspects.push(date_of(times.value(row)), hash64(ids.value(row).as_bytes()))?;
            }
        }
        self.learned.decoded.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        Ok(Vec::new())
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        self.suspects.finish()?;
        Ok(Vec::new())
    }
}

/// Events with several copies: which copies count, and which are stale.
#[derive(Debug, Default)]
pub(super) struct RepeatedEvents {
    /// Every copy but the first, by its codes.
    later: HashSet<CopyKey>,
    /// The ids (and dates) of events that have a copy which is not fresh.
    stale: HashSet<u64>,
    /// The ids (and dates) of copies in the histories of several users.
    pub shared: BTreeSet<u64>,
}

/// Facts of the scan that the comparison of copies needs.
pub(super) struct ScanFacts<'a> {
    pub learned: &'a Learned,
    /// The filters of `[sequences]`.
    pub filters: &'a LogFilters,
    /// `build-sequences --since`: what is fresh.
    pub fresh: Option<&'a Fresh>,
    /// Whether all histories were read; otherwise only those of users with a fresh event.
    pub all_users: bool,
    /// `events.dedup_days`.
    pub days: u32,
}

impl ScanFacts<'_> {
    /// The key of the copy in the buckets; `None` if its user's history was not read.
    fn place(&self, event: u64, record: &Record) -> Result<Option<CopyKey>> {
        let user = hash64(record.user.as_bytes());
        if !self.all_users && self.fresh.is_some_and(|fresh| !fresh.has_user(user)) {
            return Ok(None);
        }
        let source = self.learned.sources.known(&record.source);
        Ok(Some(CopyKey {
            event,
            ts: record.ts,
            source: source.ok_or_else(|| DataFusionError::Internal("a version changed".into()))?,
            place: record.place,
            item: self.learned.items.code(&record.item),
            request: request_hash(record.request.as_deref()),
            user,
        }))
    }
}

/// The copies of one id.
#[derive(Debug, Default)]
struct Copies {
    records: Vec<Record>,
    /// Date → number of copies in shards that are not fresh.
    elsewhere: BTreeMap<i32, u64>,
}

impl Copies {
    /// Number of copies within the window around `date` that are not fresh.
    fn stale(&self, event: u64, date: i32, known: &ScanFacts<'_>) -> u64 {
        let near = self.elsewhere.range(dates_around(date, known.days));
        let moved = |date| known.fresh.map_or(0, |fresh| fresh.moved(date, event));
        near.map(|(&date, &copies)| copies.saturating_sub(moved(date))).sum()
    }
}

/// The search for copies, date by date.
pub(super) struct Search<'a> {
    known: &'a ScanFacts<'a>,
    suspects: &'a HashSet<u64>,
    /// Hash → the last date, in the order of the search, with a suspect of this hash.
    last: HashMap<u64, u16>,
    /// Copies found so far of ids that may recur on a later date.
    open: HashMap<String, Copies>,
    repeated: RepeatedEvents,
}

impl<'a> Search<'a> {
    pub(super) fn new(suspects: &'a HashSet<u64>, known: &'a ScanFacts<'a>) -> Self {
        let mut last: HashMap<u64, u16> = HashMap::new();
        for &suspect in suspects {
            let date = last.entry(hash_in(suspect)).or_default();
            *date = (*date).max(date_in(suspect));
        }
        Self { known, suspects, last, open: HashMap::new(), repeated: RepeatedEvents::default() }
    }

    /// Searches the rows of the scans for copies. The scans must hold all events of the `date` (its low 16 bits), and calls must
    /// come in ascending order of `date`.
    pub(super) async fn look_through(
        &mut self,
        date: u16,
        plans: Vec<Scan>,
        context: &Arc<TaskContext>,
    ) -> Result<()> {
        for Scan { plan, is_fresh } in plans {
            for partition in 0..plan.properties().output_partitioning().partition_count() {
                let mut stream = plan.execute(partition, Arc::clone(context))?;
                while let Some(batch) = stream.next().await {
                    self.take(&batch?, date, is_fresh)?;
                }
            }
        }
        let (last, mut complete) = (&self.last, Vec::new());
        self.open.retain(|id, copies| {
            let goes_on =
                last.get(&hash_in(suspect(0, hash64(id.as_bytes())))).is_some_and(|&last| last > date);
            if !goes_on {
                complete.push((id.clone(), std::mem::take(copies)));
            }
            goes_on
        });
        complete.into_iter().try_for_each(|(id, copies)| self.repeated.settle(&id, copies, self.known))
    }

    fn take(&mut self, batch: &RecordBatch, of: u16, fresh: bool) -> Result<()> {
        let records = ScannedEvents::of(batch)?;
        for row in 0..batch.num_rows() {
            let (date, id) = (records.date(row), records.event.value(row));
            // A shard may hold several dates.
            if date as u16 == of && self.suspects.contains(&suspect(date, hash64(id.as_bytes()))) {
                let copies = self.open.entry(id.to_owned()).or_default();
                copies.records.push(Record::of(&records, row, self.known.filters)?);
                *copies.elsewhere.entry(date).or_default() += u64::from(!fresh);
            }
        }
        Ok(())
    }

    /// The repeated events of all dates.
    pub(super) fn finish(self) -> RepeatedEvents {
        self.repeated
    }
}

impl RepeatedEvents {
    /// Decides which copies of an id count.
    fn settle(&mut self, id: &str, mut copies: Copies, known: &ScanFacts<'_>) -> Result<()> {
        // A single event: only its hash equals that of another id.
        if copies.records.len() < 2 {
            return Ok(());
        }
        let event = hash64(id.as_bytes());
        let records: BTreeSet<Record> = std::mem::take(&mut copies.records).into_iter().collect();
        if records.iter().map(|record| &record.user).collect::<BTreeSet<_>>().len() > 1 {
            self.shared.extend(records.iter().map(|record| suspect(date_of(record.ts), event)));
        }
        // The dates of smaller copies; and the keys of the copies that count, with whether they pass the filters.
        let (mut dates, mut counting) = (BTreeSet::new(), HashMap::new());
        for record in records {
            let date = date_of(record.ts);
            let is_later = dates.range(dates_around(date, known.days)).next().is_some();
            dates.insert(date);
            let Some(place) = known.place(event, &record)? else { continue };
            if !is_later {
                counting.insert(place, record.is_wanted);
                if copies.stale(event, date, known) > 0 {
                    self.stale.insert(suspect(date, event));
                }
            // The sort keeps one of two copies with equal keys, provided that the first is wanted at all.
            } else if counting.get(&place) != Some(&true) {
                self.later.insert(place);
            }
        }
        Ok(())
    }

    /// Whether no event is repeated.
    pub(super) fn is_empty(&self) -> bool {
        self.later.is_empty() && self.stale.is_empty()
    }

    /// Whether the row is another copy of an event that counts elsewhere.
    pub(super) fn is_later_copy(&self, place: &CopyKey) -> bool {
        self.later.contains(place)
    }

    /// Whether a copy of the event was there before.
    pub(super) fn is_stale(&self, event: u64, ts: i64) -> bool {
        !self.stale.is_empty() && self.stale.contains(&suspect(date_of(ts), event))
    }
}

#[cfg(test)]
mod tests {
    use schemas::tables::EVENT_DATE;

    use super::*;

    #[test]
    fn only_the_dates_of_suspects_are_read_again() {
        let shard = |path: &str, date: &str| Shard {
            path: path.into(),
            bytes: 1,
            rows: None,
            partition: [(EVENT_DATE.to_owned(), Some(date.to_owned()))].into(),
        };
        let shards = [shard("a", "2020-01-02"), shard("b", "1969-12-31"), shard("c", "2020-01-03")];
        assert_eq!(shard_date(&shards[0]), Some(18_263));
        let paths = |dates: &[i32]| -> Vec<String> {
            let suspects = dates.iter().map(|&date| suspect(date, 1)).collect();
            let by_date = by_date(&shards, &suspects).into_iter();
            by_date.map(|(_, shards)| shards.iter().map(|shard| shard.path.as_str()).collect()).collect()
        };
        assert_eq!(paths(&[18_263]), ["a"]);
        assert_eq!(paths(&[-1, 18_264]), ["c", "b"]);
        assert_eq!(paths(&[5]), [""]);
    }
}
