//! `events` and `items` → `sequences`: the whole history at one version, cut into rows.
//!
//! ```text
//!  stage 1, one stream a thread
//!    events @ V ─▶ scan ─▶ Keys ─▶ Scatter ═▶ buckets (memory, then a scratch file)
//!                            └─▶ sources, items without an index, suspected duplicates
//!  between the stages
//!    items (one commit, if any is new) ─▶ Resolution ◀─ duplicates (only dates that have suspects are read again)
//!  stage 2, one stream a bucket
//!    bucket ─▶ BucketSort ─▶ Histories ─▶ WriteShards ─▶ (bucket, path, bytes, rows, owned)
//!  at the end
//!    the driver checks the sums and makes one commit
//! ```
//!
//! Two builds of the same versions under the same settings have equal rows in equal shards, whatever the
//! threads and the memory, because the sort key is total (`keys.rs`) and nothing else decides an order.
//! Such a second build is not made at all: the table's properties say what it describes.
//!
//! **Memory.** [`Resources`] divides a budget among what grows: rows waiting in buckets, the buckets being
//! sorted, the suspected duplicates; the rest of the budget is for a row group in each reader and writer, and
//! for the catalogue's indexes (about 32 bytes an item). What does not fit goes to disk. Two things must fit:
//! the catalogue, and the longest single history (about 110 bytes an event).
//!
//! **A distributed engine** replaces `Scatter` and the buckets by its shuffle. What it must add is what the
//! scan learns for all streams at once (`Learned`): codes for sources and new items, and the suspects.

mod codes;
mod duplicates;
mod error;
mod event;
mod intervals;
mod items;
mod keys;
mod order;
mod pass;
mod refresh;
mod report;
mod resolve;
mod rows;
mod shards;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;
use datafusion::common::DataFusionError;
use datafusion::common::runtime::JoinSet;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use schemas::cli::Progress;
use schemas::config::{Config, DeltaTauSetting};
use schemas::delta::{Root, Shard, Snapshot};
use schemas::history::DeltaTau;
use schemas::tables::{EVENTS, ITEMS, REFRESH, SEQUENCES, SEQUENCES_SCHEMA, properties};

use crate::commit::{Change, CommitMode, commit};
use crate::engine::{BucketExec, Buckets, PassExec, Scatter};
use crate::scan::{Resources, SnapshotTable, balanced};

pub use error::BuildError;
pub use intervals::{INTERVALS_MIN, RequestIntervals};
pub(crate) use items::stored_schema as stored_items_schema;
pub(crate) use keys::scan_schema as events_scan_schema;
pub use order::HISTORY_SCHEMA;
pub use pass::Settings;
pub use report::{BuildReport, Counts, Targets};
pub use rows::ROWS_SCHEMA;
pub use shards::SHARDS_SCHEMA;

use codes::Codes;
use duplicates::{Known, Repeated, Suspects, by_date};
use event::Event;
use intervals::{Intervals, Measure};
use items::Catalogue;
use keys::{BUCKET_SCHEMA, INPUT_COLUMNS, Keys, Learned, scan_schema};
use order::BucketSortExec;
use pass::Histories;
use refresh::Fresh;
use resolve::Resolution;
use shards::{WriteShards, Written};

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
    run(config, root, None, resources).await
}

/// Builds `refresh`: the rows of [`build_with`] that own an event committed after version `since` of
/// `events`, in which only those events are targets.
pub async fn refresh(
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
    let items = root.snapshot(ITEMS).await?;
    let present = root.snapshot(table).await?;
    let reporter = Reporter { config, events: &events, since, started };
    if let Some(present) = &present
        && let Some(items) = &items
        && described(config, &events, items.version(), since)
            .iter()
            .all(|(k, v)| present.properties().get(k) == Some(v))
    {
        return Ok(reporter.report(items.version(), present, None));
    }

    let fresh = match since {
        Some(version) => Some(Arc::new(Fresh::since(&events, version).await?)),
        None => None,
    };
    let (mut catalogue, item_codes) = Catalogue::read(items).await?;
    let mut builder = Builder { config, resources, context: resources.session(), fresh };
    let log = SnapshotTable::new(events.clone(), &scan_schema());
    let (buckets, learned) = builder.scatter(&log, item_codes).await?;
    let seconds_reading = started.elapsed().as_secs_f64();
    let mut counts = std::mem::take(&mut *learned.counts.lock().unwrap_or_else(PoisonError::into_inner));
    if counts.events == 0 {
        return Err(BuildError::NoEvents { version: events.version() });
    }
    let repeated = builder.repeated(&log, &learned).await?;
    let (missing, ranks) = learned.items.missing();
    counts.new_items = missing.len() as u64;
    let first = catalogue.assign(config, root, &missing).await?;
    let items_version = catalogue.version().unwrap_or_default();
    let resolution = Arc::new(Resolution {
        ranks: learned.sources.ranks().1,
        items: learned.items.resolve(ranks, first),
        repeated,
        shuffle: Resolution::shuffle(&config.sequences),
    });

    let delta_tau = match config.sequences.delta_tau.fixed() {
        Some(delta_tau) => delta_tau,
        None => builder.measure(&buckets, &resolution).await?,
    };
    let settings = Settings::new(&config.sequences, delta_tau)?;
    let written = Arc::new(Written::new(table, root));
    let intervals = builder.write(&buckets, &resolution, settings, &written, &mut counts).await?;
    if counts.targets.total() == 0 && since.is_none() {
        let actions = config.sequences.actions.clone();
        return Err(BuildError::NoActions { events: counts.events, actions });
    }

    let mut properties = described(config, &events, items_version, since);
    properties.insert(properties::DELTA_TAU_MS.into(), delta_tau_ms(delta_tau));
    properties.extend(measured(intervals.as_ref()));
    let shards = written.take();
    let change = Change {
        table,
        schema: &SEQUENCES_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: &shards,
        properties,
        read_version: present.as_ref().map(Snapshot::version),
    };
    let committed = commit(root, change).await?;
    let written = root.snapshot_at(table, committed.version).await?;
    let written = written.ok_or(BuildError::Vanished { table, version: committed.version })?;
    let built = Built { counts, spilled_bytes: buckets.spilled_bytes(), seconds_reading };
    Ok(reporter.report(items_version, &written, Some(built)))
}

