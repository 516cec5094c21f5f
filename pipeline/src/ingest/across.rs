//! Ids that occur again within `events.dedup_days`: of those on several dates, which event is stored; of those on one date, what to
//! look out for.
//!
//! ```text
//!   stored ids of the dates around ─┐
//!   given ids of the staged events ─┴─▶ Suspects ─▶ none, nearly always
//!                                          ├─▶ several dates: their events, in order of source and position: the first
//!                                          │   within the days of none that is stored or accepted is accepted
//!                                          └─▶ one date: [`super::dates`] compares these, and no others
//! ```
//!
//! Dates are written independently of one another ([`super::dates`]). Duplicates across dates are decided here, before any
//! date is written, so the decision depends neither on threads nor on the order in which dates are written.
//!
//! Memory: 8 bytes a staged or stored id up to the limit, the rest in a scratch file; the ids that occur again on one date up to
//! another; and the events with ids on several dates.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::Array;
use datafusion::error::DataFusionError;
use store::{Root, Shard};
use terminal::Interrupt;

use super::error::{IngestError, check_interrupt};
use super::stage::{FilePosition, Staged};
use super::stored::read_stored_ids;
use crate::engine::{Found, PartitionBuffers, SuspectSet, Suspects, date_in, suspect};
use crate::records::{EventBatch, KeyMap, StagedRows, date_days, dates_around, id_key, key_hash};

/// Collects the given ids of staged events for [`AcrossSearch`].
pub(super) struct GivenIds {
    all: Arc<Suspects>,
    buffers: PartitionBuffers,
    /// Whether some events came without an id.
    some_without: bool,
}

/// The given ids of the staged events.
pub(super) struct Given {
    all: Arc<Suspects>,
    /// Whether some events came without an id.
    some_without: bool,
}

impl GivenIds {
    /// Empty; room for about `events` ids, which take up to `bytes_max` in memory.
    pub(super) fn new(events: u64, bytes_max: usize, days: u32) -> Self {
        let all = Arc::new(Suspects::new(events, bytes_max, 0..=days));
        Self { buffers: PartitionBuffers::new(Arc::clone(&all)), all, some_without: false }
    }

    pub(super) fn push(&mut self, batch: &EventBatch) -> Result<(), IngestError> {
        let rows = StagedRows(&batch.rows);
        let ids = rows.event_ids();
        self.some_without |= ids.null_count() > 0;
        for (row, &date) in batch.dates.iter().enumerate().filter(|(row, _)| ids.is_valid(*row)) {
            self.buffers.push(date, key_hash(id_key(ids.value(row)))).map_err(scratch)?;
        }
        Ok(())
    }

    /// All collected ids.
    pub(super) fn finish(mut self) -> Result<Given, IngestError> {
        self.buffers.finish().map_err(scratch)?;
        Ok(Given { all: self.all, some_without: self.some_without })
    }
}

fn scratch(error: DataFusionError) -> IngestError {
    IngestError::scratch(error)
}

/// The dates on which an id is stored, and its staged events.
#[derive(Default)]
struct Stands {
    stored: BTreeSet<i32>,
    staged: Vec<(FilePosition, i32)>,
}

/// The decision on a staged event whose id occurs on several dates.
struct Decided {
    date: i32,
    accepted: bool,
    /// Whether an event stored before the run makes it a duplicate.
    is_stored: bool,
}

/// What is known of the ids that occur again.
#[derive(Default)]
pub(super) struct Across {
    /// Ids that occur on several dates → the positions of their staged events, and whether each is accepted.
    decided: KeyMap<u128, HashMap<FilePosition, Decided>>,
    /// By the low bits of the date, the ids that occur again on it; `None` if they are not known, or too many.
    again: Option<BTreeMap<u16, SuspectSet>>,
}

