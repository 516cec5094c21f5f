//! Writing tables: Parquet shards, then one atomic commit that names them.
//!
//! ```text
//!   ShardWriter::create ─▶ write, write, … ─▶ finish ─▶ NewShard
//!        part-<uuid>.parquet grows             │          no version names it yet: readers see nothing
//!                                              ▼
//!   commit ── the table is still at `read_version`? ── no ──▶ Conflict; the shards are deleted
//!                                 │ yes
//!                                 ▼
//!      _delta_log/<read_version + 1>.json, created only if no such file exists
//!        {protocol, metadata}   where the table is new
//!        {metadata}             where the columns or properties change
//!        {remove …}             Replace: every shard of `read_version`; Rewrite: those that it names
//!        {add …}                the new shards
//!        {txn …}                how far the writer has come in its sources
//! ```
//!
//! The log entry is the commit: before it exists the table is as it was, afterwards it is as intended. The
//! shards reach the disk before the entry is written, and the entry before the next commit begins, so that this
//! holds for a power cut too ([`durable`]). A
//! process that dies in between leaves shards that no version names; a later `vacuum` may delete them, and
//! nothing ever reads them.
//!
//! There is no retry. What a commit holds was computed from the version that the caller read (which events
//! are duplicates, which index an item has), so on top of another writer's commit it could be wrong. The
//! caller is told, and runs again. A [`Rewrite`](CommitMode::Rewrite) is the exception: it holds the rows of some
//! shards in other shards, which is right on top of every version that still has them.
//!
//! Delta has no unsigned types: the log's schema says `integer` for `UInt32` and `byte` for `UInt8`, and
//! `timestamp` for milliseconds. The shards keep the types of [`schemas::tables`].

mod actions;
mod durable;
mod shard;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use arrow::datatypes::SchemaRef;
use deltalake::DeltaTableError;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, TableReference, TransactionError};
use deltalake::kernel::{Action, StructType, new_metadata};
use deltalake::protocol::{DeltaOperation, SaveMode};
use schemas::delta::{Root, Shard, Snapshot, TableError};
use schemas::failpoint;

use actions::{add, new_table_metadata, plainest_protocol, removals, transactions};
pub use shard::{NewShard, ShardWriter, discard};

/// A table that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The table's log cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Another writer was faster.
    #[error(
        "table `{table}` was changed by another writer during this run (this run had read {}); \
         nothing of this run was committed to it; run the command again",
        read_version.map_or_else(|| "no table".into(), |v| format!("version {v}"))
    )]
    Conflict {
        /// The table.
        table: String,
        /// What this run had read.
        read_version: Option<u64>,
    },
    /// Another writer removed what was rewritten.
    #[error(
        "shard {shard} of table `{table}` was removed by another writer while it was rewritten; nothing was \
         committed"
    )]
    Superseded {
        /// The table.
        table: String,
        /// The first shard that is not there any more.
        shard: String,
    },
    /// A shard cannot be written.
    #[error("cannot write shard {path}")]
    Shard {
        /// The file.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An append whose columns are not the table's.
    #[error("table `{table}` has other columns than the rows to append: {problem}")]
    Columns {
        /// The table.
        table: String,
        /// The difference.
        problem: String,
    },
    /// The log entry cannot be written.
    #[error("cannot commit to table `{table}`")]
    Log {
        /// The table.
        table: String,
        /// Why.
        source: Box<DeltaTableError>,
    },
}

/// What the new version holds besides the new shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode<'a> {
    /// The shards of the version before.
    Append,
    /// Nothing.
    Replace,
    /// The shards of the version before, but for some whose rows are in the new shards: no reader sees other
    /// rows, and none that follows the log sees new ones. Columns and properties stay.
    Rewrite {
        /// The shards that the new ones stand for.
        replaced: &'a [Shard],
        /// The size that the new ones were to have, for the log.
        target_bytes: u64,
    },
    /// As [`Rewrite`](Self::Rewrite), but some rows of the replaced shards are not in the new ones: they are deleted.
    Delete {
        /// The shards with such rows.
        replaced: &'a [Shard],
    },
}

impl<'a> CommitMode<'a> {
    /// The shards that others stand for.
    fn replaced(self) -> Option<&'a [Shard]> {
        match self {
            Self::Rewrite { replaced, .. } | Self::Delete { replaced } => Some(replaced),
            Self::Append | Self::Replace => None,
        }
    }

    /// Whether readers see other rows.
    fn changes_data(self) -> bool {
        !matches!(self, Self::Rewrite { .. })
    }

    fn operation(self, partition_by: &[&str]) -> DeltaOperation {
        let write = |mode| DeltaOperation::Write {
            mode,
            partition_by: Some(partition_by.iter().map(ToString::to_string).collect()),
            predicate: None,
        };
        match self {
            Self::Append => write(SaveMode::Append),
            Self::Replace => write(SaveMode::Overwrite),
            Self::Rewrite { target_bytes, .. } => DeltaOperation::Optimize {
                predicate: None,
                target_size: i64::try_from(target_bytes).unwrap_or(i64::MAX),
            },
            Self::Delete { .. } => DeltaOperation::Delete { predicate: None },
        }
    }
}

/// So often a rewrite is tried on the version that another writer has just made.
const REWRITE_TRIES: usize = 10;