/// A scan of shards, and whether their events are fresh.
type Scan = (Arc<dyn ExecutionPlan>, bool);

/// The stages of a build.
struct Builder<'a> {
    config: &'a Config,
    resources: Resources,
    context: SessionContext,
    /// `--since`: what is fresh.
    fresh: Option<Arc<Fresh>>,
}

impl Builder<'_> {
    /// Stage 1.
    async fn scatter(
        &mut self,
        log: &SnapshotTable,
        items: codes::ItemCodes,
    ) -> Result<(Arc<Buckets>, Arc<Learned>), BuildError> {
        let Resources { threads, .. } = self.resources;
        let sequences = &self.config.sequences;
        let learned = Arc::new(Learned {
            sources: Codes::default(),
            items,
            suspects: Arc::new(Suspects::new(log.snapshot().rows(), self.resources.suspects_bytes())),
            counts: Mutex::default(),
            progress: Mutex::new(Progress::start("read", log.snapshot().rows(), "events")),
        });
        let buckets = Arc::new(Buckets::new(
            BUCKET_SCHEMA.clone(),
            Event::BYTES,
            sequences.shards,
            threads,
            self.resources.scatter_bytes(),
        ));
        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        for (plan, fresh) in self.scans(log, log.snapshot().shards().iter().collect())? {
            let keys = Keys {
                learned: Arc::clone(&learned),
                actions: sequences.actions.clone(),
                shards: sequences.shards as u64,
                since: self.fresh.clone(),
                // The mean of the intervals is that of all users.
                all_users: sequences.delta_tau == DeltaTauSetting::Auto,
                fresh,
            };
            plans.push(Arc::new(PassExec::new(Arc::new(keys), plan)));
        }
        let into = Arc::clone(&buckets);
        self.each_partition(&plans, move |mut batches| {
            let mut scatter = Scatter::new(Arc::clone(&into));
            async move {
                while let Some(batch) = batches.next().await {
                    scatter.push(&batch?)?;
                }
                scatter.finish().map(|()| Vec::new())
            }
        })
        .await?;
        Ok((buckets, learned))
    }

    /// Scans of the shards, the fresh ones apart from the others.
    fn scans(&self, log: &SnapshotTable, shards: Vec<&Shard>) -> Result<Vec<Scan>, BuildError> {
        let is_fresh = |shard: &&Shard| self.fresh.as_ref().is_some_and(|fresh| fresh.has_shard(shard));
        let (fresh, stale): (Vec<&Shard>, Vec<&Shard>) = shards.into_iter().partition(is_fresh);
        let runtime = self.context.runtime_env();
        let mut plans = Vec::new();
        for (shards, fresh) in [(stale, false), (fresh, true)] {
            if !shards.is_empty() {
                let groups = balanced(shards.into_iter(), self.resources.threads);
                plans.push((log.plan(&runtime, &INPUT_COLUMNS, groups)?, fresh));
            }
        }
        Ok(plans)
    }

    /// Which events have copies.
    async fn repeated(&self, log: &SnapshotTable, learned: &Learned) -> Result<Repeated, BuildError> {
        let mut repeated = Repeated::default();
        let suspects = learned.suspects.find(self.resources.threads)?;
        let actions = &self.config.sequences.actions;
        let known = Known { learned, actions, fresh: self.fresh.as_deref() };
        for shards in by_date(log.snapshot().shards(), &suspects) {
            let plans = self.scans(log, shards)?;
            repeated.look_through(plans, &self.context.task_ctx(), &suspects, &known).await?;
        }
        Ok(repeated)
    }

    /// Every bucket's events in the order of their histories.
    fn histories(&self, buckets: &Arc<Buckets>, resolution: &Arc<Resolution>) -> Arc<BucketSortExec> {
        let leaf = Arc::new(BucketExec::new(Arc::clone(buckets)));
        Arc::new(BucketSortExec::new(leaf, self.resources.bucket_bytes(), Arc::clone(resolution)))
    }

    /// `delta_tau = "auto"`: stage 2 up to the histories, to measure the request intervals of all users.
    async fn measure(
        &self,
        buckets: &Arc<Buckets>,
        resolution: &Arc<Resolution>,
    ) -> Result<DeltaTau, BuildError> {
        let total = Arc::new(Mutex::new(Intervals::default()));
        let measure =
            Measure { session_gap_ms: self.config.sequences.session_gap.ms, total: Arc::clone(&total) };
        let plan = PassExec::new(Arc::new(measure), self.histories(buckets, resolution));
        self.each_partition(&[Arc::new(plan)], collect).await?;
        let measured = total.lock().unwrap_or_else(PoisonError::into_inner).summary();
        let count = measured.map_or(0, |measured| measured.count);
        match measured {
            Some(measured) if count >= INTERVALS_MIN => Ok(DeltaTau::Margin(measured.delta_tau_ms())),
            _ => Err(BuildError::TooFewIntervals { count }),
        }
    }

    /// Stage 2: writes the shards and checks the sums; gives the request intervals that it met.
    async fn write(
        &self,
        buckets: &Arc<Buckets>,
        resolution: &Arc<Resolution>,
        settings: Settings,
        written: &Arc<Written>,
        counts: &mut Counts,
    ) -> Result<Option<RequestIntervals>, BuildError> {
        let (passed, intervals) = (Arc::<Mutex<Counts>>::default(), Arc::<Mutex<Intervals>>::default());
        let refresh = self.fresh.is_some();
        let pass =
            Histories { settings, refresh, counts: Arc::clone(&passed), intervals: Arc::clone(&intervals) };
        let histories = self.histories(buckets, resolution);
        let rows = Arc::new(PassExec::new(Arc::new(pass), Arc::clone(&histories) as _));
        let progress = Arc::new(Mutex::new(Progress::start("write", buckets.rows(), "events")));
        let plan = PassExec::new(Arc::new(WriteShards { written: Arc::clone(written), progress }), rows);
        let shards = self.each_partition(&[Arc::new(plan)], collect).await?;

        counts.duplicates += histories.copies();
        counts.add(&passed.lock().unwrap_or_else(PoisonError::into_inner));
        let sum = |column: usize| -> u64 {
            let column = shards.iter().map(|batch| batch.column(column).as_primitive::<UInt64Type>());
            column.flat_map(|column| column.values()).sum()
        };
        let (rows, owned) = (sum(3), sum(4));
        let all = counts.events - counts.duplicates - counts.filtered;
        if rows != counts.rows || owned != counts.owned || (!refresh && owned != all) {
            return Err(BuildError::Sums { rows, owned, counts: Box::new(counts.clone()) });
        }
        Ok(intervals.lock().unwrap_or_else(PoisonError::into_inner).summary())
    }

    /// Runs every partition of the plans, as many at a time as there are threads, and collects what `consume`
    /// makes of them.
    async fn each_partition<F, R>(
        &self,
        plans: &[Arc<dyn ExecutionPlan>],
        consume: F,
    ) -> Result<Vec<RecordBatch>, BuildError>
    where
        F: Fn(datafusion::execution::SendableRecordBatchStream) -> R + Clone + Send + 'static,
        R: Future<Output = Result<Vec<RecordBatch>, DataFusionError>> + Send,
    {
        let count = |plan: &Arc<dyn ExecutionPlan>| plan.properties().output_partitioning().partition_count();
        let work: Vec<(Arc<dyn ExecutionPlan>, usize)> =
            plans.iter().flat_map(|plan| (0..count(plan)).map(|p| (Arc::clone(plan), p))).collect();
        let (work, next) = (Arc::new(work), Arc::new(AtomicUsize::new(0)));
        // Dropped, the set stops its tasks.
        let mut tasks = JoinSet::new();
        for _ in 0..self.resources.threads.max(1) {
            let (work, next, consume) = (Arc::clone(&work), Arc::clone(&next), consume.clone());
            let context = self.context.task_ctx();
            tasks.spawn(async move {
                let mut batches = Vec::new();
                while let Some((plan, partition)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    batches.extend(consume(plan.execute(*partition, Arc::clone(&context))?).await?);
                    tokio::task::yield_now().await;
                }
                Ok::<_, DataFusionError>(batches)
            });
        }
        let mut batches = Vec::new();
        while let Some(done) = tasks.join_next().await {
            batches.extend(done.map_err(|e| DataFusionError::External(Box::new(e)))??);
        }
        Ok(batches)
    }
}

