//! `pipeline compact`: merges many small shards into few large ones, date by date.
//!
//! ```text
//!   the shards of a date ─▶ those below the target, in groups of about the target ─▶ sort by (source, position)
//!                                                                                      │
//!     one commit: {remove …} the groups' shards, {add …} one shard for each group ◀────┘
//! ```
//!
//! A consumer commits every few seconds, each time with a shard for every date in the batch. Compaction keeps the rows,
//! and the log marks the new shards as rewritten ([`Rewrite`](store::commit::CommitMode::Rewrite)): incremental readers do
//! not see an event again, and the offsets of a consumer stay. Old versions keep their shards until `pipeline vacuum`
//! deletes them.
//!
//! **Order.** Inside a new shard, rows are in the order (`source`, `position`). Shards have no order among each other: a
//! group consists of small shards, whatever their sources.
//!
//! **Commits.** One for each date, so that a conflict with another writer costs the work of one date only. If the other
//! commit has appended, the compaction is committed on top of it; if it has removed the same shards, the new ones are
//! deleted and the date stays as it is.
//!
//! **Memory.** The budget, for each group; the sort keeps the rest in temporary files, so a date may be larger.

mod plan;
mod report;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::prelude::{SessionContext, col};
use futures::StreamExt as _;
use schemas::config::ConfigError;
use schemas::memory::MemorySize;
use schemas::tables::{DEAD_LETTERS, DEAD_LETTERS_SCHEMA, ELEMENT, EVENT_DATE, EVENTS, EVENTS_SCHEMA};
use store::boxed::Boxed;
use store::commit::{Change, CommitError, CommitMode, Committed, NewShard, ShardWriter, Uncommitted};
use store::{Root, Shard, Snapshot, TableError};
use terminal::{Interrupt, Progress};

use crate::engine::{Resources, SnapshotTable};
use plan::{Partition, plan};

pub use report::{CompactReport, CompactedTable};

/// The tables that grow by small shards; all others are written as a whole.
pub const TABLES: [&str; 2] = [EVENTS, DEAD_LETTERS];

/// Default target size of a shard.
pub const TARGET: MemorySize = MemorySize::bytes(128 << 20);

/// Bytes of decoded rows in a batch of the sort, assuming that shards are compressed by a factor of [`PACKED`].
const BATCH_BYTES: u64 = 8 << 20;
const PACKED: u64 = 8;

/// A compaction that failed. Dates committed before stay compacted.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// A table that is not compacted. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Setting(#[from] ConfigError),
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Shards cannot be merged.
    #[error("cannot merge {shards} shards of table `{table}`, the first of them {first}")]
    Merge {
        /// The table.
        table: String,
        /// How many.
        shards: usize,
        /// One of them.
        first: String,
        /// Why.
        source: Box<DataFusionError>,
    },
    /// The log and the shards disagree.
    #[error(
        "the log counts {counted} rows in {shards} shards of table `{table}`, the first of them {first}, which hold \
         {found}; nothing was changed: see `pipeline inspect --verify {table}`"
    )]
    Rows {
        /// The table.
        table: String,
        /// How many.
        shards: usize,
        /// One of them.
        first: String,
        /// By the log.
        counted: u64,
        /// In the files.
        found: u64,
    },
    /// Ctrl-C.
    #[error("stopped on request; {dates} dates or tables were rewritten, the others are as they were")]
    Interrupted {
        /// How many commits were made.
        dates: usize,
    },
}

/// Compacts `tables`, or all existing ones of [`TABLES`].
///
/// # Errors
///
/// Any [`CompactError`]. Dates committed before stay compacted.
pub fn compact<'a>(
    root: &'a Root,
    tables: &'a [String],
    target: MemorySize,
    resources: Resources,
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<CompactReport, CompactError>> {
    Box::pin(compact_tables(root, tables, target, resources, interrupt))
}

async fn compact_tables(
    root: &Root,
    tables: &[String],
    target: MemorySize,
    resources: Resources,
    interrupt: &Interrupt,
) -> Result<CompactReport, CompactError> {
    let named = |name: &&str| tables.is_empty() || tables.iter().any(|table| table == name);
    if let Some(other) = tables.iter().find(|table| !TABLES.contains(&table.as_str())) {
        let problem = format!(
            "`{other}` is not compacted: {} grow by small shards, the other tables are written as a whole",
            TABLES.join(" and ")
        );
        return Err(ConfigError::Invalid { key: "--table".into(), problem }.into());
    }
    // Read all snapshots before the first table is written.
    let mut snapshots = Vec::new();
    for table in TABLES.into_iter().filter(named) {
        if !tables.is_empty() {
            root.require(table, "pipeline ingest").await?;
        }
        snapshots.extend(root.snapshot_to_write(table, true).await?);
    }
    let mut report = CompactReport::default();
    for snapshot in snapshots {
        let run = Run { root, snapshot, target_bytes: target.bytes, resources, interrupt };
        let done = report.tables.iter().map(|table| table.rewritten.len()).sum();
        report.tables.push(run.table(done).await?);
    }
    if report.tables.is_empty() {
        // A root without events is more likely a wrong path than a root with nothing to do.
        root.require(EVENTS, "pipeline ingest").await?;
    }
    Ok(report)
}

