//! Writes tables: Parquet shards, then one atomic commit that names them.
//!
//! ```text
//!   ShardWriter::create ─▶ write, write, … ─▶ finish ─▶ NewShard
//!        part-<uuid>.parquet grows             │          no version names it yet: readers see nothing
//!                                              ▼
//!   commit ── is the table still at `read_version`? ── no ──▶ Conflict
//!                                 │ yes
//!                                 ▼
//!      _delta_log/<read_version + 1>.json, created only if it does not exist
//!        {protocol, metadata}   for a new table
//!        {metadata}             if columns or properties change
//!        {remove …}             Replace: every shard of `read_version`; Rewrite, Delete: the shards they name
//!        {add …}                the new shards
//!        {txn …}                the writer's offsets in its sources
//! ```
//!
//! The log entry is the commit: without it the table is unchanged, with it the change is complete. Shards are synced before the
//! entry is written, and the entry before the next commit begins, so this holds for a power cut too ([`durable`]). A process that
//! dies in between leaves shards that no version names and no reader opens, for `vacuum` to delete. A process that lives on
//! deletes the shards of a failed commit, and no others, also if the waiting task is cancelled ([`Uncommitted`]).
//!
//! A store may write the log entry and still answer with an error: the answer is lost, and the client's retry fails because the
//! entry exists. Each entry therefore carries its own id, and after an error the entry is read back: the commit stands, or
//! another writer was faster, or the outcome is unknown, and then the shards stay.
//!
//! Commits are not retried. Their contents were computed from the version that the caller read (which events are duplicates,
//! which index an item has) and may be wrong on top of another; the caller gets a conflict and runs again. The exceptions are
//! [`Rewrite`](CommitMode::Rewrite) and [`Delete`](CommitMode::Delete), whose shards replace others on every version that still
//! has them.
//!
//! Delta has no unsigned types: the log's schema says `integer` for `UInt32`, `byte` for `UInt8`, and `timestamp` for
//! milliseconds. The shards keep the types of [`schemas::tables`].

mod actions;
mod durable;
mod shard;
#[cfg(test)]
mod tests;
mod uncommitted;

use std::collections::BTreeMap;

use crate::failpoint;
use crate::{ENTRY_HASH, Root, Shard, Snapshot, TableError};
use arrow::datatypes::SchemaRef;
use deltalake::DeltaTableError;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties, TableReference};
use deltalake::kernel::{Action, StructType, new_metadata};
use deltalake::logstore::{LogStore, LogStoreRef, get_actions};
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::table::config::TablePropertiesExt as _;
use uuid::Uuid;

use actions::{add, new_table_metadata, plainest_protocol, removals, sealed, transactions};
pub use durable::sync_shard;
use shard::discard;
pub use shard::{NewShard, ShardWriter};
pub use uncommitted::Uncommitted;

/// A table that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The table cannot be read or written to.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Another writer committed first.
    #[error(
        "table `{table}` was changed by another writer during this run (this run had read {}); \
         nothing of this run was committed to it; run the command again",
        read_version.map_or_else(|| "no table".into(), |v| format!("version {v}"))
    )]
    Conflict {
        /// The table.
        table: String,
        /// Version that this run had read.
        read_version: Option<u64>,
    },
    /// Another writer removed a shard that this run was to replace.
    #[error(
        "shard {shard} of table `{table}` was removed by another writer while it was rewritten; nothing was \
         committed"
    )]
    Superseded {
        /// The table.
        table: String,
        /// The first missing shard.
        shard: String,
    },
    /// A shard cannot be written.
    #[error("cannot write shard {path}")]
    Shard {
        /// The file.
        path: String,
        /// Cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The columns to append differ from the table's.
    #[error("table `{table}` has other columns than the rows to append: it is one {problem}")]
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
        /// Cause.
        source: Box<DeltaTableError>,
    },
    /// The log entry was requested, and whether it exists is unknown.
    #[error(
        "version {version} of table `{table}` may be committed or not: {problem}; its shards were left where they are; \
         run the command again, which finds out"
    )]
    Unknown {
        /// The table.
        table: String,
        /// Version of the requested entry.
        version: u64,
        /// The store's answer.
        problem: String,
    },
}

/// Key in a log entry's `commitInfo` of the commit's own id.
const COMMIT_ID: &str = "climberPilotCommit";

/// Which shards of the previous version the new version keeps, besides the new shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitMode<'a> {
    /// All.
    Append,
    /// None.
    Replace,
    /// All except those whose rows the new shards hold: readers see the same rows, and incremental readers do not see them again.
    /// Columns and properties stay.
    Rewrite {
        /// Shards that the new ones replace.
        replaced: &'a [Shard],
        /// Target size of the new shards in bytes, noted in the log.
        target_bytes: u64,
    },
    /// Like [`Rewrite`](Self::Rewrite), but the new shards lack some rows of the replaced ones: these are deleted.
    Delete {
        /// Shards with rows to delete.
        replaced: &'a [Shard],
    },
}

