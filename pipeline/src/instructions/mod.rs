//! Computes `instructions` from `events` and `items`: each user's recall instructions (§3.4.1), which are the conditions met
//! most often in a sliding window.
//!
//! ```text
//!   events of the window's dates ─▶ each once ─▶ (user, code, count) ─▶ sort by user ─▶ Rank ─┐
//!                                    items ─▶ Catalogue (item, ts → code) ───────────────▲    ├─▶ merge ─▶ shards
//!   instructions as it was ─▶ users that are not affected, by user ───────────────────────────┘
//! ```
//!
//! **Weights.** An event whose item has `v` values of an attribute counts `1/v` for each; a derived condition
//! counts 1 if the item carries it at the event's own time. A weight is this sum, divided by the number of the user's
//! events in the window. Events are counted in integers, by `v`, so their order cannot change a weight.
//!
//! **Incremental.** A row depends on the user's events in the window, the catalogue and the settings. If the
//! catalogue and the settings are those of the table, and `events` has lost no shard since, a row can only differ if
//! the user has an event in a new shard, a copy of one, or an event in one of the two strips by which the earlier and
//! the present window differ. All other rows are kept, with the new `as_of`. The result equals that of a full
//! computation, row by row. Filters that need whole histories (`at_most_once`, the k-core) make every run a full one.
//!
//! Memory: the catalogue, 16 bytes for each affected user, and the budget of [`Resources`], in which DataFusion's
//! operators sort and count, and beyond which they spill.

mod catalogue;
mod error;
mod log;
mod rank;
mod reach;
mod report;
mod rules;
mod window;
mod write;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use chrono::{DateTime, Utc};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::sorts::sort_preserving_merge::SortPreservingMergeExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use schemas::config::{Config, Span};
use schemas::tables::{EVENTS, INSTRUCTIONS, INSTRUCTIONS_SCHEMA, ITEMS, properties};
use store::boxed::Boxed;
use store::commit::{Change, CommitMode};
use store::{Root, Snapshot};
use terminal::Progress;

use crate::engine::{PassExec, Resources, SnapshotTable};

pub use error::InstructionsError;
pub use report::InstructionsReport;
pub(crate) use rules::Rules;
pub(crate) use window::CountWindow;

use catalogue::Catalogue;
use log::{LogQueries, RepeatedIds, UserHashes, is_affected};
use rank::{RANKED_SCHEMA, RankSpec};
use reach::Reach;
use write::{InstructionTotals, WrittenInstructions};

/// Table property: the end of the window, in epoch milliseconds.
pub const AS_OF_MS: &str = "as_of_ms";
/// Table property: the length of the window in milliseconds.
pub const WINDOW_MS: &str = "window_ms";
/// Table property: hash of the conditions that the items carried.
pub const CATALOGUE_HASH: &str = "catalogue_hash";

/// Computes `instructions` for the window that ends `at` (by default, with the newest event, or before
/// `sequences.until` if that is earlier), from the newest versions
/// of `events` and `items`. If the table describes them already, nothing is written.
///
/// # Errors
///
/// Any [`InstructionsError`]; nothing was committed.
pub fn build<'a>(
    config: &'a Config,
    root: &'a Root,
    at: Option<DateTime<Utc>>,
    resources: Resources,
) -> Boxed<'a, Result<InstructionsReport, InstructionsError>> {
    Box::pin(build_table(config, root, at, resources))
}

async fn build_table(
    config: &Config,
    root: &Root,
    at: Option<DateTime<Utc>>,
    resources: Resources,
) -> Result<InstructionsReport, InstructionsError> {
    let started = Instant::now();
    let rules = Arc::new(Rules::new(config)?);
    let events = root.require(EVENTS, "pipeline ingest --events PATH").await?;
    let items = root.require(ITEMS, "pipeline ingest --items PATH").await?;
    let present = root.snapshot_to_write(INSTRUCTIONS, true).await?;
    let context = resources.bounded_session()?;
    let log = LogQueries::new(&context, &events, &rules);
    let as_of = match at {
        Some(at) => at.timestamp_millis(),
        None => {
            let newest = log.newest().await?;
            let newest = newest.ok_or(InstructionsError::NoEvents { version: events.version() })?;
            rules.filters.newest(newest)
        }
    };
    let mut properties = described(&rules, as_of, events.version(), items.version());
    let report = |version, done: Done| done.report(&rules, as_of, [&events, &items], version, started);
    if let Some(present) = &present
        && properties.iter().all(|(key, value)| present.properties().get(key) == Some(value))
        && present.is_whole().await
    {
        return Ok(report(present.version(), Done { unchanged: true, ..Done::keeping(present) }));
    }

    let window = CountWindow::ending(as_of, rules.window_ms);
    let catalogue = Arc::new(Catalogue::read(&items, &rules, as_of).await?);
    properties.insert(CATALOGUE_HASH.into(), catalogue.fingerprint());
    let repeated = Arc::new(log.repeated(rules.read_window(window)).await?);
    let reach = Reach::find(root, &log, &rules, present.as_ref(), &properties, window, &repeated).await?;
    let mut written = WrittenInstructions::new(root);
    let (mode, done) = match (&present, &reach) {
        // No row changes, so the shards stay.
        (Some(present), Reach::Users(users))
            if users.is_empty() && present.properties().get(AS_OF_MS) == properties.get(AS_OF_MS) =>
        {
            (CommitMode::Append, Done::keeping(present))
        }
        _ => {
            let run = Run { log: &log, context: &context, rules: &rules, window, repeated: &repeated };
            (CommitMode::Replace, run.write(catalogue, present.as_ref(), &reach, &mut written).await?)
        }
    };
    let shards = written.take();
    let change = Change {
        table: INSTRUCTIONS,
        schema: &INSTRUCTIONS_SCHEMA,
        partition_by: &[],
        mode,
        shards: shards.shards(),
        properties,
        read_version: present.as_ref().map(Snapshot::version),
        transactions: BTreeMap::new(),
    };
    let committed = shards.commit(change).await?;
    Ok(report(committed.version, done))
}

