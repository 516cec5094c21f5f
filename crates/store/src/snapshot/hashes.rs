//! Hashes in a table's log: damage changes a file, and the hash shows it.
//!
//! A shard's tag has the hash of its bytes, and an entry's `commitInfo` the hash of its other actions. Readers do not look at
//! them; `pipeline inspect --verify` proves both. Shards and entries of other programs have none.

use std::collections::HashMap;

use object_store::{GetResultPayload, ObjectStoreExt as _};
use schemas::hash::{hash128, hash128_of};
use serde_json::Value;

use super::{Shard, Snapshot};
use crate::error::TableError;

/// Tag of a shard in the log: [`hash128`] of its bytes, as [`hash_text`].
pub const CONTENT_HASH: &str = "climberPilotHash";

/// Key of a log entry's `commitInfo`: [`entry_hash`] of its actions, as [`hash_text`].
pub const ENTRY_HASH: &str = "climberPilotActions";

const COMMIT_INFO: &str = "commitInfo";

/// A hash as 32 hexadecimal digits.
pub fn hash_text(hash: u128) -> String {
    format!("{hash:032x}")
}

/// Hash of the actions of one log entry but for `commitInfo`, each an object with one key. Neither their order counts nor that of
/// keys: writers keep maps in no order.
pub fn entry_hash<'a>(actions: impl IntoIterator<Item = &'a Value>) -> u128 {
    let hashed = actions.into_iter().filter(|action| action.get(COMMIT_INFO).is_none());
    let mut lines: Vec<String> = hashed.map(canonical).collect();
    lines.sort_unstable();
    hash128(lines.join("\n").as_bytes())
}

/// A value as text, keys sorted.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<(&String, &Value)> = members.iter().collect();
            members.sort_unstable_by_key(|&(key, _)| key);
            let members = members.into_iter().map(|(key, value)| {
                let key = Value::from(key.as_str());
                format!("{key}:{}", canonical(value))
            });
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(elements) => {
            format!("[{}]", elements.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        value => value.to_string(),
    }
}

/// What a log entry's hash says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryState {
    /// Its actions are those that were written.
    Sound,
    /// They are not, or the entry cannot be read.
    Damaged,
    /// It has no hash.
    Unknown,
}

impl EntryState {
    fn of(entry: &[u8]) -> Self {
        let lines = entry.split(|&byte| byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let Ok(actions) = lines.map(serde_json::from_slice).collect::<Result<Vec<Value>, _>>() else {
            return Self::Damaged;
        };
        let written = actions.iter().find_map(|action| action.get(COMMIT_INFO)?.get(ENTRY_HASH)?.as_str());
        match written {
            Some(written) if written == hash_text(entry_hash(&actions)) => Self::Sound,
            Some(_) => Self::Damaged,
            None => Self::Unknown,
        }
    }
}

impl Snapshot {
    /// The hash that the log has of a shard's bytes, for each of [`shards`](Self::shards); `None` where another program, or an
    /// earlier version of this one, wrote it.
    ///
    /// # Errors
    ///
    /// A log that cannot be read.
    pub fn content_hashes(&self) -> Result<Vec<Option<String>>, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let state = self.table.snapshot().map_err(log)?;
        let files = state.log_data();
        let tagged = files.iter().filter_map(|file| {
            #[expect(deprecated, reason = "the table of these actions leaves their tags out")]
            let add = file.add_action();
            Some((file.path().into_owned(), add.tags?.remove(CONTENT_HASH)??))
        });
        let mut hashes: HashMap<String, String> = tagged.collect();
        Ok(self.shards.iter().map(|shard| hashes.remove(&shard.path)).collect())
    }

    /// Hash of a shard's bytes, as [`hash_text`].
    ///
    /// # Errors
    ///
    /// A shard that cannot be read.
    pub async fn content_hash(&self, shard: &Shard) -> Result<String, TableError> {
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| TableError::Shard {
            table: self.name.clone(),
            shard: shard.path.clone(),
            source,
        };
        let object = self.table.object_store().get(&shard.location()).await.map_err(|e| fail(e.into()))?;
        let hash = match object.payload {
            GetResultPayload::File(file, _) => hash128_of(file).map_err(|e| fail(e.into()))?,
            _ => hash128(&object.bytes().await.map_err(|e| fail(e.into()))?),
        };
        Ok(hash_text(hash))
    }

    /// What the hash of the log entry of `version` says; `None` where there is no entry (any more).
    ///
    /// # Errors
    ///
    /// A log that cannot be read.
    pub async fn entry_state(&self, version: u64) -> Result<Option<EntryState>, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let entry = self.table.log_store().read_commit_entry(version).await.map_err(log)?;
        Ok(entry.map(|entry| EntryState::of(&entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bit_of_an_action_counts() {
        let actions = r#"{"txn":{"appId":"t-0","version":17,"lastUpdated":1}}
{"add":{"path":"a.parquet","partitionValues":{"event_date":"2026-01-01","b":"c"},"size":9,"tags":{"x":null}}}"#;
        let parsed: Vec<Value> = actions.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let hash = hash_text(entry_hash(&parsed));
        let entry = format!("{{\"commitInfo\":{{\"{ENTRY_HASH}\":\"{hash}\",\"timestamp\":5}}}}\n{actions}");
        assert_eq!(EntryState::of(entry.as_bytes()), EntryState::Sound);
        // Neither the order of lines nor that of keys.
        let other = entry.lines().rev().collect::<Vec<_>>().join("\n");
        let other =
            other.replace(r#""event_date":"2026-01-01","b":"c""#, r#""b":"c","event_date":"2026-01-01""#);
        assert_eq!(EntryState::of(other.as_bytes()), EntryState::Sound);
        let first = entry.len() - actions.len();
        for at in first..entry.len() {
            for bit in 0..8 {
                let mut entry = entry.clone().into_bytes();
                entry[at] ^= 1 << bit;
                let same = |e: &[u8]| String::from_utf8_lossy(e).split_whitespace().collect::<String>();
                if same(&entry) == same(other.as_bytes()) {
                    continue;
                }
                assert_eq!(EntryState::of(&entry), EntryState::Damaged, "bit {bit} of byte {at}");
            }
        }
        assert_eq!(EntryState::of(actions.as_bytes()), EntryState::Unknown);
        assert_eq!(EntryState::of(&entry.as_bytes()[..entry.len() - 1]), EntryState::Damaged);
    }
}
