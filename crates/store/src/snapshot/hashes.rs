//! Hashes in a table's log, which reveal damaged files.
//!
//! A shard's tag holds the hash of its bytes, an entry's `commitInfo` the hash of its other actions. Readers ignore them;
//! `pipeline inspect --verify` checks both. Shards and entries of other programs have none.

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

/// Formats a hash as 32 hexadecimal digits.
pub fn hash_text(hash: u128) -> String {
    format!("{hash:032x}")
}

/// Hashes the actions of one log entry except `commitInfo`; each is an object with one key. The order of actions and of keys does
/// not matter, because writers keep maps in no order.
pub fn entry_hash<'a>(actions: impl IntoIterator<Item = &'a Value>) -> u128 {
    let hashed = actions.into_iter().filter(|action| action.get(COMMIT_INFO).is_none());
    let mut lines: Vec<String> = hashed.map(canonical).collect();
    lines.sort_unstable();
    hash128(lines.join("\n").as_bytes())
}

/// Formats a value with sorted keys.
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

/// Result of checking a log entry against its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryState {
    /// The actions match the hash.
    Sound,
    /// The actions do not match the hash, or the entry cannot be read.
    Damaged,
    /// The entry has no hash.
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
    /// Returns the hash of each shard's bytes as the log has it, in the order of [`shards`](Self::shards); `None` for a shard
    /// that another program or an earlier version of this one wrote.
    ///
    /// # Errors
    ///
    /// [`TableError::Log`]: the log cannot be read.
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

    /// Hashes the bytes of a shard; formatted by [`hash_text`].
    ///
    /// # Errors
    ///
    /// [`TableError::Shard`]: the shard cannot be read.
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

    /// Checks the log entry of `version` against its hash; `None` if there is no entry, or none any more.
    ///
    /// # Errors
    ///
    /// [`TableError::Log`]: the log cannot be read.
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
        // The order of lines and of keys does not matter.
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
