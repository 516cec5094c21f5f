//! Events that stand in the table more than once, and which of their copies counts.
//!
//! Ingestion stores an event once; what a consumer's window of days let through is found here, in two steps:
//!
//! 1. While the log is read, [`Suspects`] collects 8 bytes an event: its date and a hash of its id. Equal
//!    ones are suspects. They are dealt by hash to partitions that are looked through one by one, and that go
//!    to a scratch file beyond their share of the memory.
//! 2. The dates that have suspects are read once more, one after the other, and the suspects compared by their
//!    ids themselves ([`Repeated`]). Nearly always there are none, and nothing is read. Memory: the repeated
//!    events of one date (some 350 bytes each), and 64 bytes for every copy that does not count.
//!
//! The smallest copy by source, position and content counts. Copies that a bucket cannot tell apart (they may
//! differ in their action or their request's time) lie side by side there, and the sort keeps the one with the
//! earliest request. An event is fresh (`build-sequences --since`) only if all of its copies are: then it was
//! never a target before.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::Array;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use futures::StreamExt;
use schemas::delta::Shard;
use schemas::hash::hash64;
use schemas::tables::EVENT_DATE;

use super::keys::{Learned, Records, date, request_hash};
use super::refresh::Fresh;
use crate::engine::{Chunk, Scratch};

/// The fewest partitions. More where there are so many events that a partition would outgrow a core's cache.
const PARTITIONS_MIN: usize = 256;
const PARTITION_EVENTS: u64 = 1 << 17;
/// What a stream collects for all partitions before it hands some over: 1 MiB of numbers.
const HANDFULS: usize = 1 << 17;

/// An event's date and id in 64 bits: the date's low 16 bits and 48 of the hash.
fn suspect(date: i32, event: u64) -> u64 {
    (u64::from(date as u16) << 48) | (event >> 16)
}

/// All events' dates and ids, to find the equal ones.
#[derive(Debug)]
pub(super) struct Suspects {
    /// Numbers that a partition may hold in memory.
    share: usize,
    scratch: Scratch,
    partitions: Vec<Mutex<Partition>>,
}

#[derive(Debug, Default)]
struct Partition {
    held: Vec<u64>,
    chunks: Vec<Chunk>,
}

impl Suspects {
    /// None yet, of `events` that are to come; about `memory_bytes` of them are held.
    pub(super) fn new(events: u64, memory_bytes: usize) -> Self {
        let count = usize::try_from((events / PARTITION_EVENTS).next_power_of_two()).unwrap_or(usize::MAX);
        let count = count.clamp(PARTITIONS_MIN, 1 << 14);
        let partitions = (0..count).map(|_| Mutex::default()).collect();
        Self { share: memory_bytes / 8 / count, scratch: Scratch::new(1), partitions }
    }

    fn add(&self, partition: usize, handful: &mut Vec<u64>) -> Result<()> {
        let mut to = self.partitions[partition].lock().unwrap_or_else(PoisonError::into_inner);
        to.held.append(handful);
        if to.held.len() > self.share {
            let bytes: Vec<u8> = to.held.drain(..).flat_map(u64::to_le_bytes).collect();
            let chunk = self.scratch.append(&[&bytes])?;
            to.chunks.push(chunk);
        }
        Ok(())
    }

    /// The suspects of one partition; empties it.
    fn equal(&self, partition: usize) -> Result<Vec<u64>> {
        let Partition { mut held, chunks } =
            std::mem::take(&mut *self.partitions[partition].lock().unwrap_or_else(PoisonError::into_inner));
        for chunk in chunks {
            let bytes = self.scratch.read(chunk)?;
            held.extend(bytes.as_chunks().0.iter().map(|&number| u64::from_le_bytes(number)));
        }
        Ok(repeats(&held))
    }

    /// All suspects, found by `threads` at once.
    pub(super) fn find(&self, threads: usize) -> Result<HashSet<u64>> {
        let threads = threads.clamp(1, self.partitions.len());
        std::thread::scope(|scope| {
            let found: Vec<_> = (0..threads)
                .map(|thread| {
                    scope.spawn(move || {
                        let mine = (thread..self.partitions.len()).step_by(threads);
                        mine.map(|partition| self.equal(partition)).collect::<Result<Vec<_>>>()
                    })
                })
                .collect();
            let mut all = HashSet::new();
            for part in found {
                let part = part.join().map_err(|_| DataFusionError::Internal("a thread panicked".into()))?;
                all.extend(part?.into_iter().flatten());
            }
            Ok(all)
        })
    }
}

