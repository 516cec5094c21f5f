//! `pipeline forget`: a person's right to erasure.
//!
//! ```text
//!   1. forgotten        a keyed hash of the user: from here on, nothing of the user comes in again
//!   2. every table      each shard with rows of the user is written again without them; one commit a table
//!   3. models           stored ranks of the user's events, beside the models
//!   4. vacuum           later: the old shards
//! ```
//!
//! The hash is stored first, so that no reader of the log can bring back rows that the second step has removed. Each step may
//! be repeated: a stopped run is run again, and a run that finds nothing reports this.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMillisecondArray};
use schemas::config::{Config, ConfigError, Forget};
use schemas::tables::{EVENTS, FORGOTTEN, FORGOTTEN_SCHEMA};
use store::boxed::Boxed;
use store::commit::{Change, CommitError, CommitMode, ShardWriter, Uncommitted};
use store::{Root, Snapshot};
use terminal::Interrupt;

use super::erase::{self, BesideModels, Erased};
use super::error::ForgetError;
use super::forgotten::{self, Forgotten};
use super::keys::{self, Key};
use super::look_alikes::LookAlikes;
use super::report::ErasureReport;

/// Removes the rows of `users` from everything below `root`, and keeps a keyed hash of each user.
///
/// # Errors
///
/// Any [`ForgetError`]. Changes made before it stay; the same call does the rest.
pub fn forget<'a>(
    config: &'a Config,
    root: &'a Root,
    users: &'a [String],
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<ErasureReport, ForgetError>> {
    Box::pin(erase_all(config, root, users, interrupt))
}

async fn erase_all(
    config: &Config,
    root: &Root,
    users: &[String],
    interrupt: &Interrupt,
) -> Result<ErasureReport, ForgetError> {
    if users.iter().any(|user| user.trim().is_empty()) {
        let problem = "is empty; give the id as the log has it".into();
        return Err(ConfigError::Invalid { key: "--user".into(), problem }.into());
    }
    // A root without events is more likely a wrong path than a root with nothing to forget.
    root.require(EVENTS, "pipeline ingest").await?;
    let tables = tables_to_change(root).await?;
    let known = remember(root, &config.forget, users).await?;
    let mut report = ErasureReport { users: users.len(), known, ..ErasureReport::default() };
    let ids = || users.iter().map(String::as_str);
    let who = Erased::Users(ids().collect(), LookAlikes::of(ids()));
    for table in tables {
        if interrupt.requested() {
            return Err(ForgetError::Interrupted);
        }
        report.tables.extend(erase::from_table(config, root, &table, &who).await?);
    }
    BesideModels { files: report.files, links: report.links } = erase::from_models(root, &who)?;
    if let Erased::Users(_, alike) = who {
        report.look_alikes = alike.found();
    }
    Ok(report)
}

/// Removes rows of forgotten users that were written by runs which had begun before the erasure: a build or an evaluation
/// of older versions, an ingestion of a file. `None` if no user was ever forgotten.
///
/// # Errors
///
/// Any [`ForgetError`]. Changes made before it stay; the same call does the rest.
pub fn sweep<'a>(
    config: &'a Config,
    root: &'a Root,
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<Option<ErasureReport>, ForgetError>> {
    Box::pin(sweep_all(config, root, interrupt))
}

async fn sweep_all(
    config: &Config,
    root: &Root,
    interrupt: &Interrupt,
) -> Result<Option<ErasureReport>, ForgetError> {
    let Some(forgotten) = Forgotten::load(root, &config.forget).await? else { return Ok(None) };
    let users = forgotten.len();
    let mut report = ErasureReport { users, known: users, ..ErasureReport::default() };
    let who = Erased::Forgotten(&forgotten);
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

/// The tables of the root. Fails, before any table is changed, if one cannot be read or written.
async fn tables_to_change(root: &Root) -> Result<Vec<String>, ForgetError> {
    let tables = root.tables()?;
    for table in &tables {
        root.snapshot_to_write(table, true).await?;
    }
    Ok(tables)
}

/// [`sweep`] for the files beside the models only.
///
/// # Errors
///
/// Any [`ForgetError`]. Changes made before it stay; the same call does the rest.
pub async fn sweep_models(config: &Config, root: &Root) -> Result<(), ForgetError> {
    match Forgotten::load(root, &config.forget).await? {
        Some(forgotten) => erase::from_models(root, &Erased::Forgotten(&forgotten)).map(drop),
        None => Ok(()),
    }
}

/// Adds the hashes of `users` to table `forgotten`; returns how many of them were there before.
async fn remember(root: &Root, settings: &Forget, users: &[String]) -> Result<usize, ForgetError> {
    loop {
        let present = root.snapshot(FORGOTTEN).await?;
        let (key, stored) = match &present {
            Some(snapshot) => {
                (keys::known_key(snapshot, root, settings)?, forgotten::stored(snapshot).await?)
            }
            None => (Key::first(root, settings)?, HashSet::new()),
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
            properties: BTreeMap::from([(keys::KEY_CHECK.to_owned(), key.check())]),
            read_version: present.as_ref().map(Snapshot::version),
            transactions: BTreeMap::new(),
        };
        match shards.commit(change).await {
            // Another run has forgotten other users at the same time.
            Err(CommitError::Conflict { .. }) => {}
            committed => {
                committed?;
                return Ok(users.len() - new.len());
            }
        }
    }
}
