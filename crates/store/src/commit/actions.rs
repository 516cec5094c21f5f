//! Builds the actions of a log entry.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{CONTENT_HASH, REST_OF, Snapshot, entry_hash, hash_text, misfit};
use deltalake::DeltaTableError;
use deltalake::kernel::{Action, Add, Metadata, MetadataExt, Protocol, Remove, StructType, Transaction};

use super::{Change, CommitError, CommitMode, NewShard, log_error};

/// Returns the removals of all shards that the new version does not keep.
pub(super) fn removals(snapshot: &Snapshot, change: &Change<'_>) -> Result<Vec<Remove>, CommitError> {
    let state = snapshot.delta().snapshot().map_err(|e| log_error(change.table, e))?;
    let data = state.log_data();
    let Some(replaced) = change.mode.replaced() else {
        let all = change.mode == CommitMode::Replace;
        return Ok(data.iter().filter(|_| all).map(|file| file.remove_action(true)).collect());
    };
    let mut missing: BTreeSet<&str> = replaced.iter().map(|shard| shard.path.as_str()).collect();
    let found = data.iter().filter(|file| missing.remove(file.path().as_ref()));
    let removals = found.map(|file| file.remove_action(change.mode.changes_data())).collect();
    match missing.first() {
        None => Ok(removals),
        Some(&shard) => Err(CommitError::Superseded { table: change.table.into(), shard: shard.into() }),
    }
}

/// Returns one `txn` action per writer.
pub(super) fn transactions(reached: &BTreeMap<String, i64>) -> Vec<Transaction> {
    let now = Some(chrono::Utc::now().timestamp_millis());
    reached
        .iter()
        .map(|(application, &version)| Transaction::new_with_last_update(application, version, now))
        .collect()
}

/// Returns the protocol of new tables: no optional feature of Delta, so that every reader and writer supports them.
pub(super) fn plainest_protocol() -> Result<Protocol, DeltaTableError> {
    Ok(serde_json::from_value(serde_json::json!({ "minReaderVersion": 1, "minWriterVersion": 1 }))?)
}

/// Returns the table's metadata with the columns and properties of `change`; `None` if they are the same already.
pub(super) fn new_table_metadata(
    snapshot: &Snapshot,
    change: &Change<'_>,
    columns: &StructType,
) -> Result<Option<Metadata>, CommitError> {
    let state = snapshot.delta().snapshot().map_err(|e| log_error(change.table, e))?;
    let mut metadata = state.metadata().clone();
    let mut changed = false;
    if change.mode != CommitMode::Replace {
        let table = state.schema();
        if let Some(problem) = misfit(&table, columns) {
            return Err(CommitError::Columns { table: change.table.into(), problem });
        }
        // Shards from before the column was added hold nulls.
        let added: Vec<_> = columns.fields().filter(|f| table.field(f.name()).is_none()).cloned().collect();
        if !added.is_empty() {
            let all = StructType::try_new(table.fields().cloned().chain(added));
            let all = all.map_err(|e| log_error(change.table, DeltaTableError::generic(e.to_string())))?;
            metadata = metadata.with_schema(&all).map_err(|e| log_error(change.table, e))?;
            changed = true;
        }
    } else if state.schema().as_ref() != columns {
        metadata = metadata.with_schema(columns).map_err(|e| log_error(change.table, e))?;
        changed = true;
    }
    if change.mode == CommitMode::Replace {
        for key in snapshot.properties().keys() {
            if !change.properties.contains_key(key) && !key.starts_with("delta.") {
                metadata = metadata.remove_config_key(key).map_err(|e| log_error(change.table, e))?;
                changed = true;
            }
        }
    }
    let is_rewrite = change.mode.replaced().is_some();
    for (key, value) in change.properties.iter().filter(|_| !is_rewrite) {
        if snapshot.properties().get(key) != Some(value) {
            metadata = metadata
                .add_config_key(key.clone(), value.clone())
                .map_err(|e| log_error(change.table, e))?;
            changed = true;
        }
    }
    Ok(changed.then_some(metadata))
}

/// Hashes the actions and transactions of an entry, for [`ENTRY_HASH`](crate::ENTRY_HASH).
pub(super) fn sealed(actions: &[Action], transactions: &[Transaction]) -> Result<String, DeltaTableError> {
    let actions = actions.iter().map(serde_json::to_value);
    let transactions = transactions.iter().map(|txn| serde_json::to_value(Action::Txn(txn.clone())));
    let values = actions.chain(transactions).collect::<Result<Vec<_>, _>>()?;
    Ok(hash_text(entry_hash(&values)))
}

/// Returns the `add` action of a shard, with its hash as a tag and its row count as statistics.
pub(super) fn add(shard: &NewShard, data_change: bool) -> Add {
    let mut tags = HashMap::from([(CONTENT_HASH.to_owned(), Some(hash_text(shard.hash)))]);
    tags.extend(shard.rest_of.as_ref().map(|path| (REST_OF.to_owned(), Some(path.clone()))));
    Add {
        path: shard.path.clone(),
        partition_values: shard.partition.iter().map(|(k, v)| (k.clone(), Some(v.clone()))).collect(),
        size: i64::try_from(shard.bytes).unwrap_or(i64::MAX),
        modification_time: chrono::Utc::now().timestamp_millis(),
        data_change,
        tags: Some(tags),
        stats: Some(serde_json::json!({ "numRecords": shard.rows }).to_string()),
        ..Add::default()
    }
}
