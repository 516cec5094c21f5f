//! `events` and `items` → `sequences`: the whole history at one version, cut into rows.
//!
//! ```text
//!  events @ V ─▶ survey ─▶ sources, duplicates, items without an index ─▶ items (one commit, if any)
//!           └──▶ scan ─▶ EventKeys ─▶ sort ─▶ merge ─▶ Histories ─▶ one shard for each bucket ─▶ one commit
//!                └── in parallel ──────┘      └── one stream ───────────────────────────────┘
//! ```
//!
//! The sort spills; everything else holds one batch, one user or one row group at a time (each file says its
//! own bound). The survey reads only ids, and once more the dates that have duplicates.
//!
//! Two builds of the same versions under the same settings have equal rows in equal shards, whatever the
//! threads and the memory, because the sort key is total (`keys.rs`) and nothing else decides an order.
//! Such a second build is not made at all: the table's properties say what it describes.

mod error;
mod items;
mod keys;
mod operator;
mod pass;
mod report;
mod rows;
mod shards;
mod survey;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use schemas::cli::Progress;
use schemas::config::Config;
use schemas::delta::{Root, Snapshot};
use schemas::history::DeltaTau;
use schemas::tables::{EVENTS, EVENTS_SCHEMA, ITEMS, SEQUENCES, SEQUENCES_SCHEMA, properties};

use crate::commit::{Change, CommitMode, NewShard, commit};
use crate::scan::{Groups, Resources, SnapshotTable, balanced};

pub use error::BuildError;
pub(crate) use items::stored_schema as stored_items_schema;
pub use keys::{KEYED_SCHEMA, key_order};
pub use operator::{Pass, PassExec, PassSpec};
pub use pass::Settings;
pub use report::{BuildReport, Counts, Targets};
pub use rows::ROWS_SCHEMA;

use items::Catalogue;
use keys::{INPUT_COLUMNS, KeySpec, Keys};
use pass::Histories;
use shards::BucketShards;

/// Builds `sequences` from the newest versions of `events` and `items`, with the default resources.
pub async fn build(config: &Config, root: &Root) -> Result<BuildReport, BuildError> {
    build_with(config, root, Resources::default()).await
}

/// [`build`] within given resources; they change the time, never the rows.
pub async fn build_with(
    config: &Config,
    root: &Root,
    resources: Resources,
) -> Result<BuildReport, BuildError> {
    let started = Instant::now();
    let settings = Settings::try_from(&config.sequences)?;
    let events = root.require(EVENTS, "pipeline ingest --events PATH").await?;
    let items = root.snapshot(ITEMS).await?;
    let present = root.snapshot(SEQUENCES).await?;

    if let Some(present) = &present
        && let Some(items) = &items
        && described(config, &events, items.version())
            .iter()
            .all(|(k, v)| present.properties().get(k) == Some(v))
    {
        return Ok(report(config, &events, items.version(), present, None, started));
    }

    let context = resources.session()?;
    let mut catalogue = Catalogue::read(items).await?;
    let known = Arc::new(std::mem::take(&mut catalogue.indexes));
    let table = SnapshotTable::new(events.clone(), &EVENTS_SCHEMA);
    let survey = survey::survey(&context, &table, &known).await?;
    catalogue.indexes = Arc::unwrap_or_clone(known);
    if survey.events == 0 {
        return Err(BuildError::NoEvents { version: events.version() });
    }
    let mut counts =
        Counts { events: survey.events, new_items: survey.missing.len() as u64, ..Counts::default() };
    catalogue.assign(config, root, &survey.missing).await?;
    let items_version = catalogue.version().unwrap_or_default();

    let (passes, reading) =
        (Arc::new(Mutex::new(Counts::default())), Progress::start("read", counts.events, "events"));
    let keys = KeySpec::new(&config.sequences, survey, catalogue.indexes, Arc::clone(&passes), reading);
    let rows = plan(&context, &table, keys, Histories { settings, counts: Arc::clone(&passes) })?;
    let shards = write(root, rows.execute(0, context.task_ctx())?, &counts).await?;
    counts.add(&passes.lock().unwrap_or_else(PoisonError::into_inner));
    if counts.rows == 0 {
        let actions = config.sequences.actions.clone();
        return Err(BuildError::NoActions { events: counts.events, actions });
    }

    let change = Change {
        table: SEQUENCES,
        schema: &SEQUENCES_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: &shards,
        properties: described(config, &events, items_version),
        read_version: present.as_ref().map(Snapshot::version),
    };
    let committed = commit(root, change).await?;
    let written = root.snapshot_at(SEQUENCES, committed.version).await?;
    let written = written.ok_or_else(|| BuildError::Vanished { version: committed.version })?;
    Ok(report(config, &events, items_version, &written, Some(counts), started))
}