/// The table properties that describe the rows, as far as they are known before the catalogue is read.
fn described(rules: &Rules, as_of: i64, events_version: u64, items_version: u64) -> BTreeMap<String, String> {
    [
        (properties::EVENTS_VERSION, events_version.to_string()),
        (properties::ITEMS_VERSION, items_version.to_string()),
        (properties::CONFIG_HASH, rules.hash()),
        (properties::SETTINGS, rules.settings()),
        (AS_OF_MS, as_of.to_string()),
        (WINDOW_MS, rules.window_ms.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// The inputs of the rows.
struct Run<'a> {
    log: &'a LogQueries<'a>,
    context: &'a SessionContext,
    rules: &'a Arc<Rules>,
    window: CountWindow,
    repeated: &'a Arc<RepeatedIds>,
}

impl Run<'_> {
    /// Writes all rows; those of unaffected users are copied from `present`.
    async fn write(
        &self,
        catalogue: Arc<Catalogue>,
        present: Option<&Snapshot>,
        reach: &Reach,
        written: &mut WrittenInstructions,
    ) -> Result<Done, InstructionsError> {
        let affected = match reach {
            Reach::All { .. } => None,
            Reach::Users(users) => Some(users),
        };
        let progress = Arc::new(Mutex::new(Progress::start("count", 0, "events")));
        let counts = self.log.counts(self.window, self.repeated, &catalogue, affected, &progress).await?;
        let computed = Arc::<AtomicU64>::default();
        let rank = RankSpec { catalogue, rules: Arc::clone(self.rules), users: Arc::clone(&computed) };
        let ranked = PassExec::new(Arc::new(rank), counts.create_physical_plan().await?);
        let mut plan: Arc<dyn ExecutionPlan> = Arc::new(ranked);
        if let (Some(users), Some(present)) = (affected, present) {
            plan = merged(plan, kept(self.context, present, users).await?)?;
        }
        let InstructionTotals { users, users_without, by_attribute } =
            written.write(execute_stream(plan, self.context.task_ctx())?, self.window.to).await?;
        let computed = computed.load(Ordering::Relaxed);
        let (full, looked_at) = match reach {
            Reach::All { why } => (Some(why.clone()), self.log.all_users().await?),
            Reach::Users(users) => (None, users.len() as u64),
        };
        Ok(Done {
            unchanged: false,
            full,
            users,
            computed,
            outside: looked_at.saturating_sub(computed),
            without: Some(users_without),
            by_attribute: Some(by_attribute),
        })
    }
}

/// The rows of `present` of unaffected users, sorted by user.
async fn kept(
    context: &SessionContext,
    present: &Snapshot,
    affected: &Arc<UserHashes>,
) -> Result<Arc<dyn ExecutionPlan>, InstructionsError> {
    let table = SnapshotTable::new(present.clone(), &RANKED_SCHEMA);
    context.register_table("present", Arc::new(table))?;
    is_affected(context, Arc::clone(affected));
    let rows = context.sql("SELECT * FROM present WHERE NOT is_affected(user_id) ORDER BY user_id").await?;
    Ok(rows.create_physical_plan().await?)
}

/// Merges two plans that are sorted by user.
fn merged(
    one: Arc<dyn ExecutionPlan>,
    other: Arc<dyn ExecutionPlan>,
) -> Result<Arc<dyn ExecutionPlan>, InstructionsError> {
    let by_user = PhysicalSortExpr::new_default(col("user_id", &RANKED_SCHEMA)?);
    let both = UnionExec::try_new(vec![one, other])?;
    let order = LexOrdering::from([by_user]);
    Ok(Arc::new(SortPreservingMergeExec::new(order, both)))
}

/// The result of a run.
struct Done {
    unchanged: bool,
    full: Option<String>,
    users: u64,
    computed: u64,
    outside: u64,
    without: Option<u64>,
    by_attribute: Option<BTreeMap<String, u64>>,
}

impl Done {
    /// The result of a run that keeps the rows of `present`.
    fn keeping(present: &Snapshot) -> Self {
        Self {
            unchanged: false,
            full: None,
            users: present.rows(),
            computed: 0,
            outside: 0,
            without: None,
            by_attribute: None,
        }
    }

    fn report(
        self,
        rules: &Rules,
        as_of: i64,
        [events, items]: [&Snapshot; 2],
        version: u64,
        started: Instant,
    ) -> InstructionsReport {
        InstructionsReport {
            unchanged: self.unchanged,
            version,
            events_version: events.version(),
            items_version: items.version(),
            config_hash: rules.hash(),
            as_of: DateTime::from_timestamp_millis(as_of).unwrap_or_default(),
            window: Span { ms: rules.window_ms }.to_string(),
            full: self.full,
            users: self.users,
            users_recomputed: self.computed,
            users_kept: self.users.saturating_sub(self.computed),
            users_outside: self.outside,
            users_without: self.without,
            by_attribute: self.by_attribute,
            seconds: started.elapsed().as_secs_f64(),
        }
    }
}
