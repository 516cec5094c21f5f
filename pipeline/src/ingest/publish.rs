//! The commits at the end of a run.
//!
//! ```text
//!   dead_letters ─▶ items ─▶ events         the order that a second run can complete
//! ```
//!
//! Another writer may commit at any time: a consumer commits every few seconds, and a run takes minutes. This run then
//! adapts its shards to the newest version of the table, and commits on top of it:
//!
//! | table | after another one's commit |
//! |---|---|
//! | `dead_letters` | records that are in the shards it added are left out |
//! | `items` | the table is loaded again, and this run's items are put into it |
//! | `events` | events whose ids are in the shards it added, of dates within the window, are left out: they are duplicates |
//!
//! Memory: the ids of the shards that other writers added, and a second copy of the catalogue.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, SchemaRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use schemas::tables::{DEAD_LETTERS, DEAD_LETTERS_SCHEMA, EVENT_DATE, EVENTS, EVENTS_SCHEMA, ITEMS};
use store::commit::{
    Change, CommitMode, NewShard, ShardWriter, Uncommitted, unless_overtaken, until_committed,
};
use store::{Root, Shard, Snapshot, TableError};

use super::across::Dropped;
use super::error::IngestError;
use super::items::{Items, Touched};
use super::report::Versions;
use crate::privacy::Forgotten;
use crate::records::{KeySet, date_days, dates_around, dead_letter_key, dedup_property, id_key};

/// Maximum attempts to commit a table that other writers keep changing.
const ATTEMPTS: u32 = 100;

/// Written shards, not committed yet.
pub(super) struct Pending {
    pub(super) events: Uncommitted,
    pub(super) items: Uncommitted,
    pub(super) dead_letters: Uncommitted,
}

impl Pending {
    pub(super) fn new(root: &Root) -> Self {
        let none = |table| Uncommitted::new(root, table);
        Self { events: none(EVENTS), items: none(ITEMS), dead_letters: none(DEAD_LETTERS) }
    }
}

/// The snapshots of the tables at the start of the run, or at the latest comparison.
pub(super) struct Before {
    pub(super) events: Option<Snapshot>,
    pub(super) items: Option<Snapshot>,
    pub(super) dead_letters: Option<Snapshot>,
    /// The version of the list of forgotten users.
    pub(super) forgotten: Option<u64>,
}

/// The commits of a run, and the snapshots that they build on.
pub(super) struct Publish<'a> {
    pub(super) root: &'a Root,
    pub(super) before: &'a mut Before,
    pub(super) pending: &'a mut Pending,
    pub(super) items: &'a mut Items,
    /// The items of this run's catalogue.
    pub(super) touched: &'a Touched,
    /// All files, as the tables name them.
    pub(super) sources: &'a HashSet<String>,
    /// The event files by their numbers; empty if no events are read.
    pub(super) event_sources: &'a [String],
    pub(super) dedup_days: u32,
    /// File → number of its events that are duplicates.
    pub(super) duplicates: Vec<u64>,
    /// Staged events dropped for an event with the same id on another date.
    pub(super) dropped: &'a Dropped,
}

fn version(snapshot: Option<&Snapshot>) -> Option<u64> {
    snapshot.map(Snapshot::version)
}

