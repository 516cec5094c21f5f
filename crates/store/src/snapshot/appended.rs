//! What the commits after a version did to the rows of a table.

use std::collections::BTreeSet;

use deltalake::kernel::{Action, Add};

use super::{REST_OF, Snapshot};
use crate::error::TableError;

impl Snapshot {
    /// The paths of the shards that were appended after version `since`, as Delta's streaming readers see them:
    /// a commit that also removes files (a compaction, a deletion) appends nothing. Where `pipeline forget` took rows out of
    /// such a shard, what is left of it stands for it.
    pub async fn appended_since(&self, since: u64) -> Result<BTreeSet<String>, TableError> {
        if since > self.version {
            return Err(TableError::Future { table: self.name.clone(), since, newest: self.version });
        }
        let mut appended = BTreeSet::new();
        for version in since + 1..=self.version {
            let actions = self.entry(since, version).await?;
            if actions.iter().any(|action| matches!(action, Action::Remove(_))) {
                without_deleted(&mut appended, actions);
                continue;
            }
            appended.extend(actions.into_iter().filter_map(|action| match action {
                Action::Add(add) if add.data_change => Some(add.path),
                _ => None,
            }));
        }
        Ok(appended)
    }

    /// Whether commits after version `since` took no row out of the table and changed none: they appended shards, or moved rows into
    /// others (a compaction).
    pub async fn has_only_grown_since(&self, since: u64) -> Result<bool, TableError> {
        for version in since + 1..=self.version {
            let deletes = |action: &Action| matches!(action, Action::Remove(remove) if remove.data_change);
            if self.entry(since, version).await?.iter().any(deletes) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Lets what is left of shards stand for them, where a commit says of all its new shards what they are left of: what is left is
/// as new as the whole was.
fn without_deleted(appended: &mut BTreeSet<String>, actions: Vec<Action>) {
    let mut rests = Vec::new();
    let mut deleted = Vec::new();
    for action in actions {
        match action {
            Action::Add(Add { path, tags, .. }) => match tags.and_then(|mut tags| tags.remove(REST_OF)?) {
                Some(whole) => rests.push((path, whole)),
                None => return,
            },
            Action::Remove(remove) if !remove.data_change => return,
            Action::Remove(remove) => deleted.push(remove.path),
            _ => {}
        }
    }
    for (rest, whole) in rests {
        if appended.contains(&whole) {
            appended.insert(rest);
        }
    }
    deleted.iter().for_each(|path| _ = appended.remove(path));
}
