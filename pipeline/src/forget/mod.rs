//! `pipeline forget`: a person's right to erasure.
//!
//! ```text
//!   1. forgotten        a keyed hash of the user: from here on, nothing of the user comes in again
//!   2. every table      each shard with rows of the user is written again without them; one commit a table
//!   3. models           stored ranks of the user's events, beside the models
//!   4. vacuum           later: the old shards
//! ```
//!
//! The first step comes first, so that no reader of the log can bring back what the second has taken out. Each step may be
//! repeated: a run that was stopped is run again, and a run that finds nothing says so.

mod erase;
mod hashes;
mod look_alikes;
mod named;
mod report;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMillisecondArray};
use schemas::config::{Config, ConfigError, Forget};
use schemas::tables::{EVENTS, FORGOTTEN, FORGOTTEN_SCHEMA};
use store::boxed::Boxed;
use store::{Root, Snapshot, TableError};
use terminal::Interrupt;

use store::commit::{Change, CommitError, CommitMode, ShardWriter, Uncommitted};

use erase::{BesideModels, Who};
pub(crate) use hashes::Forgotten;
use look_alikes::LookAlikes;
pub(crate) use named::UserColumn;
pub use report::{FileReport, Report, TableReport};

/// An erasure that could not be finished. What was done stays done; the same command does the rest.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// Wrong usage.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The key cannot be used: without it, it is not known who was forgotten.
    #[error(
        "the key {path} of table `forgotten` cannot be used; without it nobody knows who was forgotten, and their records \
         would come back. Copy it from the machine that made it, or say where it is by forget.key_file"
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file beside a model.
    #[error("cannot take the user out of {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Rows that cannot be put together.
    #[error("rows of table `{table}`")]
    Rows {
        /// The table.
        table: String,
        /// Why.
        source: arrow::error::ArrowError,
    },
    /// Other writers were always faster.
    #[error("table `{table}` was changed by other writers again and again; run the same command again")]
    Busy {
        /// The table.
        table: String,
    },
    /// Ctrl-C.
    #[error("stopped on request; the same command does the rest")]
    Interrupted,
}

/// Takes `users` out of everything below `root`, and keeps a keyed hash of each.
pub fn forget<'a>(
    config: &'a Config,
    root: &'a Root,
    users: &'a [String],
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<Report, ForgetError>> {
    Box::pin(erase_all(config, root, users, interrupt))
}

async fn erase_all(
    config: &Config,
    root: &Root,
    users: &[String],
    interrupt: &Interrupt,
) -> Result<Report, ForgetError> {
    if users.iter().any(|user| user.trim().is_empty()) {
        let problem = "is empty; give the id as the log has it".into();
        return Err(ConfigError::Invalid { key: "--user".into(), problem }.into());
    }
    // Another root was meant, more likely than that there is nothing to forget.
    root.require(EVENTS, "pipeline ingest").await?;
    let tables = tables_to_change(root).await?;
    let known = remember(root, &config.forget, users).await?;
    let mut report = Report { users: users.len(), known, ..Report::default() };
    let ids = || users.iter().map(String::as_str);
    let who = Who::Users(ids().collect(), LookAlikes::of(ids()));
    for table in tables {
        if interrupt.requested() {
            return Err(ForgetError::Interrupted);
        }
        report.tables.extend(erase::from_table(config, root, &table, &who).await?);
    }
    BesideModels { files: report.files, links: report.links } = erase::from_models(root, &who)?;
    if let Who::Users(_, alike) = who {
        report.look_alikes = alike.found();
    }
    Ok(report)
}

/// Takes out again what writers that had begun before have still brought of anybody who was forgotten: a build or an evaluation
/// of older versions, a file that was being read. `None` where nobody ever was.
pub fn sweep<'a>(
    config: &'a Config,
    root: &'a Root,
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<Option<Report>, ForgetError>> {
    Box::pin(sweep_all(config, root, interrupt))
}

async fn sweep_all(
    config: &Config,
    root: &Root,
    interrupt: &Interrupt,
) -> Result<Option<Report>, ForgetError> {
    let Some(forgotten) = Forgotten::load(root, &config.forget).await? else { return Ok(None) };
    let users = forgotten.len();
    let mut report = Report { users, known: users, ..Report::default() };
    let who = Who::Forgotten(&forgotten);
    for table in tables_to_change(root).await? {
        if interrupt.requested() {
            return Err(ForgetError::Interrupted);
        }
        let found = erase::from_table(config, root, &table, &who).await?;
        report.tables.extend(found.filter(|table| table.rows > 0));
    }
    BesideModels { files: report.files, links: report.links } = erase::from_models(root, &who)?;
    Ok(Some(report))
}

/// The tables of the root. One that cannot be read or written is an error before any of them is changed.
async fn tables_to_change(root: &Root) -> Result<Vec<String>, ForgetError> {
    let tables = root.tables()?;
    for table in &tables {
        root.snapshot_to_write(table, true).await?;
    }
    Ok(tables)
}

/// [`sweep`] over what stands beside the models alone.
pub async fn sweep_models(config: &Config, root: &Root) -> Result<(), ForgetError> {
    match Forgotten::load(root, &config.forget).await? {
        Some(forgotten) => erase::from_models(root, &Who::Forgotten(&forgotten)).map(drop),
        None => Ok(()),
    }
}

/// Adds the hashes of `users` to table `forgotten`; how many of them were there before.
async fn remember(root: &Root, settings: &Forget, users: &[String]) -> Result<usize, ForgetError> {
    loop {
        let present = root.snapshot(FORGOTTEN).await?;
        let (key, stored) = match &present {
            Some(snapshot) => (hashes::known_key(snapshot, root, settings)?, hashes::stored(snapshot).await?),
            None => (hashes::Key::first(root, settings)?, HashSet::new()),
        };
        let mut new: Vec<u128> = users.iter().map(|user| key.hash(user.as_bytes())).collect();
        new.retain(|hash| !stored.contains(hash));
        new.sort_unstable();
        new.dedup();
        if new.is_empty() {
            return Ok(users.len());
        }
        let now = chrono::Utc::now().timestamp_millis();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(new.iter().map(|hash| format!("{hash:032x}")))),
            Arc::new(TimestampMillisecondArray::from_value(now, new.len()).with_timezone("UTC")),
        ];
        let rows = RecordBatch::try_new(FORGOTTEN_SCHEMA.clone(), columns)
            .map_err(|source| ForgetError::Rows { table: FORGOTTEN.into(), source })?;
        let mut writer = ShardWriter::create(root, FORGOTTEN, "part", &FORGOTTEN_SCHEMA, &[])?;
        writer.write(&rows)?;
        let mut shards = Uncommitted::new(root, FORGOTTEN);
        shards.push(writer.finish()?);
        let change = Change {
            table: FORGOTTEN,
            schema: &FORGOTTEN_SCHEMA,
            partition_by: &[],
            mode: CommitMode::Append,
            shards: shards.shards(),
            properties: BTreeMap::from([(hashes::KEY_CHECK.to_owned(), key.check())]),
            read_version: present.as_ref().map(Snapshot::version),
            transactions: BTreeMap::new(),
        };
        match shards.commit(change).await {
            // Another run forgets somebody else.
            Err(CommitError::Conflict { .. }) => {}
            committed => {
                committed?;
                return Ok(users.len() - new.len());
            }
        }
    }
}
