//! The stages of a build, drawn in `mod.rs`. Stage 1 reads the log once; stage 2 can turn its result ([`ReadLog`]) into
//! the rows of several tables.

use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::common::runtime::JoinSet;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};
use schemas::config::{Config, DeltaTauSetting};
use schemas::history::{DeltaTau, LogFilters};
use store::{Root, Shard, Snapshot};
use terminal::Progress;

use super::codes::{Codes, ItemCodes};
use super::compared::{Compared, noted};
use super::counts::{Counts, FilterCounts};
use super::duplicates::{OtherIds, RepeatedEvents, ScanFacts, Search, by_date};
use super::error::BuildError;
use super::event::PackedEvent;
use super::event_columns::{BUCKET_SCHEMA, INPUT_COLUMNS, VALUE_COLUMN, scan_schema};
use super::fresh::{Fresh, Scan};
use super::intervals::{INTERVALS_MIN, Intervals, Measure, RequestIntervals};
use super::items::StoredCatalogue;
use super::keys::{Keys, Quality};
use super::learned::Learned;
use super::order::BucketSortExec;
use super::pass::{Histories, HistorySettings, Output};
use super::resolve::Resolution;
use super::survivors::{CoreRounds, PAIR_BUCKET_SCHEMA, PAIR_BYTES, Pairs, Survivors, bucket_of};
use crate::engine::{
    BucketExec, Buckets, PassExec, PassSpec, Resources, RowsWith, Scatter, SnapshotTable, Suspects, balanced,
    hash_in, suspect,
};

/// Runs the stages of a build.
pub(crate) struct Builder<'a> {
    config: &'a Config,
    root: &'a Root,
    resources: Resources,
    context: SessionContext,
    /// `build-sequences --since`: the fresh events.
    pub(crate) fresh: Option<Arc<Fresh>>,
    /// The newest note of an earlier build on shared ids, if one holds.
    pub(crate) compared: Option<Compared>,
    /// `build-sft`: which events are fit to be learned.
    pub(crate) quality: Option<Quality>,
}

/// The log in buckets, and the facts that the scan has collected about it.
pub(crate) struct ReadLog {
    buckets: Arc<Buckets>,
    resolution: Arc<Resolution>,
    /// The scan's counters, and the number of new items.
    pub counts: Counts,
    /// The catalogue, in which every item of the log has an index.
    pub items: Option<Snapshot>,
    /// The time of the newest event, in epoch milliseconds; at most the last before `sequences.until`.
    pub newest: i64,
    /// `Δτ` as configured or measured.
    pub delta_tau: DeltaTau,
    /// Events that were decoded; a refresh does not decode all events of users without a fresh one.
    pub decoded: u64,
    /// Wall time until all events were in their buckets.
    pub seconds_reading: f64,
}

impl ReadLog {
    /// The note on event ids that the histories of several users share; `None` if there are too many.
    pub(crate) fn shared_ids(&self) -> Option<String> {
        noted(&self.resolution.repeated.shared)
    }

    /// The version of the catalogue.
    pub(crate) fn items_version(&self) -> u64 {
        self.items.as_ref().map(Snapshot::version).unwrap_or_default()
    }

    /// Bytes that went to scratch files.
    pub(crate) fn spilled_bytes(&self) -> u64 {
        self.buckets.spilled_bytes()
    }
}

/// The k-core of a log.
struct FoundCore {
    /// Rounds that took out a user or an item.
    rounds: u64,
    items_out: u64,
    /// Events before the k-core.
    events: u64,
    /// Events of the k-core.
    left: u64,
}

/// The result of stage 2.
pub(crate) struct Passed {
    /// The batches of the last pass.
    pub batches: Vec<RecordBatch>,
    /// Copies of events that were dropped.
    pub copies: u64,
    /// Events that the filters of whole histories took out.
    pub left_out: FilterCounts,
    /// The request intervals of the histories.
    pub intervals: Option<RequestIntervals>,
}

