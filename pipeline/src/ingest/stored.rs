//! Reads the stored events: their shards by date, and the ids in the shards.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use schemas::tables::{EVENT_DATE, EVENTS};
use store::{Root, Shard, Snapshot, shard_batches};

use super::error::IngestError;

/// The shards of each date.
pub(super) fn shards_by_date(snapshot: &Snapshot) -> BTreeMap<&str, Vec<&Shard>> {
    let mut by_date: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for shard in snapshot.shards() {
        if let Some(Some(date)) = shard.partition.get(EVENT_DATE) {
            by_date.entry(date).or_default().push(shard);
        }
    }
    by_date
}

/// Reads the ids of a stored shard, one batch at a time.
pub(super) fn read_stored_ids(
    root: &Root,
    shard: &Shard,
    mut take: impl FnMut(&str),
) -> Result<(), IngestError> {
    let file = root.open_shard(EVENTS, &shard.path)?;
    for batch in shard_batches(EVENTS, shard, file, &["event_id"])? {
        batch?.column(0).as_string::<i32>().iter().flatten().for_each(&mut take);
    }
    Ok(())
}
