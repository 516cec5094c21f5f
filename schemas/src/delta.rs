//! Opening the Delta tables of a root.
//!
//! A table is read as its log says: the snapshot at one version names the Parquet shards, and a reader opens
//! just those. A shard that is in the directory but not in the snapshot belongs to no version yet, or to no
//! version any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use deltalake::kernel::Action;
use deltalake::logstore::get_actions;
use deltalake::{DeltaTable, DeltaTableBuilder, DeltaTableError};
use object_store::{GetResultPayload, ObjectStoreExt, path::Path as ObjectPath};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection};
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::reader::ChunkReader;
use url::Url;

/// A table that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The root is not a place for tables.
    #[error("{root} cannot be a root: {problem}")]
    Root {
        /// As given.
        root: String,
        /// Why not.
        problem: String,
    },
    /// The table has never been written.
    #[error("{root} has no table `{table}`; `{command}` writes it")]
    Missing {
        /// The root.
        root: PathBuf,
        /// The table.
        table: String,
        /// The command that writes it.
        command: &'static str,
    },
    /// The table's log cannot be read or written.
    #[error("the log of table {table}")]
    Log {
        /// The table's path.
        table: String,
        /// Why.
        source: Box<DeltaTableError>,
    },
    /// A shard cannot be read.
    #[error("shard {shard} of table `{table}` cannot be read; it is missing or damaged")]
    Shard {
        /// The table.
        table: String,
        /// The shard's path inside the table.
        shard: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A version that does not exist yet.
    #[error("table `{table}` has no version {since} yet; its newest is {newest}")]
    Future {
        /// The table.
        table: String,
        /// As asked for.
        since: u64,
        /// The newest version.
        newest: u64,
    },
    /// The log's entry is gone, so what it added is not known any more.
    #[error(
        "what table `{table}` got after version {since} is not known any more: the log entry of version \
         {version} was cleaned up; build `sequences` in full instead"
    )]
    Expired {
        /// The table.
        table: String,
        /// As asked for.
        since: u64,
        /// The first missing version.
        version: u64,
    },
    /// The version's log is gone.
    #[error("version {version} of table `{table}` cannot be read any more: the log was cleaned up behind it")]
    Cleaned {
        /// The table.
        table: String,
        /// As asked for.
        version: u64,
    },
    /// The log cannot be cleaned up.
    #[error("cannot clean up the log: {path}")]
    CleanUp {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A column that every version of the table should have.
    #[error("shard {shard} of table `{table}` has no column `{column}`")]
    Column {
        /// The table.
        table: String,
        /// The shard's path inside the table.
        shard: String,
        /// The column.
        column: String,
    },
}

/// The directory that holds all tables and models.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    /// Table → the version that is read instead of the newest one.
    pinned: BTreeMap<String, u64>,
}

impl Root {
    /// The root at `root`, which need not exist yet.
    pub fn new(root: &str) -> Result<Self, TableError> {
        let fail = |problem: String| TableError::Root { root: root.into(), problem };
        if root.contains("://") {
            return Err(fail("this build reads and writes local directories only".into()));
        }
        let path = std::path::absolute(root).map_err(|e| fail(e.to_string()))?;
        if path.exists() && !path.is_dir() {
            return Err(fail("it is a file".into()));
        }
        if let Some(escape) = escape_in(&path.to_string_lossy()) {
            let problem = format!(
                "the library that reads the tables' logs takes `{escape}` in a path for one character; rename the directory"
            );
            return Err(fail(problem));
        }
        Ok(Self { path, pinned: BTreeMap::new() })
    }

