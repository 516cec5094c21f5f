//! One version of one table, as its log says.
//!
//! The snapshot names the Parquet shards, and a reader opens just those. A shard that is in the directory but not in the snapshot
//! belongs to no version yet, or to no version any more. A table that another engine has given features which this program does
//! not know is refused by their names (`features.rs`); every shard is read as the contract has its columns (`shard.rs`).

mod appended;
mod columns;
mod features;
mod hashes;
mod shard;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::record_batch::RecordBatch;
use deltalake::DeltaTable;
use deltalake::kernel::Action;
use deltalake::logstore::get_actions;
use object_store::{GetResultPayload, ObjectStoreExt};

use crate::boxed::Boxed;
use crate::error::TableError;
pub(crate) use features::check_log;
pub use features::misfit;
pub use hashes::{CONTENT_HASH, ENTRY_HASH, EntryState, entry_hash, hash_text};
use shard::shard_rows;
pub use shard::{Shard, shard_batches};

/// Tag of a shard in the log: the shard whose rows it has, but for those that were deleted.
pub const REST_OF: &str = "rest_of";

/// One version of one table.
#[derive(Debug, Clone)]
pub struct Snapshot {
    name: String,
    directory: PathBuf,
    table: DeltaTable,
    version: u64,
    properties: HashMap<String, String>,
    partition_columns: Vec<String>,
    shards: Vec<Shard>,
}

impl Snapshot {
    /// A loaded table as a snapshot.
    pub(crate) fn new(name: &str, directory: &Path, table: DeltaTable) -> Result<Self, TableError> {
        let log = |source| TableError::Log { table: name.into(), source: Box::new(source) };
        let state = table.snapshot().map_err(log)?;
        features::check_readable(name, state)?;
        let mut shards: Vec<Shard> = state
            .log_data()
            .iter()
            .map(|file| Shard {
                path: file.path().into_owned(),
                bytes: file.size().max(0) as u64,
                rows: file.num_records().map(|n| n as u64),
                partition: file.partition_values_map().into_iter().collect(),
            })
            .collect();
        // Commit order differs between two runs that wrote the same; names begin with the bucket or date.
        shards.sort_by(|a, b| a.path.cmp(&b.path));
        let (version, properties) = (state.version(), state.metadata().configuration().clone());
        let partition_columns = state.metadata().partition_columns().to_vec();
        let (name, directory) = (name.into(), directory.into());
        Ok(Self { name, directory, version, properties, partition_columns, shards, table })
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the table lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The table's properties at this version.
    pub fn properties(&self) -> &HashMap<String, String> {
        &self.properties
    }

    /// The columns whose values are in the log, for each shard one.
    pub fn partition_columns(&self) -> &[String] {
        &self.partition_columns
    }

    /// The shards, by path.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Asks the shards whose rows the log does not count: statistics are optional. One that cannot be read says so when it is.
    pub(crate) async fn count_rows(&mut self) {
        let store = self.table.object_store();
        for shard in self.shards.iter_mut().filter(|shard| shard.rows.is_none()) {
            shard.rows = shard::footer_rows(&store, shard).await;
        }
    }

    /// Rows of all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().filter_map(|shard| shard.rows).sum()
    }

    /// Whether every shard is there, as large as it was written.
    pub async fn is_whole(&self) -> bool {
        let store = self.table.object_store();
        for shard in &self.shards {
            match store.head(&shard.location()).await {
                Ok(found) if found.size == shard.bytes => {}
                _ => return false,
            }
        }
        true
    }

    /// The version that writer `application` gave its last commit (a `txn` action), up to this version of the table.
    pub fn transaction<'a>(&'a self, application: &'a str) -> Boxed<'a, Result<Option<i64>, TableError>> {
        Box::pin(self.find_transaction(application))
    }