impl<'a> Builder<'a> {
    /// A build of the whole log.
    pub(crate) fn new(config: &'a Config, root: &'a Root, resources: Resources) -> Self {
        Self {
            config,
            root,
            resources,
            context: resources.session(),
            fresh: None,
            compared: None,
            quality: None,
        }
    }

    /// Stage 1 and the steps between the stages.
    pub(crate) async fn read(
        &self,
        events: &Snapshot,
        items: Option<Snapshot>,
    ) -> Result<ReadLog, BuildError> {
        let started = Instant::now();
        let (mut catalogue, item_codes) = StoredCatalogue::read(items).await?;
        let log = SnapshotTable::new(events.clone(), &scan_schema());
        let (buckets, learned) = self.scatter(&log, item_codes).await?;
        let seconds_reading = started.elapsed().as_secs_f64();
        let mut counts = std::mem::take(&mut *learned.counts.lock().unwrap_or_else(PoisonError::into_inner));
        let passed_over = events.rows().saturating_sub(counts.events);
        counts.events += passed_over;
        counts.other_users += passed_over;
        if counts.events == 0 {
            return Err(BuildError::NoEvents { version: events.version() });
        }
        let filters = self.config.sequences.filters();
        if filters.beyond_actions() {
            counts.filters.get_or_insert_default();
        }
        if counts.taken_out() == counts.events && self.fresh.is_none() {
            return Err(self.nothing_left(&counts, None));
        }
        let repeated = self.repeated(&log, &learned).await?;
        let (missing, ranks) = learned.items.missing();
        counts.new_items = missing.len() as u64;
        let first = catalogue.assign(self.config, self.root, &missing).await?;
        let resolution = Arc::new(Resolution {
            ranks: learned.sources.ranks().1,
            items: learned.items.resolve(ranks, first),
            repeated,
            shuffle: Resolution::shuffle(&self.config.sequences),
            survivors: Survivors::new(&filters),
        });
        if filters.has_core() {
            let core = self.core(&buckets, &resolution, &filters, catalogue.last()).await?;
            let taken_out = counts.filters.get_or_insert_default();
            (taken_out.core_items, taken_out.core_rounds) = (core.items_out, core.rounds);
            if core.left == 0 && core.events > 0 && self.fresh.is_none() {
                return Err(self.nothing_left(&counts, Some(core.events)));
            }
        }
        let delta_tau = match self.config.sequences.delta_tau.fixed() {
            Some(delta_tau) => delta_tau,
            None => self.measure(&buckets, &resolution).await?,
        };
        let newest = filters.newest(learned.newest.load(Ordering::Relaxed));
        let items = catalogue.into_snapshot();
        let decoded = learned.decoded.load(Ordering::Relaxed);
        Ok(ReadLog { buckets, resolution, counts, items, newest, delta_tau, decoded, seconds_reading })
    }

    /// Stage 1.
    async fn scatter(
        &self,
        log: &SnapshotTable,
        items: ItemCodes,
    ) -> Result<(Arc<Buckets>, Arc<Learned>), BuildError> {
        let Resources { threads, .. } = self.resources;
        let sequences = &self.config.sequences;
        let filters = Arc::new(sequences.filters());
        let learned = Arc::new(Learned {
            sources: Codes::default(),
            items,
            suspects: Arc::new(Suspects::new(
                log.snapshot().rows(),
                self.resources.suspects_bytes(),
                0..=self.config.events.dedup_days,
            )),
            counts: Mutex::default(),
            newest: AtomicI64::new(i64::MIN),
            decoded: AtomicU64::new(0),
            progress: Mutex::new(Progress::start("read", log.snapshot().rows(), "events")),
        });
        let buckets = Arc::new(Buckets::new(
            BUCKET_SCHEMA.clone(),
            PackedEvent::BYTES,
            sequences.shards,
            threads,
            self.resources.scatter_bytes(),
        ));
        let mut plans: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        let fresh_users = self.fresh_users();
        if let Some(fresh) = fresh_users {
            let other_ids = OtherIds { learned: Arc::clone(&learned), fresh: Arc::clone(fresh) };
            plans.push(Arc::new(PassExec::new(Arc::new(other_ids), self.other_ids(log)?)));
        }
        let users = fresh_users
            .cloned()
            .map(|fresh| RowsWith { column: "user_id", wanted: Arc::new(move |user| fresh.has_user(user)) });
        for Scan { plan, is_fresh } in
            self.scans(log, log.snapshot().shards().iter().collect(), users.as_ref())?
        {
            let keys = Keys {
                learned: Arc::clone(&learned),
                filters: Arc::clone(&filters),
                shards: sequences.shards as u64,
                since: self.fresh.clone(),
                all_users: fresh_users.is_none(),
                fresh: is_fresh,
                quality: self.quality.clone(),
            };
            plans.push(Arc::new(PassExec::new(Arc::new(keys), plan)));
        }
        self.scatter_into(&plans, &buckets).await?;
        Ok((buckets, learned))
    }

