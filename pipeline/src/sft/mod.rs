//! Builds `sft/<condition>` from `events` and `items`: instruction examples (§3.3), one for each target of role 1, 2 or 3
//! and each value of the condition that its item carries.
//!
//! ```text
//!  stage 1 of `build-sequences` (`pipeline/src/histories/`), once, with one bit more an event: fit to be learned?
//!  for each condition
//!    items ─▶ Carriers: which items carry which values, and how many active ones each value has
//!    buckets ─▶ BucketSort ─▶ Histories ─▶ Examples ─▶ WriteShards ─▶ one commit to sft/<condition>
//! ```
//!
//! An example's history is that of the row of `sequences` that owns its target. Limits of quality apply to role 1;
//! evaluation keeps every target that carries a value. Two builds of the same versions and settings have equal rows,
//! so a table that already describes these versions and settings is not built again.
//!
//! **Memory.** That of `build-sequences`, the catalogue's values of one condition (`carriers.rs`), and a batch of
//! examples in each stream.

mod carriers;
mod counts;
mod error;
mod examples;
mod report;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arrow::array::RecordBatch;
use schemas::config::{Config, ConfigError};
use schemas::hash::hash64;
use schemas::tables::{EVENTS, ITEMS, SFT_SCHEMA, properties, sft_table};
use store::boxed::Boxed;
use store::commit::{Change, CommitMode};
use store::{Root, Snapshot};

use crate::engine::Resources;
use crate::histories::{BuildError, Builder, Quality, ReadLog, delta_tau_ms, described, measured};
use crate::sequences::{WrittenShards, write};

pub(crate) use counts::Matched;
pub use counts::{ByRole, LeftOut, MatchRate};
pub use error::SftError;
pub use report::{ExampleCounts, SftReport, SftTable, ValuePool};

use carriers::Carriers;
use examples::Examples;

/// Table property: hash of the `[conditions]` that decided the examples, together with
/// [`CONFIG_HASH`](properties::CONFIG_HASH), which is that of `[sequences]` as in the table `sequences`.
pub const CONDITIONS_HASH: &str = "conditions_hash";

/// Table property: the settings that [`CONDITIONS_HASH`] is the hash of, as JSON.
pub const CONDITIONS_SETTINGS: &str = "conditions_settings";

/// Table property of a derived condition: how many active items carried it at the newest event's time.
pub const POOL: &str = "pool";

/// Builds the tables of `conditions` from the newest versions of `events` and `items`, with the default resources.
///
/// # Errors
///
/// Those of [`build_with`].
pub async fn build(config: &Config, root: &Root, conditions: &[String]) -> Result<SftReport, SftError> {
    build_with(config, root, conditions, Resources::default()).await
}

/// [`build`] within given resources, which change its duration, never the rows.
///
/// # Errors
///
/// An unknown condition, and a `sequences.sft_share` of 0, are errors of the configuration. If any condition has no
/// value that enough items carry, no table is written.
pub fn build_with<'a>(
    config: &'a Config,
    root: &'a Root,
    conditions: &'a [String],
    resources: Resources,
) -> Boxed<'a, Result<SftReport, SftError>> {
    Box::pin(build_sets(config, root, conditions, resources))
}

async fn build_sets(
    config: &Config,
    root: &Root,
    conditions: &[String],
    resources: Resources,
) -> Result<SftReport, SftError> {
    let started = Instant::now();
    let names = known(config, conditions)?;
    let events = root.require(EVENTS, "pipeline ingest --events PATH").await?;
    let items = root.snapshot_to_write(ITEMS, true).await?;
    let (mut tables, mut to_build) = (Vec::new(), Vec::new());
    for name in names {
        let present = root.snapshot_to_write(&sft_table(name), true).await?;
        let is_described = |present: &Snapshot| {
            let properties = items.as_ref().map(|items| wanted(config, &events, items.version(), name));
            properties.is_some_and(|p| p.iter().all(|(k, v)| present.properties().get(k) == Some(v)))
        };
        match present {
            Some(present) if is_described(&present) && present.is_whole().await => {
                tables.push(SftTable::of(name, &present))
            }
            present => to_build.push((name, present)),
        }
    }
    if !to_build.is_empty() {
        let mut builder = Builder::new(config, root, resources);
        let limits = &config.conditions;
        builder.quality = Some(Quality { actions: limits.actions.clone(), min_value: limits.min_value });
        let log = builder.read(&events, items).await?;
        let build = Build { config, root, events: &events, builder, log };
        // Check all conditions before the first table is written.
        let mut carriers = Vec::new();
        for (name, _) in &to_build {
            carriers.push(build.carriers(name).await?);
        }
        for ((name, present), carriers) in to_build.into_iter().zip(carriers) {
            tables.push(build.table(name, present, carriers).await?);
        }
    }
    Ok(SftReport { tables, seconds: started.elapsed().as_secs_f64() })
}

/// The conditions without repetitions; fails for an unknown one, and if nothing may be learned.
fn known<'a>(config: &Config, conditions: &'a [String]) -> Result<Vec<&'a str>, ConfigError> {
    let mut names: Vec<&str> = Vec::new();
    for name in conditions {
        config.check_condition("--condition", name)?;
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    if config.sequences.sft_share == 0.0 {
        let problem = "is 0, so no event is an instruction-tuning target and there is nothing to train on; set it, \
                       such as --set sequences.sft_share=0.1, and run `pipeline build-sequences` with it too, which \
                       takes these events from pre-training"
            .into();
        return Err(ConfigError::Invalid { key: "sequences.sft_share".into(), problem });
    }
    Ok(names)
}

