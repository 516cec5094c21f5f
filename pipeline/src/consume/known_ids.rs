//! The ids of stored events, of the dates that a producer may still send again.

use std::collections::{BTreeMap, HashSet};

use arrow::array::AsArray;
use schemas::delta::{Shard, Snapshot, TableError};
use schemas::tables::EVENT_DATE;

use crate::records::{KeySet, id_key};

/// The ids of one date.
#[derive(Default)]
pub(super) struct Date {
    pub(super) keys: KeySet,
    /// The shards that were read.
    shards: HashSet<String>,
}

/// The ids of each date, as far as they were asked for.
#[derive(Default)]
pub(super) struct KnownIds {
    dates: BTreeMap<i32, Date>,
}

impl KnownIds {
    /// All ids of a date that `snapshot` has.
    pub(super) async fn of(&mut self, snapshot: Option<&Snapshot>, date: i32) -> Result<&KeySet, TableError> {
        let known = self.dates.entry(date).or_default();
        if let Some(snapshot) = snapshot {
            let text = date_text(date);
            let of_date = |shard: &&Shard| {
                shard.partition.get(EVENT_DATE).is_some_and(|value| value.as_deref() == Some(text.as_str()))
            };
            for shard in snapshot.shards().iter().filter(of_date) {
                if known.shards.contains(&shard.path) {
                    continue;
                }
                for batch in snapshot.read_shard(shard, &["event_id"]).await? {
                    known.keys.extend(batch.column(0).as_string::<i32>().iter().flatten().map(id_key));
                }
                known.shards.insert(shard.path.clone());
            }
        }
        Ok(&known.keys)
    }

    /// What was committed: it need not be read.
    pub(super) fn add(&mut self, date: i32, shard: String, keys: impl IntoIterator<Item = u128>) {
        // A date that nothing asked for is read when something does.
        if let Some(known) = self.dates.get_mut(&date) {
            known.keys.extend(keys);
            known.shards.insert(shard);
        }
    }

    /// Forgets the dates before `date`.
    pub(super) fn forget_before(&mut self, date: i32) {
        self.dates = self.dates.split_off(&date);
    }

    /// How many ids are kept.
    pub(super) fn len(&self) -> usize {
        self.dates.values().map(|date| date.keys.len()).sum()
    }
}

/// `2026-11-22`.
pub(super) fn date_text(days: i32) -> String {
    chrono::NaiveDate::from_epoch_days(days).map_or_else(|| days.to_string(), |date| date.to_string())
}