/// Which ids may occur more than once on a date.
#[derive(Clone, Copy)]
pub(super) enum Repetition<'a> {
    /// Any.
    Unknown,
    /// These suspects of the date.
    Some(i32, &'a SuspectSet),
    None,
}

impl Repetition<'_> {
    /// Whether the id with this key may.
    pub(super) fn has(&self, key: u128) -> bool {
        match self {
            Self::Unknown => true,
            Self::Some(date, ids) => ids.contains(&suspect(*date, key_hash(key))),
            Self::None => false,
        }
    }
}

/// Bytes of a suspect in a set, about.
const SUSPECT_BYTES: usize = 24;

/// Id → the dates of staged events that are duplicates of a staged event with the same id on another date.
pub(super) type Dropped = KeyMap<u128, BTreeSet<i32>>;

/// The search for ids that occur on several dates.
pub(super) struct AcrossSearch<'a> {
    pub(super) root: &'a Root,
    pub(super) staged: &'a Staged,
    pub(super) given: &'a Given,
    /// Memory for ids that occur again on their date.
    pub(super) bytes_max: u64,
    /// The stored shards by date.
    pub(super) stored: &'a BTreeMap<&'a str, Vec<&'a Shard>>,
    /// `events.dedup_days`.
    pub(super) days: u32,
    pub(super) threads: usize,
    pub(super) interrupt: &'a Interrupt,
}