async fn collect(
    stream: datafusion::execution::SendableRecordBatchStream,
) -> Result<Vec<RecordBatch>, DataFusionError> {
    futures::TryStreamExt::try_collect(stream).await
}

/// `900000`, or `off`.
fn delta_tau_ms(delta_tau: DeltaTau) -> String {
    match delta_tau {
        DeltaTau::Off => "off".to_owned(),
        DeltaTau::Margin(ms) => ms.to_string(),
    }
}

/// The table properties that say what the rows are, as far as they are known before the log is read.
fn described(
    config: &Config,
    events: &Snapshot,
    items_version: u64,
    since: Option<u64>,
) -> BTreeMap<String, String> {
    let sequences = &config.sequences;
    let mut described: BTreeMap<String, String> = [
        (properties::SESSION_GAP_MS, sequences.session_gap.ms.to_string()),
        (properties::BATCH_GAP_MS, sequences.batch_gap.ms.to_string()),
        (properties::TIE_POLICY, sequences.ties.name().to_owned()),
        (properties::MAX_LEN, sequences.max_len.to_string()),
        (properties::EVENTS_VERSION, events.version().to_string()),
        (properties::ITEMS_VERSION, items_version.to_string()),
        (properties::CONFIG_HASH, sequences.hash()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if let Some(since) = since {
        described.insert(properties::SINCE_VERSION.into(), since.to_string());
    }
    if let Some(delta_tau) = sequences.delta_tau.fixed() {
        described.insert(properties::DELTA_TAU_MS.into(), delta_tau_ms(delta_tau));
    }
    described
}

/// The measured request intervals as table properties.
fn measured(intervals: Option<&RequestIntervals>) -> BTreeMap<String, String> {
    let count = intervals.map_or(0, |intervals| intervals.count);
    let mut measured = BTreeMap::from([(properties::REQUEST_INTERVALS.to_owned(), count.to_string())]);
    if let Some(intervals) = intervals {
        measured.insert(properties::REQUEST_INTERVAL_MEAN_MS.into(), format!("{:.3}", intervals.mean_ms));
        measured.insert(properties::REQUEST_INTERVAL_MEDIAN_MS.into(), intervals.median_ms.to_string());
        measured.insert(properties::REQUEST_INTERVAL_P90_MS.into(), intervals.p90_ms.to_string());
    }
    measured
}

/// The measured request intervals that a table's properties tell.
fn told(table: &Snapshot) -> Option<RequestIntervals> {
    fn number<T: std::str::FromStr>(table: &Snapshot, key: &str) -> Option<T> {
        table.properties().get(key)?.parse().ok()
    }
    Some(RequestIntervals {
        count: number(table, properties::REQUEST_INTERVALS)?,
        mean_ms: number(table, properties::REQUEST_INTERVAL_MEAN_MS)?,
        median_ms: number(table, properties::REQUEST_INTERVAL_MEDIAN_MS)?,
        p90_ms: number(table, properties::REQUEST_INTERVAL_P90_MS)?,
    })
}

/// What is known of a build that was made now.
struct Built {
    counts: Counts,
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
    /// The report on `table`, which was built now or before.
    fn report(&self, items_version: u64, table: &Snapshot, built: Option<Built>) -> BuildReport {
        let seconds = self.started.elapsed().as_secs_f64();
        let sequences = &self.config.sequences;
        let spilled_bytes = built.as_ref().map(|built| built.spilled_bytes);
        let seconds_reading = built.as_ref().map(|built| built.seconds_reading);
        let counts = built.map(|built| built.counts);
        BuildReport {
            table: if self.since.is_some() { REFRESH } else { SEQUENCES },
            since: self.since,
            unchanged: counts.is_none(),
            version: table.version(),
            events_version: self.events.version(),
            items_version,
            config_hash: sequences.hash(),
            tie_policy: sequences.ties.name().into(),
            delta_tau: sequences.delta_tau.into(),
            delta_tau_ms: table.properties().get(properties::DELTA_TAU_MS).and_then(|ms| ms.parse().ok()),
            request_intervals: told(table),
            rows: table.rows(),
            shards: table.shards().len() as u64,
            bytes: table.shards().iter().map(|shard| shard.bytes).sum(),
            hidden_share: counts.as_ref().map(Counts::hidden_share),
            events_per_second: counts.as_ref().map(|counts| counts.events as f64 / seconds),
            counts,
            spilled_bytes,
            seconds_reading,
            seconds,
        }
    }
}