    /// The same root, of which some tables are read at the given versions, whatever other writers commit meanwhile.
    pub fn pinned<'a>(&self, versions: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut root = self.clone();
        root.pinned.extend(versions.into_iter().map(|(table, version)| (table.to_owned(), version)));
        root
    }

    /// The same root, with `table` at its newest version again.
    pub fn unpinned(&self, table: &str) -> Self {
        let mut root = self.clone();
        root.pinned.remove(table);
        root
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of one table.
    pub fn table_path(&self, table: &str) -> PathBuf {
        self.path.join(table)
    }

    /// The location of one table, as Delta's libraries want it.
    pub fn table_url(&self, table: &str) -> Result<Url, TableError> {
        Url::from_directory_path(self.table_path(table)).map_err(|()| TableError::Root {
            root: self.path.display().to_string(),
            problem: "it is not an absolute path".into(),
        })
    }

    /// What opens one table, or makes it.
    pub fn table_builder(&self, table: &str) -> Result<DeltaTableBuilder, TableError> {
        DeltaTableBuilder::from_url(self.table_url(table)?).map_err(|source| TableError::Log {
            table: self.table_path(table).display().to_string(),
            source: Box::new(source),
        })
    }

    /// The directory of one model.
    pub fn model_path(&self, name: &str) -> PathBuf {
        self.path.join("models").join(name)
    }

    /// The table at its newest version, or the one that it is [`pinned`](Self::pinned) to; `None` where it has never been
    /// written.
    pub async fn snapshot(&self, table: &str) -> Result<Option<Snapshot>, TableError> {
        let pinned = self.pinned.get(table).copied();
        let snapshot = self.load(table, pinned).await?;
        match pinned {
            Some(version) if snapshot.is_none() && self.table_path(table).join("_delta_log").is_dir() => {
                Err(TableError::Cleaned { table: table.into(), version })
            }
            _ => Ok(snapshot),
        }
    }

    /// The table at `version`; `None` where it has never been written, or that version's log was cleaned up.
    pub async fn snapshot_at(&self, table: &str, version: u64) -> Result<Option<Snapshot>, TableError> {
        self.load(table, Some(version)).await
    }

    /// [`snapshot`](Self::snapshot), or an error that names the command that writes the table.
    pub async fn require(&self, table: &str, command: &'static str) -> Result<Snapshot, TableError> {
        self.snapshot(table).await?.ok_or_else(|| TableError::Missing {
            root: self.path.clone(),
            table: table.into(),
            command,
        })
    }

    async fn load(&self, table: &str, version: Option<u64>) -> Result<Option<Snapshot>, TableError> {
        let path = self.table_path(table);
        if !path.join("_delta_log").is_dir() {
            return Ok(None);
        }
        let log = |source| TableError::Log { table: path.display().to_string(), source: Box::new(source) };
        let mut builder = self.table_builder(table)?;
        if let Some(version) = version {
            builder = builder.with_version(version);
        }
        match builder.load().await {
            Ok(loaded) => Snapshot::new(table, loaded).map(Some),
            Err(DeltaTableError::NotATable(_)) => Ok(None),
            Err(error) => Err(log(error)),
        }
    }
}

