//! Event ids shared by the histories of several users, as an earlier build noted them.
//!
//! A refresh reads the whole history of a user, so it meets all copies of an event within that history. Copies in other users'
//! histories could lie anywhere: to find them, a refresh would have to compare its ids with all ids of the log. Each build
//! therefore notes the ids that several users share, among all events up to its version ([`SHARED_EVENT_IDS`], nearly always
//! none), and the next refresh compares only the events appended since:
//!
//! ```text
//!   events up to the version of the newest note │ appended since
//!   ────────────────────────────────────────────┼───────────────
//!   shared ids: those of the note               │ their ids, on dates within `events.dedup_days` of theirs
//! ```
//!
//! A refresh that has compared all new events in this way leaves a note of its own, from which the next one continues.
//!
//! Memory: a hash for each event appended since the note.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMillisecondType;
use schemas::hash::hash64;
use schemas::tables::properties::{DEDUP_DAYS, EVENTS_VERSION, SHARED_EVENT_IDS};
use schemas::tables::{REFRESH, SEQUENCES};
use store::{Root, Shard, Snapshot, TableError};

use crate::engine::HashPredicate;
use crate::records::{date_of, dates_around, shard_date};

/// Maximum shared ids in a note; a build with more of them leaves no note.
const NOTED_MAX: usize = 1_000;

/// The newest note, and the ids of the events appended after its version.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// The suspects of the note.
    pub shared: Vec<u64>,
    /// Hashes of the ids of events that were appended since.
    ids: Arc<HashSet<u64, foldhash::fast::FixedState>>,
    /// Their dates.
    dates: BTreeSet<i32>,
}

impl Compared {
    /// Reads the newest note that holds for `events` and a window of `days` days. `None` if there is none, or if the events
    /// appended after it cannot be determined or read.
    pub(crate) async fn find(root: &Root, events: &Snapshot, days: u32) -> Option<Self> {
        let mut newest = None;
        for table in [SEQUENCES, REFRESH] {
            let Ok(Some(table)) = root.snapshot(table).await else { continue };
            let note = note(table.properties(), days).filter(|(version, _)| *version <= events.version());
            newest = newest.max(note);
        }
        let (version, shared) = newest?;
        if !events.has_only_grown_since(version).await.ok()? {
            return None;
        }
        Self { shared, ..Self::default() }.with_appended(events, version).await.ok()
    }

    async fn with_appended(mut self, events: &Snapshot, since: u64) -> Result<Self, TableError> {
        let mut ids = HashSet::default();
        for path in events.appended_since(since).await? {
            let shard = Shard { path, bytes: 0, rows: None, partition: [].into() };
            for batch in events.read_shard(&shard, &["event_id", "ts"]).await? {
                let texts = batch.column(0).as_string::<i32>().iter().flatten();
                ids.extend(texts.map(|id| hash64(id.as_bytes())));
                let times = batch.column(1).as_primitive::<TimestampMillisecondType>();
                self.dates.extend(times.values().iter().map(|&ts| date_of(ts)));
            }
        }
        self.ids = Arc::new(ids);
        Ok(self)
    }

    /// Whether a shard may hold copies, within a window of `days` days, of an event that was appended since.
    pub(super) fn is_near(&self, shard: &Shard, days: u32) -> bool {
        let near = |date| self.dates.range(dates_around(date, days)).next().is_some();
        shard_date(shard).map_or(!self.dates.is_empty(), near)
    }

    /// Selects the hashes of ids of events that were appended since.
    pub(super) fn ids(&self) -> HashPredicate {
        let ids = Arc::clone(&self.ids);
        Arc::new(move |id| ids.contains(&id))
    }
}

/// The version of `events` that a table's note covers, and the suspects of the note; `None` if the note does not cover
/// `days` days.
fn note(properties: &HashMap<String, String>, days: u32) -> Option<(u64, Vec<u64>)> {
    let looked: u32 = properties.get(DEDUP_DAYS)?.parse().ok()?;
    let version = properties.get(EVENTS_VERSION)?.parse().ok().filter(|_| looked >= days)?;
    let shared = properties.get(SHARED_EVENT_IDS)?.split_whitespace();
    Some((version, shared.map(|id| u64::from_str_radix(id, 16)).collect::<Result<_, _>>().ok()?))
}

/// The note on `shared` suspects; `None` if there are more than [`NOTED_MAX`].
pub(super) fn noted(shared: &BTreeSet<u64>) -> Option<String> {
    let ids = shared.iter().map(|id| format!("{id:016x}"));
    (shared.len() <= NOTED_MAX).then(|| ids.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_comes_back_where_it_holds() {
        let noted = noted(&[0, 1, u64::MAX].into()).unwrap();
        let properties = |days: &str| {
            [(DEDUP_DAYS, days), (EVENTS_VERSION, "7"), (SHARED_EVENT_IDS, noted.as_str())]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into()
        };
        let expected = Some((7, vec![0, 1, u64::MAX]));
        assert_eq!(note(&properties("2"), 2), expected);
        assert_eq!(note(&properties("3"), 2), expected);
        assert_eq!(note(&properties("1"), 2), None);
        let mut without = properties("2");
        without.insert(SHARED_EVENT_IDS.into(), String::new());
        assert_eq!(note(&without, 2), Some((7, Vec::new())));
        without.remove(SHARED_EVENT_IDS);
        assert_eq!(note(&without, 2), None);
        assert_eq!(super::noted(&(0..=NOTED_MAX as u64).collect()), None);
    }
}