/// The numbers that occur more than once. They go into a table with open places, where equal ones meet: a
/// partition's fits into a core's cache, and takes a fraction of the time of a sort.
fn repeats(numbers: &[u64]) -> Vec<u64> {
    const FREE: u64 = 0;
    let size = (numbers.len() * 2).next_power_of_two();
    let mut table = vec![FREE; size];
    let mut repeats = Vec::new();
    let mut free_met = false;
    for &number in numbers {
        if number == FREE {
            if std::mem::replace(&mut free_met, true) {
                repeats.push(number);
            }
            continue;
        }
        // The low bits are the partition's, the high ones the date's.
        let mut place = (number >> 16) as usize & (size - 1);
        while table[place] != FREE && table[place] != number {
            place = (place + 1) & (size - 1);
        }
        if table[place] == number {
            repeats.push(number);
        }
        table[place] = number;
    }
    repeats.sort_unstable();
    repeats.dedup();
    repeats
}

/// One stream's way into [`Suspects`].
#[derive(Debug)]
pub(super) struct Handfuls {
    all: Arc<Suspects>,
    handfuls: Vec<Vec<u64>>,
    /// Numbers that are handed over together.
    handful: usize,
}

impl Handfuls {
    /// An empty stream's.
    pub(super) fn new(all: Arc<Suspects>) -> Self {
        let count = all.partitions.len();
        Self { all, handfuls: vec![Vec::new(); count], handful: HANDFULS / count }
    }

    /// Adds an event of `date` with the hash of its id.
    pub(super) fn push(&mut self, date: i32, event: u64) -> Result<()> {
        let suspect = suspect(date, event);
        // As many as a power of two.
        let partition = suspect as usize & (self.handfuls.len() - 1);
        let handful = &mut self.handfuls[partition];
        handful.push(suspect);
        if handful.len() < self.handful { Ok(()) } else { self.all.add(partition, handful) }
    }

    /// Hands over what is left.
    pub(super) fn finish(&mut self) -> Result<()> {
        for (partition, handful) in self.handfuls.iter_mut().enumerate() {
            self.all.add(partition, handful)?;
        }
        Ok(())
    }
}

/// The shards that can hold copies of the `suspects`, by date: those of one date are to be looked through
/// together.
pub(super) fn by_date<'a>(shards: &'a [Shard], suspects: &HashSet<u64>) -> Vec<Vec<&'a Shard>> {
    let dates: BTreeSet<u16> = suspects.iter().map(|suspect| (suspect >> 48) as u16).collect();
    let of = |shard: &Shard, date| shard_date(shard).is_none_or(|d| d as u16 == date);
    dates.into_iter().map(|date| shards.iter().filter(|shard| of(shard, date)).collect()).collect()
}

fn shard_date(shard: &Shard) -> Option<i32> {
    days(shard.partition.get(EVENT_DATE).and_then(Option::as_deref)?)
}

/// A date as days since 1970.
pub(super) fn days(date: &str) -> Option<i32> {
    let date: chrono::NaiveDate = date.parse().ok()?;
    i32::try_from(date.signed_duration_since(chrono::DateTime::UNIX_EPOCH.date_naive()).num_days()).ok()
}

/// An event as the table has it. The first of equal ids is the smallest.
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

impl Record {
    fn of(records: &Records<'_>, row: usize) -> Self {
        Self {
            source: records.source.value(row).into(),
            position: records.position.value(row),
            ts: records.ts.value(row),
            user: records.user.value(row).into(),
            item: records.item.value(row).into(),
            action: records.action.value(row).into(),
            request: records.request.is_valid(row).then(|| records.request.value(row).into()),
        }
    }
}

/// An event as a bucket has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub event: u64,
    pub ts: i64,
    pub source: u32,
    pub position: i64,
    pub item: u32,
    pub request: u64,
    pub user: u64,
}

/// What is known of events with several copies.
#[derive(Debug, Default)]
pub(super) struct Repeated {
    /// Every copy but the first, by its codes.
    later: HashSet<Place>,
    /// The ids (and dates) of events of which a copy is not fresh.
    stale: HashSet<u64>,
}

/// What the comparison of copies must know of the scan.
pub(super) struct Known<'a> {
    pub learned: &'a Learned,
    /// `sequences.actions`.
    pub actions: &'a [String],
    /// `build-sequences --since`: what is fresh.
    pub fresh: Option<&'a Fresh>,
}