impl AcrossSearch<'_> {
    /// Searches the staged and the stored events.
    pub(super) fn find(&self) -> Result<Across, IngestError> {
        if self.given.some_without && self.days == 0 {
            return Ok(Across::default());
        }
        let staged: BTreeSet<i32> = self.staged.dates().into_iter().collect();
        let by_date = self.stored.iter().filter_map(|(text, shards)| Some((date_days(text)?, shards)));
        let near: BTreeMap<i32, &Vec<&Shard>> = by_date
            .filter(|(date, _)| staged.range(dates_around(*date, self.days)).next().is_some())
            .collect();
        self.read_ids(&near)?;
        let same_max = match self.given.some_without {
            true => 0,
            false => usize::try_from(self.bytes_max).unwrap_or(usize::MAX) / SUSPECT_BYTES,
        };
        let Found { apart: suspects, same } =
            self.given.all.find_apart(self.threads, same_max).map_err(scratch)?;
        let again = same.filter(|_| !self.given.some_without).map(|ids| {
            let mut by_date: BTreeMap<u16, SuspectSet> = BTreeMap::new();
            for suspect in ids {
                by_date.entry(date_in(suspect)).or_default().insert(suspect);
            }
            by_date
        });
        if suspects.is_empty() {
            return Ok(Across { decided: KeyMap::default(), again });
        }
        let suspected: HashSet<u16> = suspects.iter().map(|&suspect| date_in(suspect)).collect();
        let is_suspect = |date, key| suspects.contains(&suspect(date, key_hash(key)));
        let mut ids: KeyMap<u128, Stands> = KeyMap::default();
        for &date in staged.iter().filter(|date| suspected.contains(&(**date as u16))) {
            for batch in self.staged.rows(date) {
                let batch = batch?;
                let rows = StagedRows(&batch);
                let given = rows.event_ids();
                let places = rows.files().iter().copied().zip(rows.places().iter().copied());
                for (row, place) in places.enumerate().filter(|(row, _)| given.is_valid(*row)) {
                    let key = id_key(given.value(row));
                    if is_suspect(date, key) {
                        ids.entry(key).or_default().staged.push((place, date));
                    }
                }
            }
        }
        for (&date, shards) in near.iter().filter(|(date, _)| suspected.contains(&(**date as u16))) {
            for shard in *shards {
                read_stored_ids(self.root, shard, |id| {
                    let key = id_key(id);
                    if is_suspect(date, key)
                        && let Some(stands) = ids.get_mut(&key)
                    {
                        stands.stored.insert(date);
                    }
                })?;
            }
        }
        let decided = ids.into_iter().map(|(key, stands)| (key, stands.decided(self.days)));
        Ok(Across { decided: decided.collect(), again })
    }

    /// Adds the ids of the stored shards, several dates at a time.
    fn read_ids(&self, near: &BTreeMap<i32, &Vec<&Shard>>) -> Result<(), IngestError> {
        let shards: Vec<(i32, &Shard)> =
            near.iter().flat_map(|(&date, shards)| shards.iter().map(move |&shard| (date, shard))).collect();
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(Ok(())));
        let read = || -> Result<(), IngestError> {
            let mut buffers = PartitionBuffers::new(Arc::clone(&self.given.all));
            while let Some(&(date, shard)) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                check_interrupt(self.interrupt)?;
                let mut full = Ok(());
                read_stored_ids(self.root, shard, |id| {
                    if full.is_ok() {
                        full = buffers.push(date, key_hash(id_key(id)));
                    }
                })?;
                full.map_err(scratch)?;
            }
            buffers.finish().map_err(scratch)
        };
        let work = || {
            if let Err(error) = read() {
                next.store(shards.len(), Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.is_ok() {
                    *failed = Err(error);
                }
            }
        };
        std::thread::scope(|scope| {
            (1..self.threads.min(shards.len())).for_each(|_| {
                scope.spawn(work);
            });
            work();
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Across {
    /// Whether a staged event is accepted; `None` if its id does not occur on several dates.
    pub(super) fn decides(&self, key: u128, place: FilePosition) -> Option<bool> {
        if self.decided.is_empty() {
            return None;
        }
        self.decided.get(&key)?.get(&place).map(|decided| decided.accepted)
    }

    /// Which ids may occur more than once on a date.
    pub(super) fn on(&self, date: i32) -> Repetition<'_> {
        match &self.again {
            None => Repetition::Unknown,
            Some(again) => {
                again.get(&(date as u16)).map_or(Repetition::None, |ids| Repetition::Some(date, ids))
            }
        }
    }

    pub(super) fn into_dropped(self) -> Dropped {
        let dropped = |events: HashMap<FilePosition, Decided>| -> BTreeSet<i32> {
            let stands_by_staged = |event: &Decided| !event.accepted && !event.is_stored;
            events.into_values().filter(stands_by_staged).map(|event| event.date).collect()
        };
        self.decided.into_iter().map(|(key, events)| (key, dropped(events))).collect()
    }
}

impl Stands {
    /// Decides the staged events: one is accepted if no stored or accepted one lies within `days`.
    fn decided(mut self, days: u32) -> HashMap<FilePosition, Decided> {
        self.staged.sort_unstable();
        let (mut dates, mut decided) = (self.stored.clone(), HashMap::new());
        for (place, date) in self.staged {
            let accepted = dates.range(dates_around(date, days)).next().is_none();
            if accepted {
                dates.insert(date);
            }
            let is_stored = self.stored.range(dates_around(date, days)).next().is_some();
            decided.insert(place, Decided { date, accepted, is_stored });
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_within_the_days_is_accepted() {
        let accepted = |stored: &[i32], staged: &[i32], days| {
            let stands = Stands {
                stored: stored.iter().copied().collect(),
                staged: (0..).zip(staged).map(|(n, &date)| ((0, n), date)).collect(),
            };
            let decided = stands.decided(days).into_iter();
            let mut places: Vec<i64> =
                decided.filter(|(_, decided)| decided.accepted).map(|((_, at), _)| at).collect();
            places.sort_unstable();
            places
        };
        assert_eq!(accepted(&[], &[1, 2, 3, 4], 2), [0, 3]);
        assert_eq!(accepted(&[], &[4, 3, 2, 1], 2), [0, 3]);
        assert_eq!(accepted(&[3], &[1, 6, 2], 2), [1]);
        assert_eq!(accepted(&[], &[1, 1, 2], 0), [0, 2]);
    }
}
