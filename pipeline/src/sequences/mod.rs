//! Builds `sequences` and `refresh` from `events` and `items`: whole histories at one version, cut into rows.
//!
//! ```text
//!   log ─▶ histories ([`crate::histories`]) ─▶ WindowRows ─▶ one shard a bucket ─▶ (bucket, path, bytes, rows, owned)
//!   at the end: the driver checks the sums and makes one commit
//! ```
//!
//! Two builds of the same versions under the same settings have equal rows in equal shards. A second build is therefore
//! skipped: the table's properties record its versions and settings. Memory: that of [`crate::histories`], and a batch of
//! rows and a row group in each stream.

mod report;
mod rows;
mod shards;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use schemas::config::Config;
use schemas::tables::properties::{DELTA_TAU_MS, SHARED_EVENT_IDS};
use schemas::tables::{EVENTS, ITEMS, REFRESH, SEQUENCES, SEQUENCES_SCHEMA};
use store::boxed::Boxed;
use store::commit::{Change, CommitMode};
use store::{Root, Snapshot};

use crate::engine::Resources;
use crate::histories::{
    Builder, Compared, Counts, Fresh, delta_tau_ms, described, measured, stored_intervals,
};

pub use crate::histories::BuildError;
pub use report::BuildReport;
pub use rows::ROWS_SCHEMA;
pub use shards::SHARDS_SCHEMA;
pub(crate) use shards::{WrittenShards, write};

use rows::{WindowRows, owned};

/// Builds `sequences` from the newest versions of `events` and `items`, with the default resources.
///
/// # Errors
///
/// Any [`BuildError`]; nothing was committed to `sequences`.
pub async fn build(config: &Config, root: &Root) -> Result<BuildReport, BuildError> {
    build_with(config, root, Resources::default()).await
}

/// [`build`] within given resources, which change its duration, never the rows.
///
/// # Errors
///
/// Any [`BuildError`]; nothing was committed to `sequences`.
pub fn build_with<'a>(
    config: &'a Config,
    root: &'a Root,
    resources: Resources,
) -> Boxed<'a, Result<BuildReport, BuildError>> {
    Box::pin(build_all(config, root, resources))
}

async fn build_all(config: &Config, root: &Root, resources: Resources) -> Result<BuildReport, BuildError> {
    run(config, root, None, resources).await
}

/// Builds `refresh`: the rows of [`build_with`] that own an event committed after version `since` of
/// `events`; only those events are targets.
///
/// # Errors
///
/// Any [`BuildError`]; nothing was committed to `refresh`.
pub fn refresh<'a>(
    config: &'a Config,
    root: &'a Root,
    since: u64,
    resources: Resources,
) -> Boxed<'a, Result<BuildReport, BuildError>> {
    Box::pin(build_since(config, root, since, resources))
}

async fn build_since(
    config: &Config,
    root: &Root,
    since: u64,
    resources: Resources,
) -> Result<BuildReport, BuildError> {
    run(config, root, Some(since), resources).await
}