/// One table.
struct Run<'a> {
    root: &'a Root,
    snapshot: Snapshot,
    target_bytes: u64,
    resources: Resources,
    interrupt: &'a Interrupt,
}

impl Run<'_> {
    fn schema(&self) -> &'static SchemaRef {
        if self.snapshot.name() == EVENTS { &EVENTS_SCHEMA } else { &DEAD_LETTERS_SCHEMA }
    }

    /// Compacts one table; `done` dates of other tables were rewritten before.
    async fn table(&self, done: usize) -> Result<CompactedTable, CompactError> {
        let mut report = CompactedTable::before(&self.snapshot);
        let plan = plan(self.snapshot.shards(), self.target_bytes);
        let rows = plan.iter().flat_map(Partition::shards).filter_map(|shard| shard.rows).sum();
        let mut progress = (!plan.is_empty())
            .then(|| Progress::start(&format!("compacting {}", report.table), rows, "rows"));
        for partition in &plan {
            let stopped = || CompactError::Interrupted { dates: done + report.rewritten.len() };
            let mut written = Uncommitted::new(self.root, &report.table);
            let merged = self.merge(partition, &mut written, &mut progress).await;
            if !merged? {
                return Err(stopped());
            }
            match self.commit(partition, &written).await {
                Ok(committed) => report.rewrote(partition, written.shards(), committed.version),
                Err(CommitError::Superseded { .. }) => report.lost.push(partition.name().into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(report)
    }

    /// Writes a shard for each group; returns false if a stop was requested.
    async fn merge(
        &self,
        partition: &Partition<'_>,
        written: &mut Uncommitted,
        progress: &mut Option<Progress>,
    ) -> Result<bool, CompactError> {
        for group in &partition.groups {
            let Some(shard) = self.merge_group(partition, group, progress).await? else { return Ok(false) };
            let found = shard.rows;
            written.push(shard);
            let counted: Option<u64> = group.iter().map(|shard| shard.rows).sum();
            if let Some(counted) = counted.filter(|&counted| counted != found) {
                let (shards, first) = (group.len(), group[0].path.clone());
                let table = self.snapshot.name().into();
                return Err(CompactError::Rows { table, shards, first, counted, found });
            }
        }
        Ok(true)
    }

    async fn merge_group(
        &self,
        partition: &Partition<'_>,
        group: &[&Shard],
        progress: &mut Option<Progress>,
    ) -> Result<Option<NewShard>, CompactError> {
        let table = self.snapshot.name();
        let fail = |source: DataFusionError| {
            let (shards, first) = (group.len(), group[0].path.clone());
            CompactError::Merge { table: table.into(), shards, first, source: Box::new(source) }
        };
        let mut writer = ShardWriter::create(self.root, table, "part", self.schema(), &partition.values)?;
        let mut sorted = async {
            let of_group = |shard: &Shard| group.iter().any(|member| member.path == shard.path);
            let rows = SnapshotTable::new(self.snapshot.clone(), self.schema()).only(of_group);
            let mut order = vec!["source", "position"];
            order.extend((table == EVENTS).then_some(ELEMENT));
            let order = order.into_iter().map(|name| col(name).sort(true, true)).collect();
            self.session(group)?.read_table(Arc::new(rows))?.sort(order)?.execute_stream().await
        }
        .await
        .map_err(fail)?;
        while let Some(batch) = sorted.next().await {
            let batch = batch.map_err(fail)?;
            writer.write(&batch)?;
            if let Some(progress) = progress {
                progress.add(batch.num_rows() as u64);
            }
            if self.interrupt.requested() {
                return Ok(None);
            }
        }
        Ok(Some(writer.finish()?))
    }

    /// A session with batches of fewer rows if rows are large.
    fn session(&self, group: &[&Shard]) -> Result<SessionContext, DataFusionError> {
        let session = self.resources.bounded_session()?;
        let bytes: u64 = group.iter().map(|shard| shard.bytes).sum();
        let rows: u64 = group.iter().filter_map(|shard| shard.rows).sum();
        let row_bytes = (bytes / rows.max(1) * PACKED).max(1);
        let config = session.copied_config();
        let batch = ((BATCH_BYTES / row_bytes) as usize).clamp(16, config.batch_size());
        Ok(SessionContext::new_with_config_rt(config.with_batch_size(batch), session.runtime_env()))
    }

    async fn commit(
        &self,
        partition: &Partition<'_>,
        written: &Uncommitted,
    ) -> Result<Committed, CommitError> {
        let replaced: Vec<Shard> = partition.shards().cloned().collect();
        let table = self.snapshot.name();
        let change = Change {
            table,
            schema: self.schema(),
            partition_by: if table == EVENTS { &[EVENT_DATE] } else { &[] },
            mode: CommitMode::Rewrite { replaced: &replaced, target_bytes: self.target_bytes },
            shards: written.shards(),
            properties: BTreeMap::new(),
            read_version: Some(self.snapshot.version()),
            transactions: BTreeMap::new(),
        };
        written.commit(change).await
    }
}