/// One commit to be made.
#[derive(Debug)]
pub struct Change<'a> {
    /// The table.
    pub table: &'a str,
    /// All columns, partition columns included.
    pub schema: &'a SchemaRef,
    /// The partition columns.
    pub partition_by: &'a [&'a str],
    /// What becomes of the present shards.
    pub mode: CommitMode<'a>,
    /// The shards to add.
    pub shards: &'a [NewShard],
    /// Table properties. `Append` keeps those that are not named here; `Replace` keeps only Delta's own
    /// (`delta.…`); `Rewrite` and `Delete` keep all and take none.
    pub properties: BTreeMap<String, String>,
    /// The version from which the shards were computed; `None` where the table did not exist. `Rewrite` and `Delete` go on top
    /// of every later version that has the replaced shards.
    pub read_version: Option<u64>,
    /// How far writers have come: each with the number that [`Snapshot::transaction`] gives from then on.
    pub transactions: BTreeMap<String, i64>,
}

/// The table after [`commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// Its newest version.
    pub version: u64,
    /// Whether this call made it; a commit that would change nothing is not made.
    pub changed: bool,
}

/// Makes one change to a table atomically, and creates the table where it does not exist.
///
/// A [`CommitError::Conflict`], [`CommitError::Superseded`] or [`CommitError::Columns`] deletes the new shards.
/// Other errors leave them: whether the log entry was written may then be unknown.
pub async fn commit(root: &Root, change: Change<'_>) -> Result<Committed, CommitError> {
    let mut result = attempt(root, &change).await;
    if change.mode.replaced().is_some() {
        for _ in 1..REWRITE_TRIES {
            if !matches!(result, Err(CommitError::Conflict { .. })) {
                break;
            }
            result = attempt(root, &change).await;
        }
    }
    if let Err(CommitError::Conflict { .. } | CommitError::Superseded { .. } | CommitError::Columns { .. }) =
        result
    {
        discard(root, change.table, change.shards);
    }
    result
}

async fn attempt(root: &Root, change: &Change<'_>) -> Result<Committed, CommitError> {
    let log = |source| log_error(change.table, source);
    let conflict = || CommitError::Conflict { table: change.table.into(), read_version: change.read_version };
    let snapshot = root.snapshot(change.table).await?;
    let is_rewrite = change.mode.replaced().is_some();
    if snapshot.as_ref().map(Snapshot::version) != change.read_version && !(is_rewrite && snapshot.is_some())
    {
        return Err(conflict());
    }
    let columns: StructType = change.schema.as_ref().try_into_kernel().map_err(|e| log(e.into()))?;
    let mut actions = Vec::with_capacity(change.shards.len() + 2);
    match &snapshot {
        None => {
            actions.push(Action::Protocol(plainest_protocol().map_err(log)?));
            let metadata =
                new_metadata(&columns, change.partition_by, &change.properties).map_err(|e| log(e.into()))?;
            actions.push(Action::Metadata(metadata));
        }
        Some(snapshot) => {
            if let Some(metadata) = new_table_metadata(snapshot, change, &columns)? {
                actions.push(Action::Metadata(metadata));
            }
            actions.extend(removals(snapshot, change)?.into_iter().map(Action::Remove));
        }
    }
    actions.extend(change.shards.iter().map(|shard| Action::Add(add(shard, change.mode.changes_data()))));
    if let Some(snapshot) = &snapshot
        && actions.is_empty()
        && change.transactions.is_empty()
    {
        return Ok(Committed { version: snapshot.version(), changed: false });
    }

    let (state, log_store) = match &snapshot {
        Some(snapshot) => {
            let state: &dyn TableReference = snapshot.delta().snapshot().map_err(log)?;
            (Some(state), snapshot.delta().log_store())
        }
        None => {
            let path = root.table_path(change.table);
            std::fs::create_dir_all(&path)
                .map_err(|e| CommitError::Shard { path: path.display().to_string(), source: e.into() })?;
            let builder = deltalake::DeltaTableBuilder::from_url(root.table_url(change.table)?);
            (None, builder.and_then(|b| b.build_storage()).map_err(log)?)
        }
    };
    let operation = change.mode.operation(change.partition_by);
    // Old log entries stay: which commits came after a version is read from them.
    let properties = CommitProperties::default()
        .with_max_retries(0)
        .with_cleanup_expired_logs(Some(false))
        .with_application_transactions(transactions(&change.transactions));
    let directory = root.table_path(change.table);
    durable::shards(&directory, change.shards)?;
    failpoint::reach(format_args!("commit:{}:before-log", change.table));
    let prepared = CommitBuilder::from(properties)
        .with_actions(actions)
        .build(state, log_store, operation)
        .into_prepared_commit_future()
        .await
        .map_err(log)?;
    let done = prepared.await.map_err(|error| match error {
        DeltaTableError::VersionAlreadyExists(_)
        | DeltaTableError::Transaction {
            source: TransactionError::MaxCommitAttempts(_) | TransactionError::CommitConflict(_),
        } => conflict(),
        error => log(error),
    })?;
    let version = done.version;
    durable::log_entry(&directory, version)?;
    failpoint::reach(format_args!("commit:{}:after-log", change.table));
    // From here on the commit stands. What follows only writes a checkpoint of the log now and then, and a
    // log without one reads as well.
    let _ = done.await;
    Ok(Committed { version, changed: true })
}

fn log_error(table: &str, source: impl Into<DeltaTableError>) -> CommitError {
    CommitError::Log { table: table.into(), source: Box::new(source.into()) }
}