    /// The users whose histories are read; `None` for all users. `delta_tau = "auto"` reads all, because its mean is over the
    /// intervals of all users; so does `min_item_events`, because any user's event may bring an item into the k-core.
    pub(crate) fn fresh_users(&self) -> Option<&Arc<Fresh>> {
        let sequences = &self.config.sequences;
        let needs_all = sequences.delta_tau == DeltaTauSetting::Auto || sequences.min_item_events.is_some();
        self.fresh.as_ref().filter(|_| !needs_all)
    }

    /// The error of a log of which the filters leave nothing. `before_core` counts the events that passed all filters before the
    /// k-core; `None` if no event passed the filters that judge events by themselves.
    pub(crate) fn nothing_left(&self, counts: &Counts, before_core: Option<u64>) -> BuildError {
        let sequences = &self.config.sequences;
        let taken_out = counts.filters.unwrap_or_default();
        let events = counts.events;
        let (setting, last) = match before_core {
            Some(last) => {
                let min = |key: &str, min: Option<u32>| min.map(|min| format!("{key} = {min}"));
                let minima = [
                    min("min_user_events", sequences.min_user_events),
                    min("min_item_events", sequences.min_item_events),
                ];
                let minima: Vec<String> = minima.into_iter().flatten().collect();
                (format!("the k-core of sequences.{}", minima.join(" and sequences.")), last)
            }
            None if taken_out.by_time > 0 => {
                let ends = [("from", sequences.from), ("until", sequences.until)];
                let ends = ends.iter().filter_map(|(key, time)| {
                    time.map(|time| format!("sequences.{key} = {}", time.to_rfc3339()))
                });
                (ends.collect::<Vec<_>>().join(" and "), taken_out.by_time)
            }
            None if taken_out.by_value > 0 => {
                let min = sequences.min_value.unwrap_or_default();
                (format!("sequences.min_value = {min}"), taken_out.by_value)
            }
            None => return BuildError::NoActions { events, actions: sequences.actions.clone() },
        };
        BuildError::NothingLeft { events, last, setting }
    }