async fn run(
    config: &Config,
    root: &Root,
    since: Option<u64>,
    resources: Resources,
) -> Result<BuildReport, BuildError> {
    let started = Instant::now();
    let table = if since.is_some() { REFRESH } else { SEQUENCES };
    let events = root.require(EVENTS, "pipeline ingest --events PATH").await?;
    let items = root.snapshot_to_write(ITEMS, true).await?;
    let present = root.snapshot_to_write(table, true).await?;
    let reporter = Reporter { config, events: &events, since, started };
    if let Some(present) = &present
        && let Some(items) = &items
        && described(config, &events, items.version(), since)
            .iter()
            .all(|(k, v)| present.properties().get(k) == Some(v))
        && present.is_whole().await
    {
        return Ok(reporter.report(items.version(), present, None));
    }

    let fresh = match since {
        Some(version) => Some(Arc::new(Fresh::since(&events, version).await?)),
        None => None,
    };
    let mut builder = Builder::new(config, root, resources);
    builder.fresh = fresh;
    if builder.fresh_users().is_some() {
        builder.compared = Compared::find(root, &events, config.events.dedup_days).await;
    }
    let mut log = builder.read(&events, items).await?;
    let written = Arc::new(WrittenShards::new(table, &SEQUENCES_SCHEMA, root));
    let rows = Arc::new(WindowRows { refresh: since.is_some(), counts: Mutex::default() });
    let wrote = write(&builder, &log, &rows, owned, &written).await?;

    let counts = &mut log.counts;
    counts.duplicates += wrote.copies;
    if let Some(filters) = &mut counts.filters {
        filters.add(&wrote.left_out);
    }
    counts.add(&rows.counts.lock().unwrap_or_else(PoisonError::into_inner));
    let all = counts.events - counts.duplicates - counts.taken_out();
    if wrote.rows != counts.rows || wrote.owned != counts.owned || (since.is_none() && wrote.owned != all) {
        let (rows, owned) = (wrote.rows, wrote.owned);
        return Err(BuildError::Sums { rows, owned, counts: Box::new(counts.clone()) });
    }
    // Events that pass may all be copies of events that do not.
    if counts.targets.total() == 0 && since.is_none() {
        return Err(builder.nothing_left(counts, None));
    }
    let items_version = log.items_version();
    let mut properties = described(config, &events, items_version, since);
    properties.insert(DELTA_TAU_MS.into(), delta_tau_ms(log.delta_tau));
    properties.extend(measured(wrote.intervals.as_ref()));
    properties.extend(log.shared_ids().map(|note| (SHARED_EVENT_IDS.to_owned(), note)));
    let shards = written.take();
    let change = Change {
        table,
        schema: &SEQUENCES_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: shards.shards(),
        properties,
        read_version: present.as_ref().map(Snapshot::version),
        transactions: BTreeMap::new(),
    };
    let committed = shards.commit(change).await?;
    let written = root.snapshot_at(table, committed.version).await?;
    let written = written.ok_or(BuildError::Vanished { table: table.into(), version: committed.version })?;
    let (spilled_bytes, seconds_reading, decoded) = (log.spilled_bytes(), log.seconds_reading, log.decoded);
    let built = Built { counts: log.counts, decoded, spilled_bytes, seconds_reading };
    Ok(reporter.report(items_version, &written, Some(built)))
}

/// Figures of a build by this run.
struct Built {
    counts: Counts,
    decoded: u64,
    spilled_bytes: u64,
    seconds_reading: f64,
}

struct Reporter<'a> {
    config: &'a Config,
    events: &'a Snapshot,
    since: Option<u64>,
    started: Instant,
}

impl Reporter<'_> {
    /// The report on `table`; `built` is `None` if an earlier run built it.
    fn report(&self, items_version: u64, table: &Snapshot, built: Option<Built>) -> BuildReport {
        let seconds = self.started.elapsed().as_secs_f64();
        let sequences = &self.config.sequences;
        let spilled_bytes = built.as_ref().map(|built| built.spilled_bytes);
        let seconds_reading = built.as_ref().map(|built| built.seconds_reading);
        let events_decoded = built.as_ref().map(|built| built.decoded);
        let counts = built.map(|built| built.counts);
        BuildReport {
            table: if self.since.is_some() { REFRESH } else { SEQUENCES },
            since: self.since,
            unchanged: counts.is_none(),
            version: table.version(),
            events_version: self.events.version(),
            items_version,
            config_hash: sequences.hash(),
            filters: sequences.filters(),
            tie_policy: sequences.ties.name().into(),
            delta_tau: sequences.delta_tau.into(),
            delta_tau_ms: table.properties().get(DELTA_TAU_MS).and_then(|ms| ms.parse().ok()),
            request_intervals: stored_intervals(table),
            rows: table.rows(),
            shards: table.shards().len() as u64,
            bytes: table.shards().iter().map(|shard| shard.bytes).sum(),
            hidden_share: counts.as_ref().map(Counts::hidden_share),
            events_per_second: counts.as_ref().map(|counts| counts.events as f64 / seconds),
            counts,
            events_decoded,
            spilled_bytes,
            seconds_reading,
            seconds,
        }
    }
}
