//! One version of one table, as its log states it.
//!
//! A snapshot names the Parquet shards, and a reader opens only those; other shards in the directory are not committed yet, or
//! were removed. A table with features of Delta that this program does not support is refused (`features.rs`). Every shard is
//! read with the types of [`schemas::tables`] (`shard.rs`). Memory: the loaded log; rows only where a method returns them.

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

/// Tag of a shard in the log: path of the shard whose remaining rows it holds after a deletion.
pub const REST_OF: &str = "rest_of";

/// One version of one table: its shards, properties and partition columns.
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
    /// Builds a snapshot from a loaded table.
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
        // Sorted by path, since commit order may differ between equal runs; names begin with the bucket or date.
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

    /// Path of the table's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Version of the table.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The table's properties at this version.
    pub fn properties(&self) -> &HashMap<String, String> {
        &self.properties
    }

    /// Columns whose values the log holds, one value per shard.
    pub fn partition_columns(&self) -> &[String] {
        &self.partition_columns
    }

    /// The shards, sorted by path.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Reads missing row counts from the shards' footers, as statistics in the log are optional. A shard that cannot be read
    /// keeps `None`, and fails when it is read.
    pub(crate) async fn count_rows(&mut self) {
        let store = self.table.object_store();
        for shard in self.shards.iter_mut().filter(|shard| shard.rows.is_none()) {
            shard.rows = shard::footer_rows(&store, shard).await;
        }
    }

    /// Number of rows in all shards; a shard of unknown count adds none.
    pub fn rows(&self) -> u64 {
        self.shards.iter().filter_map(|shard| shard.rows).sum()
    }

    /// Returns true if every shard exists with its committed size.
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

    /// Returns the number that writer `application` recorded in its last commit (a `txn` action), up to this version of the
    /// table.
    ///
    /// # Errors
    ///
    /// [`TableError::Log`]: the log cannot be read.
    pub fn transaction<'a>(&'a self, application: &'a str) -> Boxed<'a, Result<Option<i64>, TableError>> {
        Box::pin(self.find_transaction(application))
    }

    async fn find_transaction(&self, application: &str) -> Result<Option<i64>, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let state = self.table.snapshot().map_err(log)?;
        let store = self.table.log_store();
        state.transaction_version(store.as_ref(), application).await.map_err(log)
    }

    /// Returns [`transaction`](Self::transaction) of several writers, without those that never committed.
    ///
    /// # Errors
    ///
    /// [`TableError::Log`]: the log cannot be read.
    pub async fn transactions(&self, applications: &[String]) -> Result<BTreeMap<String, i64>, TableError> {
        /// Newest commits that are searched for all writers at once; most writers' last commit is among them.
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

    /// Returns the newest version of the table, read incrementally from this one.
    ///
    /// # Errors
    ///
    /// The log cannot be read, or the table now uses a feature of Delta that this program does not support.
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

    /// Returns, for each writer that committed after version `since`, the number that it recorded last.
    ///
    /// # Errors
    ///
    /// [`TableError::Expired`] if a later entry was cleaned up.
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

    /// Reads the actions of commit `version`; an error names `since` as the version whose later commits were asked for.
    async fn entry(&self, since: u64, version: u64) -> Result<Vec<Action>, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let entry = self.table.log_store().read_commit_entry(version).await.map_err(log)?;
        let entry = entry.ok_or_else(|| TableError::Expired { table: self.name.clone(), since, version })?;
        get_actions(version, &entry).map_err(log)
    }

    /// Delta's handle of the table, to commit on top of this version.
    pub fn delta(&self) -> &DeltaTable {
        &self.table
    }

    /// Reads `columns` of one shard, in this order and with the types of `schemas::tables`. All rows are in memory.
    ///
    /// # Errors
    ///
    /// [`TableError::Shard`] if the shard is missing or damaged; [`TableError::Type`], [`TableError::Null`] or
    /// [`TableError::Column`] if a column does not have its declared type.
    pub async fn read_shard(&self, shard: &Shard, columns: &[&str]) -> Result<Vec<RecordBatch>, TableError> {
        self.read_of(shard, columns, None).await
    }

    /// Reads `columns` of a range of rows of one shard. In a local file, reads only the pages that hold them.
    ///
    /// # Errors
    ///
    /// Those of [`read_shard`](Self::read_shard).
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

    /// Reads `columns` of all shards into memory, shard by shard.
    ///
    /// # Errors
    ///
    /// Those of [`read_shard`](Self::read_shard).
    pub async fn read(&self, columns: &[&str]) -> Result<Vec<RecordBatch>, TableError> {
        let mut batches = Vec::new();
        for shard in &self.shards {
            batches.extend(self.read_shard(shard, columns).await?);
        }
        Ok(batches)
    }
}
