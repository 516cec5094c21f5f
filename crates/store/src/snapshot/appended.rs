//! What later commits did to a table's rows, read from their log entries.

use std::collections::BTreeSet;

use deltalake::kernel::{Action, Add};

use super::{REST_OF, Snapshot};
use crate::error::TableError;

impl Snapshot {
    /// Returns the paths of the shards appended after version `since`, as Delta's streaming readers see them: a commit that also
    /// removes files (a compaction, a deletion) appends nothing. Where `pipeline forget` deleted rows of an appended shard, the
    /// shard with its remaining rows takes its place.
    ///
    /// # Errors
    ///
    /// [`TableError::Future`] if `since` does not exist yet; [`TableError::Expired`] if a later entry was cleaned up.
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

    /// Returns true if commits after version `since` deleted and changed no row: they only appended shards, or moved rows to
    /// other shards (a compaction).
    ///
    /// # Errors
    ///
    /// [`TableError::Expired`] if a later entry was cleaned up.
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

/// Applies a deletion to `appended`: replaces each appended shard by the one with its remaining rows. Does nothing unless every
/// shard that the commit adds is tagged with the shard it remains of ([`REST_OF`]) and every removal deletes rows.
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
