//! The end of a run: the commits, or the clean-up.

use std::collections::BTreeMap;

use schemas::delta::{Root, Snapshot};
use schemas::tables::{DEAD_LETTERS, DEAD_LETTERS_SCHEMA, EVENT_DATE, EVENTS, EVENTS_SCHEMA, ITEMS};

use super::error::IngestError;
use super::items::Items;
use super::report::Versions;
use crate::commit::{Change, CommitMode, NewShard, commit, discard};

/// Shards that no commit has named yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) events: Vec<NewShard>,
    pub(super) items: Vec<NewShard>,
    pub(super) dead_letters: Vec<NewShard>,
}

impl Pending {
    pub(super) fn discard(&self, root: &Root) {
        discard(root, EVENTS, &self.events);
        discard(root, ITEMS, &self.items);
        discard(root, DEAD_LETTERS, &self.dead_letters);
    }
}

/// The tables before the run.
pub(super) struct Before {
    pub(super) events: Option<Snapshot>,
    pub(super) items: Option<Snapshot>,
    pub(super) dead_letters: Option<Snapshot>,
}

/// The commits, in the order that a second run can complete.
pub(super) async fn commit_all(
    root: &Root,
    before: &Before,
    pending: &mut Pending,
    items: &Items,
    events_read: bool,
) -> Result<Versions, IngestError> {
    let version = |snapshot: &Option<Snapshot>| snapshot.as_ref().map(Snapshot::version);
    // A shard is not pending any more once its commit is tried: whether it stands may be unknown afterwards.
    let shards = std::mem::take(&mut pending.dead_letters);
    let dead_letters = commit(
        root,
        Change {
            table: DEAD_LETTERS,
            schema: &DEAD_LETTERS_SCHEMA,
            partition_by: &[],
            mode: CommitMode::Append,
            shards: &shards,
            properties: BTreeMap::new(),
            read_version: version(&before.dead_letters),
            transactions: BTreeMap::new(),
        },
    )
    .await?
    .version;

    let shards = std::mem::take(&mut pending.items);
    let items = match (shards.is_empty(), version(&before.items)) {
        (true, Some(version)) => version,
        (_, read_version) => {
            let change = Change {
                table: ITEMS,
                schema: &items.schema(),
                partition_by: &[],
                mode: CommitMode::Replace,
                shards: &shards,
                properties: before.items.as_ref().map(own_properties).unwrap_or_default(),
                read_version,
                transactions: BTreeMap::new(),
            };
            commit(root, change).await?.version
        }
    };

    let shards = std::mem::take(&mut pending.events);
    let events = if events_read {
        let change = Change {
            table: EVENTS,
            schema: &EVENTS_SCHEMA,
            partition_by: &[EVENT_DATE],
            mode: CommitMode::Append,
            shards: &shards,
            properties: BTreeMap::new(),
            read_version: version(&before.events),
            transactions: BTreeMap::new(),
        };
        Some(commit(root, change).await?.version)
    } else {
        version(&before.events)
    };
    Ok(Versions { events, items, dead_letters })
}

/// The properties that a replacement would lose.
fn own_properties(snapshot: &Snapshot) -> BTreeMap<String, String> {
    snapshot.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}