impl<'a> CommitMode<'a> {
    /// Returns the shards that the new ones replace, in a rewrite or a deletion.
    fn replaced(self) -> Option<&'a [Shard]> {
        match self {
            Self::Rewrite { replaced, .. } | Self::Delete { replaced } => Some(replaced),
            Self::Append | Self::Replace => None,
        }
    }

    /// Returns true if readers see other rows afterwards.
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

/// Attempts of a rewrite or deletion, each on top of the version that another writer has just committed.
const REWRITE_TRIES: usize = 10;

/// A commit to make.
#[derive(Debug)]
pub struct Change<'a> {
    /// The table.
    pub table: &'a str,
    /// All columns, partition columns included.
    pub schema: &'a SchemaRef,
    /// Partition columns, in order.
    pub partition_by: &'a [&'a str],
    /// Which present shards stay.
    pub mode: CommitMode<'a>,
    /// New shards.
    pub shards: &'a [NewShard],
    /// Table properties. `Append` keeps properties that are not named here; `Replace` keeps only Delta's own (`delta.…`);
    /// `Rewrite` and `Delete` keep all and ignore these.
    pub properties: BTreeMap<String, String>,
    /// Version from which the shards were computed; `None` if the table did not exist. `Rewrite` and `Delete` also apply on top
    /// of later versions that still have the replaced shards.
    pub read_version: Option<u64>,
    /// Writer → its new offset, which [`Snapshot::transaction`] returns from then on.
    pub transactions: BTreeMap<String, i64>,
}

/// Result of [`commit`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The table's newest version.
    pub version: u64,
    /// Whether this call made it; a commit that would change nothing is skipped.
    pub changed: bool,
}

/// Changes a table atomically, and creates it if it does not exist. The caller keeps responsibility for the shards;
/// [`Uncommitted::commit`] also deletes them on failure.
///
/// # Errors
///
/// [`CommitError::Conflict`] or [`CommitError::Superseded`] if another writer was faster, [`CommitError::Unknown`] if the outcome
/// is not known; after any other error nothing is committed.
pub async fn commit(root: &Root, change: Change<'_>) -> Result<Committed, CommitError> {
    commit_of(root, change, None).await
}

/// [`commit`], with the outcome noted in `shards`.
async fn commit_of(
    root: &Root,
    change: Change<'_>,
    shards: Option<&Uncommitted>,
) -> Result<Committed, CommitError> {
    let mut result = attempt(root, &change, None, shards).await;
    if change.mode.replaced().is_some() {
        for _ in 1..REWRITE_TRIES {
            if !matches!(result, Err(CommitError::Conflict { .. })) {
                break;
            }
            result = attempt(root, &change, None, shards).await;
        }
    }
    result
}

/// Splits a commit's result: the inner error is a [`CommitError::Conflict`], the outer any other.
pub fn unless_overtaken(
    committed: Result<Committed, CommitError>,
) -> Result<Result<u64, CommitError>, CommitError> {
    match committed {
        Ok(committed) => Ok(Ok(committed.version)),
        Err(overtaken @ CommitError::Conflict { .. }) => Ok(Err(overtaken)),
        Err(error) => Err(error),
    }
}

/// Calls `attempt` until it commits, at most `tries` times. `attempt` reads the table anew and computes its change from it; its
/// inner error means that another writer was faster ([`unless_overtaken`]).
///
/// # Errors
///
/// Any outer error of `attempt`; the last inner one if every attempt was overtaken.
pub async fn until_committed<T, E: From<CommitError>>(
    tries: u32,
    mut attempt: impl AsyncFnMut() -> Result<Result<T, CommitError>, E>,
) -> Result<T, E> {
    for _ in 1..tries {
        if let Ok(done) = attempt().await? {
            return Ok(done);
        }
    }
    attempt().await?.map_err(E::from)
}

/// One attempt on top of `known`, or of the newest version.
async fn attempt(
    root: &Root,
    change: &Change<'_>,
    known: Option<&Snapshot>,
    shards: Option<&Uncommitted>,
) -> Result<Committed, CommitError> {
    let result = attempt_unsettled(root, change, known, shards).await;
    if let Some(shards) = shards {
        shards.settle(&result);
    }
    result
}