/// The operators from the shards of `events` to batches of rows, as one stream.
fn plan(
    context: &SessionContext,
    events: &SnapshotTable,
    keys: KeySpec,
    histories: Histories,
) -> Result<Arc<dyn ExecutionPlan>, BuildError> {
    let threads = context.state().config().target_partitions();
    let groups = balanced(events.snapshot().shards().iter(), threads);
    let scan = events.plan(&context.runtime_env(), &INPUT_COLUMNS, groups, Groups::Shared)?;
    let keyed = Arc::new(PassExec::new(Arc::new(Keys(Arc::new(keys))), scan));
    let order = key_order();
    let sorted = Arc::new(SortExec::new(order.clone(), keyed).with_preserve_partitioning(true));
    let merged = Arc::new(SortPreservingMergeExec::new(order, sorted));
    Ok(Arc::new(PassExec::new(Arc::new(histories), merged)))
}

/// Writes the rows of every bucket to its shard; a failure leaves no files.
async fn write(
    root: &Root,
    mut rows: SendableRecordBatchStream,
    counts: &Counts,
) -> Result<Vec<NewShard>, BuildError> {
    let mut shards = BucketShards::new(root);
    let mut progress = None;
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        // The first row comes when the last event has been read and sorted.
        let progress = progress.get_or_insert_with(|| Progress::start("write", counts.events, "events"));
        progress.add(shards.write(&batch)?);
    }
    Ok(shards.finish()?)
}

/// The table properties that say what the rows are.
fn described(config: &Config, events: &Snapshot, items_version: u64) -> BTreeMap<String, String> {
    let sequences = &config.sequences;
    let delta_tau = match sequences.delta_tau.0 {
        DeltaTau::Off => "off".to_owned(),
        DeltaTau::Margin(ms) => ms.to_string(),
    };
    [
        (properties::DELTA_TAU_MS, delta_tau),
        (properties::SESSION_GAP_MS, sequences.session_gap.ms.to_string()),
        (properties::BATCH_GAP_MS, sequences.batch_gap.ms.to_string()),
        (properties::TIE_POLICY, sequences.ties.name().to_owned()),
        (properties::MAX_LEN, sequences.max_len.to_string()),
        (properties::EVENTS_VERSION, events.version().to_string()),
        (properties::ITEMS_VERSION, items_version.to_string()),
        (properties::CONFIG_HASH, sequences.hash()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn report(
    config: &Config,
    events: &Snapshot,
    items_version: u64,
    sequences: &Snapshot,
    counts: Option<Counts>,
    started: Instant,
) -> BuildReport {
    let seconds = started.elapsed().as_secs_f64();
    BuildReport {
        unchanged: counts.is_none(),
        version: sequences.version(),
        events_version: events.version(),
        items_version,
        config_hash: config.sequences.hash(),
        tie_policy: config.sequences.ties.name().into(),
        delta_tau: config.sequences.delta_tau.into(),
        rows: sequences.rows(),
        shards: sequences.shards().len() as u64,
        bytes: sequences.shards().iter().map(|shard| shard.bytes).sum(),
        hidden_share: counts.as_ref().map(Counts::hidden_share),
        events_per_second: counts.as_ref().map(|counts| counts.events as f64 / seconds),
        counts,
        seconds,
    }
}
