//! Events that are new to a model, and their users: `build-sequences --since V`.
//!
//! Fresh events are those appended after version `V`, according to the table's log. For nearly all of them the shard
//! decides: an event is fresh if its shard is. If a later commit (a compaction) has rewritten such a shard, its events
//! now lie among older ones; they are recognized by their ids, read from the original shard, which stays on disk until
//! it is vacuumed.
//!
//! Memory: a hash for each user with a fresh event, and for each event of a rewritten shard.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::AsArray;
use datafusion::physical_plan::ExecutionPlan;
use schemas::hash::hash64;
use schemas::tables::EVENT_DATE;
use store::{Shard, Snapshot, TableError};

use super::error::BuildError;
use crate::records::date_days;

/// A scan of shards: either all of their events are fresh, or the shards are not.
pub(super) struct Scan {
    pub plan: Arc<dyn ExecutionPlan>,
    pub is_fresh: bool,
}

/// The events appended after a version.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    paths: BTreeSet<String>,
    users: HashSet<u64, foldhash::fast::FixedState>,
    /// Date and hash of the id → number of fresh events in shards that are not fresh.
    moved: HashMap<(i32, u64), u64, foldhash::fast::FixedState>,
}

impl Fresh {
    /// The events appended to `events` after version `since`.
    pub(crate) async fn since(events: &Snapshot, since: u64) -> Result<Self, BuildError> {
        let paths = events.appended_since(since).await?;
        let mut fresh = Self { paths: paths.clone(), ..Self::default() };
        let present: HashSet<&str> = events.shards().iter().map(|shard| shard.path.as_str()).collect();
        for path in paths {
            let moved = !present.contains(path.as_str());
            let shard = Shard { path, bytes: 0, rows: None, partition: [].into() };
            let date = moved.then(|| date_in(&shard.path)).flatten();
            if moved && date.is_none() {
                let problem = "its path names no date".into();
                return Err(TableError::Shard {
                    table: events.name().into(),
                    shard: shard.path,
                    source: problem,
                }
                .into());
            }
            for batch in events.read_shard(&shard, &["user_id", "event_id"]).await? {
                let users = batch.column(0).as_string::<i32>().iter().flatten();
                fresh.users.extend(users.map(|user| hash64(user.as_bytes())));
                if let Some(date) = date {
                    let ids = batch.column(1).as_string::<i32>().iter().flatten();
                    for id in ids {
                        *fresh.moved.entry((date, hash64(id.as_bytes()))).or_default() += 1;
                    }
                }
            }
        }
        Ok(fresh)
    }

    /// Whether all events of the shard are fresh.
    pub(super) fn has_shard(&self, shard: &Shard) -> bool {
        self.paths.contains(&shard.path)
    }

    /// Whether the user with this hash has a fresh event. Another user may share the hash; reading that history as well
    /// costs time and changes no result.
    pub(super) fn has_user(&self, user: u64) -> bool {
        self.users.contains(&user)
    }

    /// Number of fresh copies of an event in shards that are not fresh.
    pub(super) fn moved(&self, date: i32, event: u64) -> u64 {
        if self.moved.is_empty() { 0 } else { self.moved.get(&(date, event)).copied().unwrap_or_default() }
    }
}

/// The date in `event_date=2026-11-22/part-….parquet`, in days.
fn date_in(path: &str) -> Option<i32> {
    let text = path.split('/').find_map(|part| part.strip_prefix(EVENT_DATE)?.strip_prefix('='))?;
    date_days(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_its_date() {
        assert_eq!(date_in("event_date=1970-01-03/part-1.parquet"), Some(2));
        assert_eq!(date_in("part-1.parquet"), None);
    }
}
