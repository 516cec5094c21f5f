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
mod report;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMillisecondArray};
use schemas::cli::Interrupt;
use schemas::config::{Config, ConfigError, Forget};
use schemas::delta::{Root, Snapshot, TableError};
use schemas::tables::{EVENTS, FORGOTTEN, FORGOTTEN_SCHEMA};

use crate::commit::{Change, CommitError, CommitMode, ShardWriter, commit};

pub(crate) use hashes::Forgotten;
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
        "the key {path} of table `forgotten` cannot be read; without it nobody knows who was forgotten, and their records \
         would come back"
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
pub async fn forget(
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
    let known = remember(root, &config.forget, users).await?;
    let mut report = Report { users: users.len(), known, tables: Vec::new(), files: Vec::new() };
    for table in crate::inspect::tables(root) {
        if interrupt.requested() {
            return Err(ForgetError::Interrupted);
        }
        report.tables.extend(erase::from_table(config, root, &table, users).await?);
    }
    report.files = erase::from_models(root, users)?;
    Ok(report)
}

/// Adds the hashes of `users` to table `forgotten`; how many of them were there before.
async fn remember(root: &Root, settings: &Forget, users: &[String]) -> Result<usize, ForgetError> {
    let key = hashes::Key::read_or_create(&hashes::key_path(root, settings))?;
    loop {
        let present = root.snapshot(FORGOTTEN).await?;
        let stored = match &present {
            Some(snapshot) => hashes::stored(snapshot).await?,
            None => Default::default(),
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
        let shards = [writer.finish()?];
        let change = Change {
            table: FORGOTTEN,
            schema: &FORGOTTEN_SCHEMA,
            partition_by: &[],
            mode: CommitMode::Append,
            shards: &shards,
            properties: BTreeMap::new(),
            read_version: present.as_ref().map(Snapshot::version),
            transactions: BTreeMap::new(),
        };
        match commit(root, change).await {
            // Another run forgets somebody else.
            Err(CommitError::Conflict { .. }) => {}
            committed => {
                committed?;
                return Ok(users.len() - new.len());
            }
        }
    }
}
