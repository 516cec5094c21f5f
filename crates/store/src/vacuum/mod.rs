//! `pipeline vacuum`: deletes the files that no version within the retention time needs.
//!
//! ```text
//!   every *.parquet of the table's directory, with its modification time             (listed first, see below)
//!      − the shards of the newest version
//!      − shards that a commit after `now − keep` removed: a version within `keep` still had them
//!      − `events`: shards appended since the oldest retained publication, and merged into others since
//!      − files modified after `now − keep`: a writer may still commit them
//!   = the files to delete
//! ```
//!
//! So every version that was the newest at some time within `keep` stays readable. Files of a killed writer, which no commit
//! names, go once they are older than `keep`.
//!
//! **Publications.** A refresh asks `events` what was appended since the version that a published model was trained on
//! (`build-sequences --since`), and reads these shards as they were. Only `events` is asked, so other tables keep nothing beyond
//! `keep`, and `events` keeps appended shards, not whole versions.
//!
//! **Erasure.** Rows that `pipeline forget` deleted remain in the shards it replaced, and in those merged before. A deletion
//! older than `keep` therefore ends the retention for publications: shards that it may have touched are deleted, and a model that
//! needed them is trained from scratch. Neither a publication nor a gate that refuses for months keeps an erased row on disk.
//!
//! **Clocks.** A commit's time is the later of its writer's note and the modification time of its log entry; times in the future
//! are ignored. A commit is never older than the one before it, so a writer with a slow clock shortens no retention.
//!
//! Log entries before the oldest of these versions are deleted too ([`crate::clean`]).
//!
//! Files are listed before the log is read, so commits made in between are known. A run that takes longer than `keep` from its
//! first shard to its commit may lose that shard, and fails: a commit first syncs, and so opens, its shards.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use deltalake::DeltaTableError;
use deltalake::kernel::Action;
use deltalake::logstore::get_actions;
use schemas::config::{ConfigError, Span};
use schemas::tables::EVENTS;
use serde::Serialize;
use terminal::{Interrupt, Progress};

use crate::boxed::Boxed;
use crate::clean::clean_log;
use crate::publication::{self, Publication, PublicationError};
use crate::{Root, Snapshot, TableError};

/// Default retention time: 7 days.
pub const KEEP: Span = Span::minutes(7 * 24 * 60);
/// Shortest retention time: writers must commit a shard within it.
const KEEP_MIN: Span = Span::minutes(60);

/// A vacuum that failed. Files deleted before the failure were unneeded.
#[derive(Debug, thiserror::Error)]
pub enum VacuumError {
    /// A setting is invalid. (Not transparent: the exit code depends on finding the cause.)
    #[error("{0}")]
    Setting(#[from] ConfigError),
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The needs of published models cannot be determined.
    #[error(transparent)]
    Publications(#[from] PublicationError),
    /// A directory cannot be listed, or a file cannot be deleted.
    #[error("cannot {what} {path}")]
    File {
        /// `list` or `delete`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Stopped by Ctrl-C or SIGTERM.
    #[error("stopped on request after {files} files; run again for the others")]
    Interrupted {
        /// Files deleted so far.
        files: usize,
    },
}

/// Settings of a vacuum.
#[derive(Debug, Clone, Copy)]
pub struct VacuumSettings {
    /// Retention time: versions that were the newest within it stay readable. At least an hour.
    pub keep: Span,
    /// Number of retained publications (`retention.publications`); shards appended to `events` since the oldest stay.
    pub publications: usize,
    /// Lists files without deleting them.
    pub dry_run: bool,
    /// Current time in epoch milliseconds.
    pub now_ms: i64,
}

/// Result of `pipeline vacuum`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VacuumReport {
    /// Whether files were only listed.
    pub dry_run: bool,
    /// One entry per table.
    pub tables: Vec<VacuumedTable>,
}

/// Result for one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VacuumedTable {
    /// Its name.
    pub table: String,
    /// Paths inside the table of the deleted files, or those to delete.
    pub files: Vec<String>,
    /// Total bytes of `files`.
    pub bytes: u64,
    /// Retained files that the newest version does not need.
    pub kept: usize,
    /// Deleted files of the table's log.
    pub log_files: usize,
}

/// Vacuums `tables`, or all tables of the root if empty.
///
/// # Errors
///
/// `keep` is shorter than an hour, a table does not exist or cannot be read, a file cannot be listed or deleted, or the run is
/// interrupted.
pub fn vacuum<'a>(
    root: &'a Root,
    tables: &'a [String],
    settings: VacuumSettings,
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<VacuumReport, VacuumError>> {
    Box::pin(clean(root, tables, settings, interrupt))
}

async fn clean(
    root: &Root,
    tables: &[String],
    settings: VacuumSettings,
    interrupt: &Interrupt,
) -> Result<VacuumReport, VacuumError> {
    if settings.keep.ms < KEEP_MIN.ms {
        let problem = format!(
            "{} is too short: writers and readers that run now need their files; keep at least {KEEP_MIN}",
            settings.keep
        );
        return Err(ConfigError::Invalid { key: "--keep".into(), problem }.into());
    }
    let known = root.tables()?;
    // A root without tables is more likely the wrong root than an empty one.
    let none = known.is_empty().then(|| EVENTS.to_owned());
    if let Some(table) = tables.iter().find(|table| !known.contains(table)).or(none.as_ref()) {
        return Err(TableError::Missing {
            root: root.path().into(),
            table: table.clone(),
            command: "pipeline ingest",
        }
        .into());
    }
    let mut report = VacuumReport { dry_run: settings.dry_run, tables: Vec::new() };
    for table in if tables.is_empty() { &known } else { tables } {
        let mut files = Vec::new();
        list(&root.table_path(table), "", &mut files)?;
        if let Some(needed) = needed(root, table, settings).await? {
            let deleted = report.tables.iter().map(|table| table.files.len()).sum();
            let deletion = Deletion { root, settings, interrupt, deleted };
            let mut done = deletion.delete(table, files, &needed)?;
            if !settings.dry_run {
                done.log_files = clean_log(root, table, needed.oldest)?.files;
            }
            report.tables.push(done);
        }
    }
    Ok(report)
}

/// A Parquet file of the table's directory.
struct File {
    /// Path inside the table.
    path: String,
    bytes: u64,
    modified_ms: i64,
}

/// Lists all Parquet files below `directory`, whose path inside the table is `inside`. Names that begin with `_` or `.` are not
/// data, by Delta's rules; links are not followed.
fn list(directory: &Path, inside: &str, files: &mut Vec<File>) -> Result<(), VacuumError> {
    let fail = |source| VacuumError::File { what: "list", path: directory.into(), source };
    for entry in fs::read_dir(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with(['_', '.'])) else { continue };
        let path = format!("{inside}{name}");
        let metadata = match entry.metadata() {
            // A failed writer has just deleted its file.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(fail)?,
        };
        if metadata.is_dir() {
            list(&entry.path(), &format!("{path}/"), files)?;
        } else if metadata.is_file() && name.ends_with(".parquet") {
            let modified_ms = epoch_ms(metadata.modified().map_err(fail)?);
            files.push(File { path, bytes: metadata.len(), modified_ms });
        }
    }
    Ok(())
}

