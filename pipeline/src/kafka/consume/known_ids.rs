//! Cache of the ids of stored events, for dates that a producer may still send again.
//!
//! Memory: 16 bytes an id and the hash table's free slots, 20 to 36 bytes in all. Dates are searched one after the other;
//! beyond the limit, the least recently used dates are dropped, and read again when they are needed. The cache therefore takes
//! the limit, or the ids of one date if these take more.

use std::collections::{BTreeMap, HashSet};

use arrow::array::AsArray;
use schemas::tables::EVENT_DATE;
use store::{Shard, Snapshot, TableError};

use crate::records::{KeySet, date_days, dates_around, id_key};

/// Maximum bytes of an id.
const ID_BYTES: u64 = 36;

/// The ids of one date.
#[derive(Default)]
struct Date {
    keys: KeySet,
    /// The shards that were read.
    shards: HashSet<String>,
    /// The number of the latest query that used the date.
    used: u64,
}

/// The ids of each date that was queried.
pub(super) struct KnownIds {
    /// `events.dedup_days`: equal ids within this many days are one event.
    days: u32,
    ids_max: usize,
    dates: BTreeMap<i32, Date>,
    /// Number of queries.
    asked: u64,
}

impl KnownIds {
    /// Empty; ids may take up to `bytes_max`.
    pub(super) fn new(days: u32, bytes_max: u64) -> Self {
        let ids_max = usize::try_from(bytes_max / ID_BYTES).unwrap_or(usize::MAX);
        Self { days, ids_max, dates: BTreeMap::new(), asked: 0 }
    }

    /// The given events (a date and the key of an id) that `snapshot` has within the window of days.
    pub(super) async fn stored(
        &mut self,
        snapshot: Option<&Snapshot>,
        events: &BTreeMap<i32, Vec<u128>>,
    ) -> Result<HashSet<(i32, u128)>, TableError> {
        let mut found = HashSet::new();
        self.asked += 1;
        // Add the events' dates, also those without stored events, so that `add` keeps the ids of the next commit.
        for &date in events.keys() {
            self.dates.entry(date).or_default().used = self.asked;
        }
        let Some(snapshot) = snapshot.filter(|_| !events.is_empty()) else { return Ok(found) };
        let mut shards: BTreeMap<i32, Vec<&Shard>> = BTreeMap::new();
        for shard in snapshot.shards() {
            let date = shard.partition.get(EVENT_DATE).and_then(Option::as_deref).and_then(date_days);
            if let Some(date) = date
                && events.range(dates_around(date, self.days)).next().is_some()
            {
                shards.entry(date).or_default().push(shard);
            }
        }
        for (date, shards) in shards {
            let asked = self.asked;
            let known = self.dates.entry(date).or_default();
            known.used = asked;
            for shard in shards {
                if known.shards.contains(&shard.path) {
                    continue;
                }
                for batch in snapshot.read_shard(shard, &["event_id"]).await? {
                    known.keys.extend(batch.column(0).as_string::<i32>().iter().flatten().map(id_key));
                }
                known.shards.insert(shard.path.clone());
            }
            for (&of, keys) in events.range(dates_around(date, self.days)) {
                found.extend(keys.iter().filter(|key| known.keys.contains(key)).map(|&key| (of, key)));
            }
            self.give_back(date);
        }
        Ok(found)
    }

    /// Drops the least recently used dates until the ids fit, but never `present`, which is being searched.
    fn give_back(&mut self, present: i32) {
        while self.len() > self.ids_max {
            let others = self.dates.iter().filter(|(date, _)| **date != present);
            let Some((&oldest, _)) = others.min_by_key(|(_, date)| date.used) else { return };
            self.dates.remove(&oldest);
        }
    }

    /// Adds the ids of a committed shard, which then need not be read.
    pub(super) fn add(&mut self, date: i32, shard: String, keys: impl IntoIterator<Item = u128>) {
        // A date that is not cached is read when it is queried.
        if let Some(known) = self.dates.get_mut(&date) {
            known.keys.extend(keys);
            known.shards.insert(shard);
        }
    }

    /// Drops the dates before the window of events of `date` or later.
    pub(super) fn forget_before(&mut self, date: i32) {
        self.dates = self.dates.split_off(dates_around(date, self.days).start());
    }

    /// Number of cached ids.
    pub(super) fn len(&self) -> usize {
        self.dates.values().map(|date| date.keys.len()).sum()
    }
}
