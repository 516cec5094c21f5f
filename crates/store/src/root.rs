//! The directory that holds all tables and models.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltalake::{DeltaTableBuilder, DeltaTableError};
use object_store::local::LocalFileSystem;
use url::Url;

use crate::boxed::Boxed;
use crate::directories::{self, directories, is_table};
use crate::error::TableError;
use crate::snapshot::{Snapshot, check_log};

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

    /// What opens one table, or makes it in a directory that is there.
    ///
    /// Delta's libraries see a store that begins at the table's directory: they decode paths that they list twice, and none of
    /// the directories above it may have a name that decoding changes (`%20`).
    pub fn table_builder(&self, table: &str) -> Result<DeltaTableBuilder, TableError> {
        let directory = self.table_path(table);
        let builder =
            LocalFileSystem::new_with_prefix(&directory).map_err(DeltaTableError::from).and_then(|store| {
                let top = Url::parse("file:///").map_err(|e| DeltaTableError::generic(e.to_string()))?;
                Ok(DeltaTableBuilder::from_url(top.clone())?.with_storage_backend(Arc::new(store), top))
            });
        builder.map_err(|source| TableError::Log {
            table: directory.display().to_string(),
            source: Box::new(source),
        })
    }

    /// The tables of the root, also those one directory deeper (`sft/genre`), by name.
    pub fn tables(&self) -> Result<Vec<String>, TableError> {
        let mut tables = Vec::new();
        for (name, path) in directories(&self.path)? {
            if is_table(&path)? {
                tables.push(name);
                continue;
            }
            for (inner, path) in directories(&path)? {
                if is_table(&path)? {
                    tables.push(format!("{name}/{inner}"));
                }
            }
        }
        tables.sort();
        Ok(tables)
    }

    /// Where a shard of a table lies.
    pub fn shard_path(&self, table: &str, shard: &str) -> PathBuf {
        self.table_path(table).join(shard)
    }

    /// A shard's file, for readers that stream it.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn open_shard(&self, table: &str, shard: &str) -> Result<File, TableError> {
        File::open(self.shard_path(table, shard)).map_err(|source| TableError::Shard {
            table: table.into(),
            shard: shard.into(),
            source: source.into(),
        })
    }

    /// The newest version of a table, by a look at its directory; `None` where it has never been written.
    ///
    /// # Errors
    ///
    /// The directory cannot be read.
    pub fn newest_version(&self, table: &str) -> Result<Option<u64>, TableError> {
        let path = self.table_path(table).join("_delta_log");
        let fail = |source| TableError::Directory { path: path.clone(), source };
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            entries => entries.map_err(fail)?,
        };
        let number = |name: std::ffi::OsString| name.to_str()?.strip_suffix(".json")?.parse().ok();
        let mut newest = None;
        for entry in entries {
            newest = newest.max(number(entry.map_err(fail)?.file_name()));
        }
        Ok(newest)
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

    /// [`snapshot`](Self::snapshot) of a table that a run is going to write to: what makes that impossible is said before the run
    /// has done anything, and that a log seems to be lost. With `removes`, it takes shards out too.
    pub async fn snapshot_to_write(
        &self,
        table: &str,
        removes: bool,
    ) -> Result<Option<Snapshot>, TableError> {
        let snapshot = self.snapshot(table).await?;
        match &snapshot {
            Some(found) => found.check_writable(removes).map(|()| snapshot),
            None => {
                let path = self.table_path(table);
                if directories::has_shards(&path)? {
                    eprintln!(
                        "warning: {} has shards, and its log no entry: either a first commit was cut off, or the log is lost; if it \
                         is lost, stop and bring it back, since `pipeline vacuum` deletes what no log names",
                        path.display()
                    );
                }
                Ok(None)
            }
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

    fn load<'a>(
        &'a self,
        table: &'a str,
        version: Option<u64>,
    ) -> Boxed<'a, Result<Option<Snapshot>, TableError>> {
        Box::pin(self.open(table, version))
    }

    async fn open(&self, table: &str, version: Option<u64>) -> Result<Option<Snapshot>, TableError> {
        let path = self.table_path(table);
        if !is_table(&path)? {
            return Ok(None);
        }
        let log = |source| TableError::Log { table: path.display().to_string(), source: Box::new(source) };
        let mut builder = self.table_builder(table)?;
        if let Some(version) = version {
            builder = builder.with_version(version);
        }
        match builder.load().await {
            Ok(loaded) => {
                let mut snapshot = Snapshot::new(table, &path, loaded)?;
                snapshot.count_rows().await;
                Ok(Some(snapshot))
            }
            Err(DeltaTableError::NotATable(_)) => Ok(None),
            Err(error) => {
                check_log(table, &path, version)?;
                Err(log(error))
            }
        }
    }
}