/// A commit's time and removals.
struct Commit {
    version: u64,
    /// Epoch milliseconds; never earlier than the commit before, never in the future.
    at_ms: i64,
    removed: Vec<String>,
    /// Whether rows were deleted, not only moved to other shards.
    deletes: bool,
}

/// Returns the commits whose log entries still exist, oldest first. Earlier versions cannot be read any more.
async fn commits(root: &Root, newest: &Snapshot, now_ms: i64) -> Result<Vec<Commit>, VacuumError> {
    let log =
        |source: DeltaTableError| TableError::Log { table: newest.name().into(), source: Box::new(source) };
    let store = newest.delta().log_store();
    let directory = root.table_path(newest.name()).join("_delta_log");
    let mut commits = Vec::new();
    for version in (0..=newest.version()).rev() {
        let Some(entry) = store.read_commit_entry(version).await.map_err(log)? else { break };
        let noted = get_actions(version, &entry).map_err(log)?;
        let written =
            fs::metadata(directory.join(format!("{version:020}.json"))).and_then(|entry| entry.modified());
        let mut commit = Commit { version, at_ms: i64::MIN, removed: Vec::new(), deletes: false };
        let mut times = vec![written.ok().map(epoch_ms)];
        for action in noted {
            match action {
                Action::CommitInfo(info) => times.push(info.timestamp),
                Action::Remove(remove) => {
                    commit.deletes |= remove.data_change;
                    commit.removed.push(remove.path);
                }
                _ => {}
            }
        }
        commit.at_ms = times.into_iter().flatten().filter(|&ms| ms <= now_ms).max().unwrap_or(now_ms);
        commits.push(commit);
    }
    commits.reverse();
    let mut latest = i64::MIN;
    for commit in &mut commits {
        latest = latest.max(commit.at_ms);
        commit.at_ms = latest;
    }
    Ok(commits)
}

fn epoch_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Returns the shards that must stay; `None` if the table does not exist.
///
/// A shard of any version that was the newest at or after `since_ms` is in the newest version, or a later commit removed it.
async fn needed(root: &Root, table: &str, settings: VacuumSettings) -> Result<Option<Needed>, VacuumError> {
    let Some(newest) = root.snapshot(table).await? else { return Ok(None) };
    let since_ms = settings.now_ms - settings.keep.ms;
    let current = newest.shards().iter().map(|shard| shard.path.clone()).collect();
    let commits = commits(root, &newest, settings.now_ms).await?;
    let before = commits.iter().rfind(|commit| commit.at_ms <= since_ms).or(commits.first());
    let oldest = before.map_or(newest.version(), |commit| commit.version);
    let mut needed = Needed { current, removed: BTreeSet::new(), oldest };
    let within = commits.iter().filter(|commit| commit.at_ms > since_ms);
    needed.removed.extend(within.flat_map(|commit| commit.removed.iter().cloned()));
    if table == EVENTS {
        let first = commits.first().map_or(newest.version(), |commit| commit.version);
        let publications = settings.publications;
        let (learned, appended) = appended_since_publications(root, &newest, publications, first).await?;
        needed.oldest = needed.oldest.min(learned.unwrap_or(needed.oldest));
        let removed: HashMap<&str, u64> = commits
            .iter()
            .flat_map(|commit| commit.removed.iter().map(|path| (path.as_str(), commit.version)))
            .collect();
        let erased = commits.iter().rfind(|commit| commit.deletes && commit.at_ms <= since_ms);
        for path in appended {
            let removed = removed.get(path.as_str()).copied().unwrap_or_default();
            if erased.is_none_or(|erased| erased.version < removed) {
                needed.removed.insert(path);
            }
        }
    }
    Ok(Some(needed))
}