impl Publish<'_> {
    /// Commits the tables in the order that a second run can complete.
    pub(super) async fn commit_all(&mut self) -> Result<Versions, IngestError> {
        self.check_forgotten()?;
        let dead_letters = self.dead_letters().await?;
        let items = self.items().await?;
        let events = match self.event_sources {
            [] => version(self.before.events.as_ref()),
            _ => Some(self.events().await?),
        };
        Ok(Versions { events, items, dead_letters })
    }

    /// Fails if a user was forgotten since the run began: the user's records must not be stored.
    fn check_forgotten(&self) -> Result<(), IngestError> {
        match Forgotten::version(self.root)? == self.before.forgotten {
            true => Ok(()),
            false => Err(IngestError::ForgottenMeanwhile),
        }
    }

    async fn dead_letters(&mut self) -> Result<u64, IngestError> {
        until_committed(ATTEMPTS, async || {
            let shards = &self.pending.dead_letters;
            let change = Change {
                table: DEAD_LETTERS,
                schema: &DEAD_LETTERS_SCHEMA,
                partition_by: &[],
                mode: CommitMode::Append,
                shards: shards.shards(),
                properties: BTreeMap::new(),
                read_version: version(self.before.dead_letters.as_ref()),
                transactions: BTreeMap::new(),
            };
            let committed = unless_overtaken(shards.commit(change).await)?;
            if committed.is_err() {
                self.leave_out_letters().await?;
            }
            Ok(committed)
        })
        .await
    }

    /// Leaves out the records that another run on the same files has stored since the latest comparison.
    async fn leave_out_letters(&mut self) -> Result<(), IngestError> {
        self.check_forgotten()?;
        let now = self.root.snapshot(DEAD_LETTERS).await?;
        let columns = ["source", "position", "key", "value"];
        let rows = |batch: &RecordBatch| -> Vec<Option<u128>> {
            let column = |name| batch.column_by_name(name);
            let sources = column("source").and_then(|column| column.as_string_opt::<i32>());
            let positions = column("position").and_then(|column| column.as_primitive_opt::<Int64Type>());
            let binary = |name| column(name).and_then(|column| column.as_binary_opt::<i32>());
            let (keys, values) = (binary("key"), binary("value"));
            let (Some(sources), Some(positions), Some(values)) = (sources, positions, values) else {
                return vec![None; batch.num_rows()];
            };
            let row = |row: usize| {
                let source = Some(sources.value(row)).filter(|source| self.sources.contains(*source))?;
                let key = keys.filter(|keys| keys.is_valid(row)).map(|keys| keys.value(row));
                Some(dead_letter_key(source, positions.value(row), key, values.value(row)))
            };
            (0..batch.num_rows()).map(row).collect()
        };
        let mut stored = HashSet::new();
        if let Some(now) = &now {
            for shard in added(self.before.dead_letters.as_ref(), now) {
                for batch in now.read_shard(shard, &columns).await? {
                    stored.extend(rows(&batch).into_iter().flatten());
                }
            }
        }
        if !stored.is_empty() {
            let is_new = |batch: &RecordBatch| {
                let new = rows(batch).into_iter().map(|row| row.is_none_or(|row| !stored.contains(&row)));
                BooleanArray::from(new.collect::<Vec<_>>())
            };
            let shards = &mut self.pending.dead_letters;
            for at in (0..shards.shards().len()).rev() {
                leave_out(self.root, DEAD_LETTERS, &DEAD_LETTERS_SCHEMA, shards, at, is_new)?;
            }
        }
        self.before.dead_letters = now;
        Ok(())
    }

    async fn items(&mut self) -> Result<u64, IngestError> {
        until_committed(ATTEMPTS, async || {
            let shards = &self.pending.items;
            if let (true, Some(version)) = (shards.shards().is_empty(), version(self.before.items.as_ref())) {
                return Ok(Ok(version));
            }
            let change = Change {
                table: ITEMS,
                schema: &self.items.schema(),
                partition_by: &[],
                mode: CommitMode::Replace,
                shards: shards.shards(),
                properties: self.before.items.as_ref().map(own_properties).unwrap_or_default(),
                read_version: version(self.before.items.as_ref()),
                transactions: BTreeMap::new(),
            };
            let committed = unless_overtaken(shards.commit(change).await)?;
            if committed.is_err() {
                self.before.items = self.root.snapshot(ITEMS).await?;
                self.items.rebase(self.before.items.as_ref(), self.touched).await?;
                let shard = self.items.write(self.root)?;
                match self.pending.items.shards().is_empty() {
                    true => self.pending.items.push(shard),
                    false => self.pending.items.replace(0, Some(shard)),
                }
            }
            Ok(committed)
        })
        .await
    }

    async fn events(&mut self) -> Result<u64, IngestError> {
        until_committed(ATTEMPTS, async || {
            let shards = &self.pending.events;
            let change = Change {
                table: EVENTS,
                schema: &EVENTS_SCHEMA,
                partition_by: &[EVENT_DATE],
                mode: CommitMode::Append,
                shards: shards.shards(),
                properties: dedup_property(self.before.events.as_ref(), self.dedup_days)
                    .into_iter()
                    .collect(),
                read_version: version(self.before.events.as_ref()),
                transactions: BTreeMap::new(),
            };
            let committed = unless_overtaken(shards.commit(change).await)?;
            if committed.is_err() {
                self.leave_out_events().await?;
            }
            Ok(committed)
        })
        .await
    }

    /// Leaves out the events that others have stored since the latest comparison, and counts them as duplicates.
    async fn leave_out_events(&mut self) -> Result<(), IngestError> {
        self.check_forgotten()?;
        let now = self.root.snapshot(EVENTS).await?;
        let mut stored: BTreeMap<i32, KeySet> = BTreeMap::new();
        if let Some(now) = &now {
            let wanted: BTreeSet<i32> = self.pending.events.shards().iter().filter_map(new_date).collect();
            let dates = added(self.before.events.as_ref(), now).filter_map(|shard| {
                let date = date_days(shard.partition.get(EVENT_DATE)?.as_deref()?)?;
                wanted.range(dates_around(date, self.dedup_days)).next().map(|_| (date, shard))
            });
            for (date, shard) in dates {
                let ids = stored.entry(date).or_default();
                for batch in now.read_shard(shard, &["event_id"]).await? {
                    ids.extend(batch.column(0).as_string::<i32>().iter().flatten().map(id_key));
                }
            }
        }
        let files: HashMap<&str, usize> =
            self.event_sources.iter().enumerate().map(|(n, source)| (source.as_str(), n)).collect();
        let (duplicates, days, dropped) = (&mut self.duplicates, self.dedup_days, self.dropped);
        let mut stand_alone = false;
        let near = |date: i32| stored.range(dates_around(date, days)).map(|(_, ids)| ids);
        let mut at = 0;
        while let Some(shard) = self.pending.events.shards().get(at) {
            let Some(date) = new_date(shard).filter(|&date| near(date).next().is_some()) else {
                at += 1;
                continue;
            };
            let is_new = |batch: &RecordBatch| {
                let column = |name| batch.column_by_name(name).map(|column| column.as_string::<i32>());
                let (Some(ids), Some(sources)) = (column("event_id"), column("source")) else {
                    return BooleanArray::from(vec![true; batch.num_rows()]);
                };
                let new = ids.iter().zip(sources).map(|(id, source)| {
                    let key = id.map(id_key);
                    let is_new = key.is_none_or(|key| !near(date).any(|ids| ids.contains(&key)));
                    if let Some(key) = key.filter(|_| !is_new) {
                        if let Some(&file) = source.and_then(|source| files.get(source)) {
                            duplicates[file] += 1;
                        }
                        // An event that was dropped for this one may lie outside the window of the one now stored instead.
                        let stands = |date: &i32| near(*date).any(|ids| ids.contains(&key));
                        stand_alone |= dropped.get(&key).is_some_and(|dates| !dates.iter().all(stands));
                    }
                    is_new
                });
                BooleanArray::from(new.collect::<Vec<_>>())
            };
            at += usize::from(leave_out(
                self.root,
                EVENTS,
                &EVENTS_SCHEMA,
                &mut self.pending.events,
                at,
                is_new,
            )?);
        }
        if stand_alone {
            return Err(IngestError::DecidedOtherwise);
        }
        self.before.events = now;
        Ok(())
    }
}