/// A percent sign with two hexadecimal digits after it.
fn escape_in(path: &str) -> Option<&str> {
    let starts = path.match_indices('%').map(|(at, _)| at);
    let mut escapes = starts.filter_map(|at| path.get(at..at + 3));
    escapes.find(|escape| escape[1..].bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// One shard of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Path inside the table.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// Rows, where the log says so.
    pub rows: Option<u64>,
    /// Partition column → value.
    pub partition: BTreeMap<String, Option<String>>,
}

/// One version of one table.
#[derive(Debug, Clone)]
pub struct Snapshot {
    name: String,
    table: DeltaTable,
    version: u64,
    properties: HashMap<String, String>,
    shards: Vec<Shard>,
}

impl Snapshot {
    /// A loaded table as a snapshot.
    pub fn new(name: &str, table: DeltaTable) -> Result<Self, TableError> {
        let log = |source| TableError::Log { table: name.into(), source: Box::new(source) };
        let state = table.snapshot().map_err(log)?;
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
        Ok(Self { name: name.into(), version, properties, shards, table })
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The table's properties at this version.
    pub fn properties(&self) -> &HashMap<String, String> {
        &self.properties
    }

    /// The shards, by path.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Rows of all shards.
    pub fn rows(&self) -> u64 {
        self.shards.iter().filter_map(|shard| shard.rows).sum()
    }

    /// Whether every shard is there, as large as it was written.
    pub async fn is_whole(&self) -> bool {
        let store = self.table.object_store();
        for shard in &self.shards {
            match store.head(&ObjectPath::from(shard.path.as_str())).await {
                Ok(found) if found.size == shard.bytes => {}
                _ => return false,
            }
        }
        true
    }

    /// The paths of the shards that were appended after version `since`, as Delta's streaming readers see them:
    /// a commit that also removes files (a compaction, a deletion) appends nothing.
    pub async fn appended_since(&self, since: u64) -> Result<BTreeSet<String>, TableError> {
        if since > self.version {
            return Err(TableError::Future { table: self.name.clone(), since, newest: self.version });
        }
        let mut appended = BTreeSet::new();
        for version in since + 1..=self.version {
            let actions = self.entry(since, version).await?;
            if actions.iter().any(|action| matches!(action, Action::Remove(_))) {
                continue;
            }
            appended.extend(actions.into_iter().filter_map(|action| match action {
                Action::Add(add) if add.data_change => Some(add.path),
                _ => None,
            }));
        }
        Ok(appended)
    }

    /// The version that writer `application` gave its last commit (a `txn` action), up to this version of the table.
    pub async fn transaction(&self, application: &str) -> Result<Option<i64>, TableError> {
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
    pub async fn updated(&self) -> Result<Self, TableError> {
        let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
        let mut table = self.table.clone();
        table.update_incremental(None).await.map_err(log)?;
        match table.version() {
            Some(version) if version == self.version => Ok(self.clone()),
            _ => Self::new(&self.name, table),
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

    /// Reads `columns` of one shard, in this order. Partition columns are not in the shards.
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
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| TableError::Shard {
            table: self.name.clone(),
            shard: shard.path.clone(),
            source,
        };
        let path = ObjectPath::from(shard.path.as_str());
        let object = self.table.object_store().get(&path).await.map_err(|e| fail(Box::new(e)))?;
        match object.payload {
            GetResultPayload::File(file, _) => self.decode(file, shard, columns, rows),
            _ => {
                let bytes = object.bytes().await.map_err(|e| fail(Box::new(e)))?;
                self.decode(bytes, shard, columns, rows)
            }
        }
    }

    fn decode(
        &self,
        file: impl ChunkReader + 'static,
        shard: &Shard,
        columns: &[&str],
        rows: Option<Range<u64>>,
    ) -> Result<Vec<RecordBatch>, TableError> {
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| TableError::Shard {
            table: self.name.clone(),
            shard: shard.path.clone(),
            source,
        };
        // The index says which pages hold which rows.
        let pages = if rows.is_some() { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
        let options = ArrowReaderOptions::new().with_page_index_policy(pages);
        let mut builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
            .map_err(|e| fail(Box::new(e)))?;
        if let Some(rows) = rows {
            let all = builder.metadata().file_metadata().num_rows().max(0) as usize;
            let rows = (rows.start as usize).min(all)..(rows.end as usize).min(all);
            let selection = RowSelection::from_consecutive_ranges(std::iter::once(rows), all);
            builder = builder.with_row_selection(selection);
        }
        let schema: SchemaRef = builder.schema().clone();
        let indexes = columns
            .iter()
            .map(|&column| {
                schema.index_of(column).map_err(|_| TableError::Column {
                    table: self.name.clone(),
                    shard: shard.path.clone(),
                    column: column.into(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), indexes);
        let reader = builder.with_projection(mask).build().map_err(|e| fail(Box::new(e)))?;
        let mut batches = Vec::new();
        for batch in reader {
            let batch = batch.map_err(|e| fail(Box::new(e)))?;
            let order: Vec<usize> =
                columns.iter().filter_map(|column| batch.schema().index_of(column).ok()).collect();
            batches.push(batch.project(&order).map_err(|e| fail(Box::new(e)))?);
        }
        Ok(batches)
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