/// The properties of a condition's table, as far as they are known before the log is read.
fn wanted(
    config: &Config,
    events: &Snapshot,
    items_version: u64,
    condition: &str,
) -> BTreeMap<String, String> {
    let mut properties = described(config, events, items_version, None);
    properties.insert(properties::CONDITION.into(), condition.into());
    properties.insert(CONDITIONS_HASH.into(), conditions_hash(config, condition));
    properties.insert(CONDITIONS_SETTINGS.into(), conditions_settings(config, condition));
    if let Some(age) = config.conditions.derived.get(condition) {
        properties.insert(properties::AGE.into(), age.to_string());
    }
    properties
}

/// Hash of the settings of `[conditions]` that decide the examples of one condition.
pub(crate) fn conditions_hash(config: &Config, condition: &str) -> String {
    settings_hash(&conditions_settings(config, condition))
}

/// Hash of settings as a table keeps them.
pub(crate) fn settings_hash(settings: &str) -> String {
    format!("{:016x}", hash64(settings.as_bytes()))
}

/// The settings of `[conditions]` that decide the examples of one condition.
fn conditions_settings(config: &Config, condition: &str) -> String {
    let mut conditions = config.conditions.clone();
    conditions.derived.retain(|name, _| name == condition);
    let text = serde_json::to_string(&conditions);
    text.unwrap_or_else(|e| unreachable!("every section is a JSON document: {e}"))
}

/// State shared by the tables of one run.
struct Build<'a> {
    config: &'a Config,
    root: &'a Root,
    events: &'a Snapshot,
    builder: Builder<'a>,
    log: ReadLog,
}

impl Build<'_> {
    /// Reads the carriers of the condition; fails if no value has enough items.
    async fn carriers(&self, condition: &str) -> Result<Carriers, SftError> {
        let items = match &self.log.items {
            Some(items) => items.clone(),
            None => self.root.require(ITEMS, "pipeline ingest --items PATH").await?,
        };
        let carriers = Carriers::read(&items, condition, self.config, self.log.newest).await?;
        carriers.check_pools(condition, self.config.conditions.min_pool)?;
        Ok(carriers)
    }

    /// Writes and commits one table.
    async fn table(
        &self,
        condition: &str,
        present: Option<Snapshot>,
        carriers: Carriers,
    ) -> Result<SftTable, SftError> {
        let started = Instant::now();
        let (table, limits) = (sft_table(condition), &self.config.conditions);
        let written = Arc::new(WrittenShards::new(&table, &SFT_SCHEMA, self.root));
        let examples = Arc::new(Examples {
            carriers,
            min_pool: limits.min_pool,
            min_matching_history: limits.min_matching_history,
            counts: Mutex::default(),
        });
        let rows = |batch: &RecordBatch| batch.num_rows() as u64;
        let wrote = write(&self.builder, &self.log, &examples, rows, &written).await?;
        let counts = std::mem::take(&mut *examples.counts.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.targets.sft == 0 {
            let (targets, sft_share) = (counts.events, self.config.sequences.sft_share);
            return Err(SftError::NoTargets { targets, sft_share });
        }
        if wrote.rows != counts.examples.total() {
            return Err(SftError::Sums { table, rows: wrote.rows, counted: counts.examples.total() });
        }

        let mut properties = wanted(self.config, self.events, self.log.items_version(), condition);
        properties.insert(properties::DELTA_TAU_MS.into(), delta_tau_ms(self.log.delta_tau));
        properties.extend(measured(wrote.intervals.as_ref()));
        if limits.derived.contains_key(condition) {
            properties.insert(POOL.into(), examples.carriers.pools[0].to_string());
        }
        let shards = written.take();
        let change = Change {
            table: &table,
            schema: &SFT_SCHEMA,
            partition_by: &[],
            mode: CommitMode::Replace,
            shards: shards.shards(),
            properties,
            read_version: present.as_ref().map(Snapshot::version),
            transactions: BTreeMap::new(),
        };
        let committed = shards.commit(change).await?;
        let stored = self.root.snapshot_at(&table, committed.version).await?;
        let stored = stored.ok_or(BuildError::Vanished { table, version: committed.version })?;
        Ok(SftTable {
            unchanged: false,
            counts: Some(ExampleCounts::of(counts, &examples.carriers, limits.min_pool)),
            events_read: Some(self.log.counts.events),
            duplicates: Some(self.log.counts.duplicates + wrote.copies),
            filtered: Some(self.log.counts.filtered),
            filters: self.log.counts.filters.map(|mut filters| {
                filters.add(&wrote.left_out);
                filters
            }),
            log_filters: self.config.sequences.filters(),
            new_items: Some(self.log.counts.new_items),
            spilled_bytes: Some(self.log.spilled_bytes()),
            seconds_reading: Some(self.log.seconds_reading),
            seconds: Some(started.elapsed().as_secs_f64()),
            ..SftTable::of(condition, &stored)
        })
    }
}