/// Returns the version of `events` that the oldest retained publication was trained on, from which a refresh may continue, and
/// the shards appended since. `first` is the oldest version with a log entry.
async fn appended_since_publications(
    root: &Root,
    events: &Snapshot,
    publications: usize,
    first: u64,
) -> Result<(Option<u64>, BTreeSet<String>), VacuumError> {
    let oldest = match kept_publications(root, publications) {
        Ok(kept) => kept.iter().map(|kept| kept.learned_events).min(),
        // The needs of a missing or unreadable publication are unknown: keep everything that the log still lists.
        Err(PublicationError::Damaged { .. } | PublicationError::Gone { .. }) => Some(first),
        Err(error) => return Err(error.into()),
    };
    let Some(learned) = oldest else { return Ok((None, BTreeSet::new())) };
    match events.appended_since(learned).await {
        // A refresh cannot list the new rows then, whatever is kept.
        Err(TableError::Expired { .. } | TableError::Future { .. }) => Ok((None, BTreeSet::new())),
        appended => Ok((Some(learned), appended?)),
    }
}

/// Returns the retained publications; an error if the one that `published.json` names has no file of its own.
fn kept_publications(root: &Root, publications: usize) -> Result<Vec<Publication>, PublicationError> {
    if let Some(Publication { number, .. }) = publication::published(root)?
        && publication::at(root, number)?.is_none()
    {
        return Err(PublicationError::Gone { number });
    }
    publication::kept(root, publications, [])
}

/// Shards that must stay.
struct Needed {
    /// Shards of the newest version.
    current: BTreeSet<String>,
    /// Shards of older versions.
    removed: BTreeSet<String>,
    /// Oldest version that stays readable.
    oldest: u64,
}

/// Deletes unneeded files, table by table.
struct Deletion<'a> {
    root: &'a Root,
    settings: VacuumSettings,
    interrupt: &'a Interrupt,
    /// Number of files deleted in earlier tables.
    deleted: usize,
}

impl Deletion<'_> {
    /// Deletes the unneeded files of a table.
    fn delete(&self, table: &str, files: Vec<File>, needed: &Needed) -> Result<VacuumedTable, VacuumError> {
        let settings = self.settings;
        let since_ms = settings.now_ms - settings.keep.ms;
        let others = files.into_iter().filter(|file| !needed.current.contains(&file.path));
        let (mut unneeded, kept): (Vec<File>, Vec<File>) =
            others.partition(|file| file.modified_ms <= since_ms && !needed.removed.contains(&file.path));
        unneeded.sort_by(|a, b| a.path.cmp(&b.path));
        if !settings.dry_run {
            let directory = self.root.table_path(table);
            let mut progress = Progress::start(&format!("vacuum {table}"), unneeded.len() as u64, "files");
            for (n, file) in unneeded.iter().enumerate() {
                if self.interrupt.requested() {
                    return Err(VacuumError::Interrupted { files: self.deleted + n });
                }
                let path = directory.join(&file.path);
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(VacuumError::File { what: "delete", path, source: e });
                    }
                    _ => progress.add(1),
                }
            }
        }
        Ok(VacuumedTable {
            table: table.into(),
            bytes: unneeded.iter().map(|file| file.bytes).sum(),
            files: unneeded.into_iter().map(|file| file.path).collect(),
            kept: kept.len(),
            log_files: 0,
        })
    }
}

impl Display for VacuumReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tables.is_empty() {
            return write!(f, "nothing to do: the root has no tables");
        }
        let done = if self.dry_run { "would be deleted" } else { "deleted" };
        for (i, VacuumedTable { table, files, bytes, kept, log_files }) in self.tables.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let megabytes = *bytes as f64 / 1e6;
            write!(f, "{table:<24} {:>8} files {done}, {megabytes:.1} MB", files.len())?;
            if *kept > 0 {
                write!(f, "; {kept} of no use to the newest version are kept")?;
            }
            if *log_files > 0 {
                write!(f, "; {log_files} files of its log deleted")?;
            }
            if self.dry_run {
                files.iter().try_for_each(|file| write!(f, "\n  {file}"))?;
            }
        }
        Ok(())
    }
}