/// The shards of `now` that are not in `before`.
fn added<'a>(before: Option<&Snapshot>, now: &'a Snapshot) -> impl Iterator<Item = &'a Shard> {
    let known: HashSet<String> =
        before.into_iter().flat_map(Snapshot::shards).map(|shard| shard.path.clone()).collect();
    now.shards().iter().filter(move |shard| !known.contains(&shard.path))
}

fn new_date(shard: &NewShard) -> Option<i32> {
    date_days(shard.partition.get(EVENT_DATE)?)
}

/// Rewrites the shard at this position with the rows that `is_new` keeps, unless it keeps all; returns whether a shard
/// remains.
fn leave_out(
    root: &Root,
    table: &str,
    schema: &SchemaRef,
    shards: &mut Uncommitted,
    at: usize,
    mut is_new: impl FnMut(&RecordBatch) -> BooleanArray,
) -> Result<bool, IngestError> {
    let shard = shards.shards()[at].clone();
    let fail = |source: Box<dyn std::error::Error + Send + Sync>| TableError::Shard {
        table: table.into(),
        shard: shard.path.clone(),
        source,
    };
    let file = root.open_shard(table, &shard.path)?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
    let partition: Vec<(&str, &str)> =
        shard.partition.iter().map(|(column, value)| (column.as_str(), value.as_str())).collect();
    let mut writer = ShardWriter::create(root, table, "part", schema, &partition)?;
    for batch in reader.map_err(|e| fail(e.into()))? {
        let batch = batch.map_err(|e| fail(e.into()))?;
        let kept = filter_record_batch(&batch, &is_new(&batch)).map_err(|e| fail(e.into()))?;
        writer.write(&kept)?;
    }
    // Dropping the writer deletes its file.
    match writer.rows() {
        rows if rows == shard.rows => Ok(true),
        0 => {
            shards.replace(at, None);
            Ok(false)
        }
        _ => {
            shards.replace(at, Some(writer.finish()?));
            Ok(true)
        }
    }
}

/// The table's properties, to be kept by a commit that replaces its content.
fn own_properties(snapshot: &Snapshot) -> BTreeMap<String, String> {
    snapshot.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}