    /// Finds the k-core of the histories, and sets it for all that reads them after.
    async fn core(
        &self,
        buckets: &Arc<Buckets>,
        resolution: &Arc<Resolution>,
        filters: &LogFilters,
        last_item: u32,
    ) -> Result<FoundCore, BuildError> {
        let count = buckets.count();
        let pairs = Arc::new(Buckets::new(
            PAIR_BUCKET_SCHEMA.clone(),
            PAIR_BYTES,
            count,
            self.resources.threads,
            self.resources.pairs_bytes(),
        ));
        let rounds = Arc::new(CoreRounds::new(filters, last_item, count));
        let pass = Pairs { rounds: Arc::clone(&rounds) };
        let plan: Arc<dyn ExecutionPlan> =
            Arc::new(PassExec::new(Arc::new(pass), self.histories(buckets, resolution)));
        self.scatter_into(&[plan], &pairs).await?;
        // Items without an event are in no core, and are not taken out.
        let before = rounds.take_out_items(1);
        let plan: Arc<dyn ExecutionPlan> = Arc::new(BucketExec::new(pairs));
        let (mut left, mut number) = (before, 0);
        loop {
            let state = Arc::clone(&rounds);
            self.each_partition(std::slice::from_ref(&plan), move |mut batches| {
                let state = Arc::clone(&state);
                async move {
                    let (mut counts, mut bucket) = (Vec::new(), None);
                    while let Some(batch) = batches.next().await {
                        let batch = batch?;
                        state.user_counts(&mut counts, &batch)?;
                        bucket = bucket.or(bucket_of(&batch));
                    }
                    if let Some(bucket) = bucket {
                        state.take_out_users(bucket, &counts);
                    }
                    Ok(Vec::new())
                }
            })
            .await?;
            let state = Arc::clone(&rounds);
            self.each_partition(std::slice::from_ref(&plan), move |mut batches| {
                let state = Arc::clone(&state);
                async move {
                    while let Some(batch) = batches.next().await {
                        state.item_counts(&batch?)?;
                    }
                    Ok(Vec::new())
                }
            })
            .await?;
            let now = rounds.take_out_items(rounds.item_events());
            // Fewer events: a user or an item went.
            number += u64::from(now.events < left.events || now.items < left.items);
            // Users follow from the items.
            let is_done = now.items == left.items;
            left = now;
            if is_done {
                break;
            }
        }
        resolution.survivors.set_core(rounds.items());
        Ok(FoundCore {
            rounds: number,
            items_out: before.items - left.items,
            events: before.events,
            left: left.events,
        })
    }

    /// Runs plans, and distributes their rows to buckets.
    async fn scatter_into(
        &self,
        plans: &[Arc<dyn ExecutionPlan>],
        into: &Arc<Buckets>,
    ) -> Result<(), BuildError> {
        let into = Arc::clone(into);
        self.each_partition(plans, move |mut batches| {
            let mut scatter = Scatter::new(Arc::clone(&into));
            async move {
                while let Some(batch) = batches.next().await {
                    scatter.push(&batch?)?;
                }
                scatter.finish().map(|()| Vec::new())
            }
        })
        .await?;
        Ok(())
    }

    /// A scan of other users' events whose ids are to be compared: all of them, or, with the note of an earlier build, the events
    /// with ids appended since, in shards near their dates.
    fn other_ids(&self, log: &SnapshotTable) -> Result<Arc<dyn ExecutionPlan>, BuildError> {
        let days = self.config.events.dedup_days;
        let near =
            |shard: &&Shard| self.compared.as_ref().is_none_or(|compared| compared.is_near(shard, days));
        let shards: Vec<&Shard> = log.snapshot().shards().iter().filter(near).collect();
        let groups = balanced(shards.into_iter(), self.resources.threads);
        let only = self.compared.as_ref();
        let only = only.map(|compared| RowsWith { column: "event_id", wanted: compared.ids() });
        Ok(log.plan(&self.context.runtime_env(), &OtherIds::COLUMNS, groups, only.as_ref())?)
    }

    /// Scans of the shards; fresh shards and others are separate scans.
    fn scans(
        &self,
        log: &SnapshotTable,
        shards: Vec<&Shard>,
        only: Option<&RowsWith>,
    ) -> Result<Vec<Scan>, BuildError> {
        let is_fresh = |shard: &&Shard| self.fresh.as_ref().is_some_and(|fresh| fresh.has_shard(shard));
        let (fresh, stale): (Vec<&Shard>, Vec<&Shard>) = shards.into_iter().partition(is_fresh);
        let runtime = self.context.runtime_env();
        let has_limit = self.config.sequences.min_value.is_some()
            || self.quality.as_ref().is_some_and(|quality| quality.min_value.is_some());
        let columns = INPUT_COLUMNS.into_iter().chain(has_limit.then_some(VALUE_COLUMN)).collect::<Vec<_>>();
        let mut plans = Vec::new();
        for (shards, is_fresh) in [(stale, false), (fresh, true)] {
            if !shards.is_empty() {
                let groups = balanced(shards.into_iter(), self.resources.threads);
                let plan = log.plan(&runtime, &columns, groups, only)?;
                plans.push(Scan { plan, is_fresh });
            }
        }
        Ok(plans)
    }