async fn attempt_unsettled(
    root: &Root,
    change: &Change<'_>,
    known: Option<&Snapshot>,
    shards: Option<&Uncommitted>,
) -> Result<Committed, CommitError> {
    let log = |source| log_error(change.table, source);
    let conflict = || CommitError::Conflict { table: change.table.into(), read_version: change.read_version };
    let removes = change.mode != CommitMode::Append;
    let loaded = match known {
        Some(_) => None,
        None => root.snapshot(change.table).await?,
    };
    let snapshot = known.or(loaded.as_ref());
    if let Some(snapshot) = snapshot {
        snapshot.check_writable(removes)?;
    }
    let is_rewrite = change.mode.replaced().is_some();
    if snapshot.map(Snapshot::version) != change.read_version && !(is_rewrite && snapshot.is_some()) {
        return Err(conflict());
    }
    let columns: StructType = change.schema.as_ref().try_into_kernel().map_err(|e| log(e.into()))?;
    let mut actions = Vec::with_capacity(change.shards.len() + 2);
    match snapshot {
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
    if let Some(snapshot) = snapshot
        && actions.is_empty()
        && change.transactions.is_empty()
    {
        return Ok(Committed { version: snapshot.version(), changed: false });
    }

    let log_store = match snapshot {
        Some(snapshot) => snapshot.delta().log_store(),
        None => {
            let path = root.table_path(change.table);
            std::fs::create_dir_all(&path)
                .map_err(|e| CommitError::Shard { path: path.display().to_string(), source: e.into() })?;
            root.table_builder(change.table)?.build_storage().map_err(log)?
        }
    };
    durable::shards(&root.table_path(change.table), change.shards)?;
    failpoint::reach(format_args!("commit:{}:before-log", change.table));
    enter(root, change, snapshot, actions, log_store, shards).await
}

/// Writes the log entry after `snapshot`, and settles the outcome if the store answers with an error.
async fn enter(
    root: &Root,
    change: &Change<'_>,
    snapshot: Option<&Snapshot>,
    actions: Vec<Action>,
    log_store: LogStoreRef,
    shards: Option<&Uncommitted>,
) -> Result<Committed, CommitError> {
    let log = |source| log_error(change.table, source);
    let state: Option<&dyn TableReference> = match snapshot {
        Some(snapshot) => Some(snapshot.delta().snapshot().map_err(log)?),
        None => None,
    };
    let id = Uuid::new_v4().to_string();
    let transactions = transactions(&change.transactions);
    let seal = sealed(&actions, &transactions).map_err(log)?;
    // Keep expired log entries: incremental readers list later commits from them.
    let properties = CommitProperties::default()
        .with_max_retries(0)
        .with_cleanup_expired_logs(Some(false))
        .with_metadata([(COMMIT_ID.to_owned(), id.clone().into()), (ENTRY_HASH.to_owned(), seal.into())])
        .with_application_transactions(transactions);
    let version = snapshot.map_or(0, |snapshot| snapshot.version() + 1);
    let prepared = CommitBuilder::from(properties)
        .with_actions(actions)
        .build(state, log_store.clone(), change.mode.operation(change.partition_by))
        .into_prepared_commit_future()
        .await
        .map_err(log)?;
    if let Some(shards) = shards {
        shards.entry_is_asked_for();
    }
    let done = match prepared.await {
        Ok(done) => Some(done),
        Err(error) => match whose(log_store.as_ref(), version, &id).await {
            Ok(Some(Whose::Ours)) => None,
            Ok(Some(Whose::Others)) => {
                return Err(CommitError::Conflict {
                    table: change.table.into(),
                    read_version: change.read_version,
                });
            }
            // A local directory has no request in flight that could still write the entry.
            Ok(None) if log_store.root_url().scheme() == "file" => {
                return Err(log(error));
            }
            Ok(None) => return Err(unknown(change.table, version, &error)),
            Err(unread) => {
                let problem = format!("{error}; reading the log entry: {unread}");
                return Err(unknown(change.table, version, &problem));
            }
        },
    };
    durable::log_entry(&root.table_path(change.table), version)
        .map_err(|error| unknown(change.table, version, &chain(&error)))?;
    failpoint::reach(format_args!("commit:{}:after-log", change.table));
    // The commit stands from here on. What remains writes a checkpoint and loads the table again, so skip it if none is due; a
    // failure does not matter, because a log reads as well without one.
    if let Some(done) = done.filter(|_| checkpoint_is_due(snapshot, version)) {
        let _ = done.await;
    }
    Ok(Committed { version, changed: true })
}

/// Returns true if Delta writes a checkpoint with this version.
fn checkpoint_is_due(snapshot: Option<&Snapshot>, version: u64) -> bool {
    let state = snapshot.and_then(|snapshot| snapshot.delta().snapshot().ok());
    state.is_some_and(|state| {
        let interval = state.table_config().checkpoint_interval().get();
        (version + 1).is_multiple_of(interval)
    })
}

/// Which writer made a version.
enum Whose {
    Ours,
    Others,
}

/// Reads back the log entry of `version` and compares its id; `None` if there is no entry.
async fn whose(log: &dyn LogStore, version: u64, id: &str) -> Result<Option<Whose>, DeltaTableError> {
    let Some(entry) = log.read_commit_entry(version).await? else { return Ok(None) };
    let ours = get_actions(version, &entry)?.iter().any(|action| match action {
        Action::CommitInfo(info) => info.info.get(COMMIT_ID).and_then(|found| found.as_str()) == Some(id),
        _ => false,
    });
    Ok(Some(if ours { Whose::Ours } else { Whose::Others }))
}

fn unknown(table: &str, version: u64, problem: &impl ToString) -> CommitError {
    CommitError::Unknown { table: table.into(), version, problem: problem.to_string() }
}

/// Formats an error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn log_error(table: &str, source: impl Into<DeltaTableError>) -> CommitError {
    CommitError::Log { table: table.into(), source: Box::new(source.into()) }
}
