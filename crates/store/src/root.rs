//! The root: the local directory that holds all tables and models.
//!
//! Opens tables as [`Snapshot`]s, at their newest or at a pinned version. Holds no rows in memory.

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

/// The local directory that holds all tables and models, and the versions that tables are pinned to.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
    /// Table → version to read instead of the newest.
    pinned: BTreeMap<String, u64>,
}

impl Root {
    /// Returns the root at `root`; the directory need not exist yet.
    ///
    /// # Errors
    ///
    /// [`TableError::Root`]: `root` is a URL, or a file.
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

    /// Returns this root with tables pinned to the given versions; later commits of other writers stay invisible.
    pub fn pinned<'a>(&self, versions: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut root = self.clone();
        root.pinned.extend(versions.into_iter().map(|(table, version)| (table.to_owned(), version)));
        root
    }

    /// Returns this root with `table` read at its newest version again.
    pub fn unpinned(&self, table: &str) -> Self {
        let mut root = self.clone();
        root.pinned.remove(table);
        root
    }

    /// Path of the root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of the table's directory.
    pub fn table_path(&self, table: &str) -> PathBuf {
        self.path.join(table)
    }

    /// Returns a builder that opens a table, or creates it in a directory that exists.
    ///
    /// The object store begins at the table's directory: Delta's libraries decode listed paths twice, so they must not see the
    /// directories above, whose names may contain an escape (`%20`).
    ///
    /// # Errors
    ///
    /// [`TableError::Log`]: the directory does not exist.
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

    /// Returns the names of all tables, sorted; tables one directory deeper (`sft/genre`) included.
    ///
    /// # Errors
    ///
    /// [`TableError::Directory`]: a directory cannot be listed.
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

    /// Path of a shard's file.
    pub fn shard_path(&self, table: &str, shard: &str) -> PathBuf {
        self.table_path(table).join(shard)
    }

    /// Opens a shard's file, for readers that stream it.
    ///
    /// # Errors
    ///
    /// [`TableError::Shard`]: the file cannot be opened.
    pub fn open_shard(&self, table: &str, shard: &str) -> Result<File, TableError> {
        File::open(self.shard_path(table, shard)).map_err(|source| TableError::Shard {
            table: table.into(),
            shard: shard.into(),
            source: source.into(),
        })
    }

    /// Returns the newest version of a table from the names in its log directory; `None` if it has never been written.
    ///
    /// # Errors
    ///
    /// [`TableError::Directory`]: the log directory cannot be listed.
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

    /// Path of a model's directory.
    pub fn model_path(&self, name: &str) -> PathBuf {
        self.path.join("models").join(name)
    }

    /// Opens a table at its newest version, or at the one it is [`pinned`](Self::pinned) to; `None` if it has never been written.
    ///
    /// # Errors
    ///
    /// [`TableError::Cleaned`]: the log of the pinned version is gone. Otherwise, the log cannot be read, or the table uses a
    /// feature of Delta that this program does not support.
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

    /// Opens a table for a run that will write to it, and checks before any work that it can ([`Snapshot::check_writable`]).
    /// `removes` says whether the run removes shards. Warns if the directory has shards but no log.
    ///
    /// # Errors
    ///
    /// Those of [`snapshot`](Self::snapshot) and of the check.
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

    /// Opens a table at `version`; `None` if it has never been written, or if the log of that version was cleaned up.
    ///
    /// # Errors
    ///
    /// The log cannot be read, or the table uses a feature of Delta that this program does not support.
    pub async fn snapshot_at(&self, table: &str, version: u64) -> Result<Option<Snapshot>, TableError> {
        self.load(table, Some(version)).await
    }

    /// Opens a table like [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    ///
    /// [`TableError::Missing`], naming `command`, if the table has never been written.
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