    /// Searches the dates of the suspects for events with copies.
    async fn repeated(&self, log: &SnapshotTable, learned: &Learned) -> Result<RepeatedEvents, BuildError> {
        let mut suspects = learned.suspects.find(self.resources.threads)?;
        suspects.extend(self.compared.iter().flat_map(|compared| &compared.shared));
        let ids: HashSet<u64> = suspects.iter().map(|&suspect| hash_in(suspect)).collect();
        let wanted = move |id| ids.contains(&hash_in(suspect(0, id)));
        let only = RowsWith { column: "event_id", wanted: Arc::new(wanted) };
        let filters = &self.config.sequences.filters();
        let days = self.config.events.dedup_days;
        let all_users = self.fresh_users().is_none();
        let known = ScanFacts { learned, filters, fresh: self.fresh.as_deref(), all_users, days };
        let mut search = Search::new(&suspects, &known);
        for (date, shards) in by_date(log.snapshot().shards(), &suspects) {
            let plans = self.scans(log, shards, Some(&only))?;
            search.look_through(date, plans, &self.context.task_ctx()).await?;
        }
        Ok(search.finish())
    }

    /// The operator that sorts every bucket's events into histories.
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

    /// Stage 2: makes rows of the histories, and gives them to `last`.
    pub(crate) async fn pass<O: Output>(
        &self,
        log: &ReadLog,
        output: &Arc<O>,
        last: Arc<impl PassSpec>,
    ) -> Result<Passed, BuildError> {
        let intervals = Arc::<Mutex<Intervals>>::default();
        let pass = Histories {
            settings: HistorySettings::new(&self.config.sequences, log.delta_tau)?,
            output: Arc::clone(output),
            intervals: Arc::clone(&intervals),
            progress: Arc::new(Mutex::new(Progress::start("write", log.buckets.rows(), "events"))),
        };
        let histories = self.histories(&log.buckets, &log.resolution);
        let rows = Arc::new(PassExec::new(Arc::new(pass), Arc::clone(&histories) as _));
        let batches = self.each_partition(&[Arc::new(PassExec::new(last, rows))], collect).await?;
        let intervals = intervals.lock().unwrap_or_else(PoisonError::into_inner).summary();
        Ok(Passed { batches, copies: histories.copies(), left_out: histories.left_out(), intervals })
    }

    /// Runs every partition of the plans, as many at a time as there are threads, and collects the batches that `consume`
    /// returns for them.
    async fn each_partition<F, R>(
        &self,
        plans: &[Arc<dyn ExecutionPlan>],
        consume: F,
    ) -> Result<Vec<RecordBatch>, BuildError>
    where
        F: Fn(SendableRecordBatchStream) -> R + Clone + Send + 'static,
        R: Future<Output = Result<Vec<RecordBatch>, DataFusionError>> + Send,
    {
        let count = |plan: &Arc<dyn ExecutionPlan>| plan.properties().output_partitioning().partition_count();
        let work: Vec<(Arc<dyn ExecutionPlan>, usize)> =
            plans.iter().flat_map(|plan| (0..count(plan)).map(|p| (Arc::clone(plan), p))).collect();
        let (work, next) = (Arc::new(work), Arc::new(AtomicUsize::new(0)));
        // Dropping the set aborts its tasks.
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

async fn collect(stream: SendableRecordBatchStream) -> Result<Vec<RecordBatch>, DataFusionError> {
    stream.try_collect().await
}