impl Known<'_> {
    fn is_wanted(&self, action: &str) -> bool {
        self.actions.is_empty() || self.actions.iter().any(|a| a == action)
    }

    fn place(&self, event: u64, record: &Record) -> Result<Place> {
        let source = self.learned.sources.known(&record.source);
        Ok(Place {
            event,
            ts: record.ts,
            source: source.ok_or_else(|| DataFusionError::Internal("a version changed".into()))?,
            position: record.position,
            item: self.learned.items.code(&record.item),
            request: request_hash(record.request.as_deref()),
            user: hash64(record.user.as_bytes()),
        })
    }
}

/// The copies of one event.
#[derive(Debug, Default)]
struct Copies {
    records: Vec<Record>,
    /// How many of them lie in shards that are not fresh.
    elsewhere: u64,
}

impl Repeated {
    /// Compares the `suspects` among the rows of the plans, each with whether its rows are fresh, and remembers
    /// what it finds. The plans have all events of their dates.
    pub(super) async fn look_through(
        &mut self,
        plans: Vec<super::stages::Scan>,
        context: &Arc<TaskContext>,
        suspects: &HashSet<u64>,
        known: &Known<'_>,
    ) -> Result<()> {
        let mut events: HashMap<(i32, String), Copies> = HashMap::new();
        for (plan, fresh) in plans {
            for partition in 0..plan.properties().output_partitioning().partition_count() {
                let mut stream = plan.execute(partition, Arc::clone(context))?;
                while let Some(batch) = stream.next().await {
                    let batch = batch?;
                    let records = Records::of(&batch)?;
                    for row in 0..batch.num_rows() {
                        let (date, id) = (records.date(row), records.event.value(row));
                        let event = hash64(id.as_bytes());
                        if suspects.contains(&suspect(date, event)) {
                            let copies = events.entry((date, id.to_owned())).or_default();
                            copies.records.push(Record::of(&records, row));
                            copies.elsewhere += u64::from(!fresh);
                        }
                    }
                }
            }
        }
        for ((date, id), Copies { records, elsewhere }) in events {
            // An event that only shares its hash with another.
            if records.len() < 2 {
                continue;
            }
            let event = hash64(id.as_bytes());
            if elsewhere > known.fresh.map_or(0, |fresh| fresh.moved(date, event)) {
                self.stale.insert(suspect(date, event));
            }
            let mut distinct = records.into_iter().collect::<BTreeSet<_>>().into_iter();
            let Some(first) = distinct.next() else { continue };
            let place = known.place(event, &first)?;
            for copy in distinct {
                let other = known.place(event, &copy)?;
                // Of two in one place the sort keeps one, if the first takes part at all.
                if other != place || !known.is_wanted(&first.action) {
                    self.later.insert(other);
                }
            }
        }
        Ok(())
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.later.is_empty() && self.stale.is_empty()
    }

    /// Whether the row is another copy of an event that counts elsewhere.
    pub(super) fn is_later_copy(&self, place: &Place) -> bool {
        self.later.contains(place)
    }

    /// Whether a copy of the event was there before.
    pub(super) fn is_stale(&self, event: u64, ts: i64) -> bool {
        !self.stale.is_empty() && self.stale.contains(&suspect(date(ts), event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_dates_and_ids_are_suspects_in_memory_and_beyond() {
        for (events, memory) in [(0, 8 << 20), (0, 0), (1 << 40, 0)] {
            let all = Arc::new(Suspects::new(events, memory));
            let mut streams = [Handfuls::new(Arc::clone(&all)), Handfuls::new(Arc::clone(&all))];
            for n in 0..200_000u64 {
                streams[n as usize % 2].push(-3, hash64(&n.to_le_bytes())).unwrap();
            }
            for (date, n) in [(-3, 7u64), (-2, 8), (-3, 99_999), (-3, 7)] {
                streams[1].push(date, hash64(&n.to_le_bytes())).unwrap();
            }
            streams.iter_mut().for_each(|stream| stream.finish().unwrap());
            let expected = [7u64, 99_999].map(|n| suspect(-3, hash64(&n.to_le_bytes())));
            assert_eq!(all.scratch.bytes() > 0, memory == 0);
            assert_eq!(all.find(3).unwrap(), HashSet::from(expected));
        }
    }

    proptest::proptest! {
        #[test]
        fn repeats_are_what_a_sort_says(numbers in proptest::collection::vec(0u64..200, 0..300)) {
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            let mut expected: Vec<u64> =
                sorted.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
            expected.dedup();
            proptest::prop_assert_eq!(repeats(&numbers), expected);
        }
    }

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
            by_date.map(|shards| shards.iter().map(|shard| shard.path.as_str()).collect()).collect()
        };
        assert_eq!(paths(&[18_263]), ["a"]);
        assert_eq!(paths(&[-1, 18_264]), ["c", "b"]);
        assert_eq!(paths(&[5]), [""]);
    }
}