    async fn find_transaction(&self, application: &str) -> Result<Option<i64>, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let state = self.table.snapshot().map_err(log)?;
        let store = self.table.log_store();
        state.transaction_version(store.as_ref(), application).await.map_err(log)
    }

    /// [`transaction`](Self::transaction) of several writers; those that never committed are left out.
    pub async fn transactions(&self, applications: &[String]) -> Result<BTreeMap<String, i64>, TableError> {
        /// Commits in which writers are looked for together: a writer's last one is mostly among the newest.
        const NEWEST: u64 = 32;
        let mut left: BTreeSet<&str> = applications.iter().map(String::as_str).collect();
        let mut found = BTreeMap::new();
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        for version in (self.version.saturating_sub(NEWEST)..=self.version).rev() {
            if left.is_empty() {
                break;
            }
            let entry = self.table.log_store().read_commit_entry(version).await.map_err(log)?;
            let Some(entry) = entry else { break };
            for action in get_actions(version, &entry).map_err(log)? {
                if let Action::Txn(transaction) = action
                    && left.remove(transaction.app_id.as_str())
                {
                    found.insert(transaction.app_id, transaction.version);
                }
            }
        }
        for application in left {
            if let Some(version) = self.transaction(application).await? {
                found.insert(application.to_owned(), version);
            }
        }
        Ok(found)
    }

    /// The table as it is now, from what came after this version.
    pub fn updated(&self) -> Boxed<'_, Result<Self, TableError>> {
        Box::pin(self.update())
    }

    async fn update(&self) -> Result<Self, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let mut table = self.table.clone();
        table.update_incremental(None).await.map_err(log)?;
        match table.version() {
            Some(version) if version == self.version => Ok(self.clone()),
            _ => Self::new(&self.name, &self.directory, table),
        }
    }

    /// What [`transaction`](Self::transaction) came to say of each writer by commits after version `since`.
    pub async fn transactions_since(&self, since: u64) -> Result<BTreeMap<String, i64>, TableError> {
        let mut reached = BTreeMap::new();
        for version in since + 1..=self.version {
            for action in self.entry(since, version).await? {
                if let Action::Txn(transaction) = action {
                    reached.insert(transaction.app_id, transaction.version);
                }
            }
        }
        Ok(reached)
    }

    /// The actions of one commit after version `since`.
    async fn entry(&self, since: u64, version: u64) -> Result<Vec<Action>, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let entry = self.table.log_store().read_commit_entry(version).await.map_err(log)?;
        let entry = entry.ok_or_else(|| TableError::Expired { table: self.name.clone(), since, version })?;
        get_actions(version, &entry).map_err(log)
    }

    /// Delta's own handle, for commits on top of this version.
    pub fn delta(&self) -> &DeltaTable {
        &self.table
    }

    /// Reads `columns` of one shard, in this order and with the types of the contract.
    pub async fn read_shard(&self, shard: &Shard, columns: &[&str]) -> Result<Vec<RecordBatch>, TableError> {
        self.read_of(shard, columns, None).await
    }

    /// Reads `columns` of some rows of one shard: of a local file, the pages that these rows are in.
    pub async fn read_rows(
        &self,
        shard: &Shard,
        columns: &[&str],
        rows: Range<u64>,
    ) -> Result<Vec<RecordBatch>, TableError> {
        self.read_of(shard, columns, Some(rows)).await
    }

    async fn read_of(
        &self,
        shard: &Shard,
        columns: &[&str],
        rows: Option<Range<u64>>,
    ) -> Result<Vec<RecordBatch>, TableError> {
        let fail = |source: object_store::Error| TableError::Shard {
            table: self.name.clone(),
            shard: shard.path.clone(),
            source: source.into(),
        };
        let object = self.table.object_store().get(&shard.location()).await.map_err(fail)?;
        match object.payload {
            GetResultPayload::File(file, _) => shard_rows(&self.name, shard, file, columns, rows)?.collect(),
            _ => {
                let bytes = object.bytes().await.map_err(fail)?;
                shard_rows(&self.name, shard, bytes, columns, rows)?.collect()
            }
        }
    }

    /// Reads `columns` of all shards, shard by shard.
    pub async fn read(&self, columns: &[&str]) -> Result<Vec<RecordBatch>, TableError> {
        let mut batches = Vec::new();
        for shard in &self.shards {
            batches.extend(self.read_shard(shard, columns).await?);
        }
        Ok(batches)
    }
}
