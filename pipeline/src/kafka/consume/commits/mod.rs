//! Commits micro-batches to the tables, each message once.
//!
//! ```text
//!   batch: of each partition everything in from..to
//!     │ is it what the table waits for?  (offset in `events` == from)  no ─▶ dropped; the poller goes back to the table
//!     │ ids of the dates in question ─▶ which events are new
//!     ▼
//!   shards of `events`, a date each          nothing names them yet
//!   shard of `dead_letters`, of offsets that `dead_letters` does not have
//!     ▼
//!   commit `dead_letters` + txn(to)          killed here: the rows are stored with their offset, so no run adds them again
//!     ▼
//!   commit `events` + txn(to)                now it has happened
//! ```
//!
//! Both commits build on exactly the version that was checked, without a blind retry: after a conflict, all checks are
//! repeated. A consumer that has lost a partition without noticing finds that the table has moved on, and cannot write
//! anything twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BinaryBuilder, Int64Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder,
    UInt32Array,
};
use arrow::compute::take_record_batch;
use schemas::tables::{DEAD_LETTERS, DEAD_LETTERS_SCHEMA, EVENT_DATE, EVENTS, EVENTS_SCHEMA};
use store::commit::{
    Change, CommitMode, NewShard, ShardWriter, Uncommitted, unless_overtaken, until_committed,
};
use store::failpoint;
use store::{Root, Snapshot, TableError};
use tokio::sync::mpsc::Receiver;

use super::assemble::Assembled;
use super::batch::TakenPart;
use super::error::ConsumeError;
use super::identity::TopicIdentity;
use super::known_ids::KnownIds;
use super::metrics::Metrics;
use super::poll::Shared;
use super::reached::{Reached, application, property, source, topic_of};
use super::report::Totals;
use crate::records::{Content, KeySet, StagedRows, date_text, dates_around, dedup_property};

/// Maximum attempts to commit; after these, the run fails because other writers commit too often.
const ATTEMPTS: u32 = 100;

/// The state that the table must have of a partition before the next part may be committed.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// The table's offset; `None` if the table does not know the partition.
    table: Option<i64>,
    /// Where the next part begins.
    from: i64,
}

/// Writes micro-batches to the tables; the last stage of the consumer.
pub(super) struct Store {
    root: Root,
    topic: String,
    dedup_days: u32,
    pub(super) shared: Shared,
    metrics: Arc<Metrics>,
    events: Reached,
    dead_letters: Reached,
    /// The newest snapshots that were read.
    events_now: Option<Snapshot>,
    dead_letters_now: Option<Snapshot>,
    /// Partitions without an entry wait for a `Begin`; their parts are dropped.
    expected: BTreeMap<i32, Expected>,
    /// Partition → the topic that its offsets belong to.
    topics: BTreeMap<i32, TopicIdentity>,
    ids: KnownIds,
    pub(super) totals: Totals,
}

/// New events of one date.
struct DateRows {
    batches: Vec<RecordBatch>,
    keys: Vec<u128>,
}

impl Store {
    pub(super) fn new(
        root: Root,
        topic: &str,
        dedup_days: u32,
        ids_bytes: u64,
        shared: Shared,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            root,
            topic: topic.into(),
            dedup_days,
            shared,
            metrics,
            events: Reached::new(topic),
            dead_letters: Reached::new(topic),
            events_now: None,
            dead_letters_now: None,
            expected: BTreeMap::new(),
            topics: BTreeMap::new(),
            ids: KnownIds::new(dedup_days, ids_bytes),
            totals: Totals::default(),
        }
    }

    /// Commits micro-batches until the channel is closed.
    pub(super) async fn run(&mut self, mut input: Receiver<Assembled>) -> Result<(), ConsumeError> {
        while let Some(output) = input.recv().await {
            match output {
                Assembled::Batch(parts) => self.store(parts).await?,
                Assembled::Begin { partition, stored, from, topic } => {
                    self.events.begin(partition);
                    self.dead_letters.begin(partition);
                    self.expected.insert(partition, Expected { table: stored.events, from });
                    match topic {
                        Some(topic) => _ = self.topics.insert(partition, topic),
                        None => _ = self.topics.remove(&partition),
                    }
                }
                Assembled::End { partition } => {
                    self.expected.remove(&partition);
                    self.events.end(partition);
                    self.dead_letters.end(partition);
                }
                // The poller may have stopped waiting.
                Assembled::Flush(answer) => drop(answer.try_send(())),
            }
        }
        Ok(())
    }

    async fn store(&mut self, mut parts: Vec<TakenPart>) -> Result<(), ConsumeError> {
        let started = Instant::now();
        until_committed(ATTEMPTS, async || {
            let snapshot = latest(&self.root, &mut self.events_now, EVENTS).await?;
            self.events.catch_up(snapshot.as_ref()).await?;
            self.leave_out_overtaken(&mut parts);
            if parts.is_empty() {
                return Ok(Ok(()));
            }
            let (shards, keys) = self.write_events(snapshot.as_ref(), &parts).await?;
            let new = shards.rows();
            let rejected = self.commit_dead_letters(&parts).await?;
            failpoint::reach("consume:between-commits");
            let change = Change {
                table: EVENTS,
                schema: &EVENTS_SCHEMA,
                partition_by: &[EVENT_DATE],
                mode: CommitMode::Append,
                shards: shards.shards(),
                properties: {
                    let mut properties = self.properties(&parts);
                    properties.extend(dedup_property(snapshot.as_ref(), self.dedup_days));
                    properties
                },
                read_version: snapshot.as_ref().map(Snapshot::version),
                transactions: self.transactions(&parts),
            };
            let version = match unless_overtaken(shards.commit_on(snapshot.as_ref(), change).await)? {
                Ok(version) => version,
                Err(overtaken) => {
                    self.metrics.conflicted();
                    return Ok(Err(overtaken));
                }
            };
            self.committed(version, &parts, shards.shards(), keys);
            self.account(version, &parts, new, rejected, started);
            Ok(Ok(()))
        })
        .await
    }

    /// Drops the parts that do not begin at the table's offset: another consumer has the partition, or had it in the meantime.
    fn leave_out_overtaken(&mut self, parts: &mut Vec<TakenPart>) {
        let mut overtaken = BTreeSet::new();
        parts.retain(|part| {
            let Some(expected) = self.expected.get(&part.partition) else { return false };
            let table = self.events.of(part.partition);
            let fits = table == expected.table && part.from == expected.from;
            if !fits {
                tracing::warn!(
                    partition = part.partition,
                    from = part.from,
                    table,
                    "another consumer has written this partition; reading goes on where the table is"
                );
                overtaken.insert(part.partition);
            }
            fits
        });
        for partition in &overtaken {
            self.expected.remove(partition);
        }
        self.shared.lock().overtaken.extend(overtaken);
    }

    /// Writes the new events, one shard a date; returns each shard with its keys.
    async fn write_events(
        &mut self,
        snapshot: Option<&Snapshot>,
        parts: &[TakenPart],
    ) -> Result<(Uncommitted, Vec<(i32, Vec<u128>)>), ConsumeError> {
        let (mut shards, mut keys) = (Uncommitted::new(&self.root, EVENTS), Vec::new());
        for (date, rows) in self.new_events(snapshot, parts).await? {
            let text = date_text(date);
            let mut writer =
                ShardWriter::create(&self.root, EVENTS, "part", &EVENTS_SCHEMA, &[(EVENT_DATE, &text)])?;
            for batch in &rows.batches {
                writer.write(batch)?;
            }
            shards.push(writer.finish()?);
            keys.push((date, rows.keys));
        }
        Ok((shards, keys))
    }

    /// The new events by date, in the order of partitions and offsets.
    async fn new_events(
        &mut self,
        snapshot: Option<&Snapshot>,
        parts: &[TakenPart],
    ) -> Result<BTreeMap<i32, DateRows>, ConsumeError> {
        let build = |source| ConsumeError::Build { table: EVENTS, source };
        let mut by_date: BTreeMap<i32, DateRows> = BTreeMap::new();
        let mut asked: BTreeMap<i32, Vec<u128>> = BTreeMap::new();
        let mut content = Content::default();
        for part in parts {
            let staged = StagedRows(&part.events.rows);
            for (row, &date) in part.events.dates.iter().enumerate().filter(|(row, _)| part.check[*row]) {
                asked.entry(date).or_default().push(staged.key(row, &mut content));
            }
        }
        let stored = self.ids.stored(snapshot, &asked).await?;
        // Date → ids of this batch.
        let mut seen: BTreeMap<i32, KeySet> = BTreeMap::new();
        for part in parts {
            let staged = StagedRows(&part.events.rows);
            let mut rows: BTreeMap<i32, Vec<u32>> = BTreeMap::new();
            for (row, &date) in (0u32..).zip(&part.events.dates) {
                if part.check[row as usize] {
                    let key = staged.key(row as usize, &mut content);
                    let mut near = seen.range(dates_around(date, self.dedup_days));
                    if stored.contains(&(date, key)) || near.any(|(_, ids)| ids.contains(&key)) {
                        continue;
                    }
                    seen.entry(date).or_default().insert(key);
                }
                rows.entry(date).or_default().push(row);
            }
            let source = [self.source(part.partition)];
            for (date, rows) in rows {
                let of_date =
                    by_date.entry(date).or_insert(DateRows { batches: Vec::new(), keys: Vec::new() });
                of_date.keys.extend(rows.iter().map(|&row| staged.key(row as usize, &mut content)));
                let all = rows.len() == part.events.dates.len();
                let taken = match all {
                    true => part.events.rows.clone(),
                    false => take_record_batch(&part.events.rows, &UInt32Array::from(rows)).map_err(build)?,
                };
                let taken = StagedRows(&taken);
                let ids: ArrayRef = Arc::new(taken.event_ids().clone());
                of_date.batches.push(taken.shard_rows_of(ids, &source[0]).map_err(build)?);
            }
        }
        Ok(by_date)
    }

    /// Commits the dead letters that the table does not have; returns their number.
    async fn commit_dead_letters(&mut self, parts: &[TakenPart]) -> Result<u64, ConsumeError> {
        if parts.iter().all(|part| part.dead_letters.is_empty()) {
            return Ok(0);
        }
        until_committed(ATTEMPTS, async || {
            let snapshot = latest(&self.root, &mut self.dead_letters_now, DEAD_LETTERS).await?;
            self.dead_letters.catch_up(snapshot.as_ref()).await?;
            let mut shards = Uncommitted::new(&self.root, DEAD_LETTERS);
            let stored: BTreeMap<i32, i64> = parts
                .iter()
                .filter_map(|part| {
                    Some((part.partition, self.letters_reach(snapshot.as_ref(), part.partition)?))
                })
                .collect();
            let Some(shard) = self.write_dead_letters(parts, &stored)? else { return Ok(Ok(0)) };
            let rows = shard.rows;
            shards.push(shard);
            // Never lower an offset: another consumer may have stored more of a partition that it took over.
            let mut transactions = self.transactions(parts);
            for part in parts {
                if stored.get(&part.partition).is_some_and(|&stored| stored >= part.to) {
                    transactions.remove(&application(&self.topic, part.partition));
                }
            }
            let change = Change {
                table: DEAD_LETTERS,
                schema: &DEAD_LETTERS_SCHEMA,
                partition_by: &[],
                mode: CommitMode::Append,
                shards: shards.shards(),
                properties: self.properties(parts),
                read_version: snapshot.as_ref().map(Snapshot::version),
                transactions,
            };
            match unless_overtaken(shards.commit_on(snapshot.as_ref(), change).await)? {
                Ok(version) => {
                    let reached =
                        |part: &TakenPart| stored.get(&part.partition).map_or(part.to, |s| part.to.max(*s));
                    let offsets = parts.iter().map(|part| (part.partition, reached(part)));
                    self.dead_letters.committed(version, offsets);
                    Ok(Ok(rows))
                }
                Err(overtaken) => {
                    self.metrics.conflicted();
                    Ok(Err(overtaken))
                }
            }
        })
        .await
    }

    /// The offset that `dead_letters` has reached in a partition; `None` if its offset belongs to another topic.
    fn letters_reach(&self, snapshot: Option<&Snapshot>, partition: i32) -> Option<i64> {
        let stored = snapshot.and_then(|snapshot| topic_of(snapshot, &self.topic, partition));
        let other = stored.zip(self.topics.get(&partition)).is_some_and(|(stored, now)| !now.is(&stored));
        self.dead_letters.of(partition).filter(|_| !other)
    }

    fn write_dead_letters(
        &self,
        parts: &[TakenPart],
        stored: &BTreeMap<i32, i64>,
    ) -> Result<Option<NewShard>, ConsumeError> {
        let (mut source, mut position) = (StringBuilder::new(), Int64Builder::new());
        let (mut key, mut value) = (BinaryBuilder::new(), BinaryBuilder::new());
        let (mut reason, mut message) = (StringBuilder::new(), StringBuilder::new());
        let mut rows = 0;
        for part in parts {
            let stored = stored.get(&part.partition).copied().unwrap_or(i64::MIN);
            for letter in part.dead_letters.iter().filter(|letter| letter.offset >= stored) {
                source.append_value(self.source(part.partition));
                position.append_value(letter.offset);
                key.append_option(letter.key.as_deref());
                value.append_value(&letter.value);
                reason.append_value(letter.rejection.reason.code());
                message.append_value(&letter.rejection.message);
                rows += 1;
            }
        }
        if rows == 0 {
            return Ok(None);
        }
        let mut rejected_at = TimestampMillisecondBuilder::new().with_timezone("UTC");
        rejected_at.append_value_n(chrono::Utc::now().timestamp_millis(), rows);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(source.finish()),
            Arc::new(position.finish()),
            Arc::new(key.finish()),
            Arc::new(value.finish()),
            Arc::new(reason.finish()),
            Arc::new(message.finish()),
            Arc::new(rejected_at.finish()),
        ];
        let batch = RecordBatch::try_new(DEAD_LETTERS_SCHEMA.clone(), columns)
            .map_err(|source| ConsumeError::Build { table: DEAD_LETTERS, source })?;
        let mut writer = ShardWriter::create(&self.root, DEAD_LETTERS, "part", &DEAD_LETTERS_SCHEMA, &[])?;
        writer.write(&batch)?;
        Ok(Some(writer.finish()?))
    }

    /// The source of a partition's messages.
    fn source(&self, partition: i32) -> String {
        source(&self.topic, partition, self.topics.get(&partition).and_then(TopicIdentity::generation))
    }

    /// The table properties that record which topics the offsets belong to.
    fn properties(&self, parts: &[TakenPart]) -> BTreeMap<String, String> {
        let of = |part: &TakenPart| {
            let topic = self.topics.get(&part.partition)?;
            Some((property(&self.topic, part.partition), topic.property()))
        };
        parts.iter().filter_map(of).collect()
    }

    fn transactions(&self, parts: &[TakenPart]) -> BTreeMap<String, i64> {
        parts.iter().map(|part| (application(&self.topic, part.partition), part.to)).collect()
    }

    /// Updates offsets, ids and counters after a batch is committed.
    fn committed(
        &mut self,
        version: u64,
        parts: &[TakenPart],
        shards: &[NewShard],
        keys: Vec<(i32, Vec<u128>)>,
    ) {
        self.events.committed(version, parts.iter().map(|part| (part.partition, part.to)));
        let mut feedback = self.shared.lock();
        for part in parts {
            self.expected.insert(part.partition, Expected { table: Some(part.to), from: part.to });
            feedback.committed.insert(part.partition, part.to);
            self.metrics.committed(part.partition, part.to);
        }
        drop(feedback);
        for (shard, (date, keys)) in shards.iter().zip(keys) {
            self.ids.add(date, shard.path.clone(), keys);
        }
        let sent = parts.iter().filter_map(|part| part.first_sent).max();
        if let Some(day) = sent.and_then(|ms| i32::try_from(ms.div_euclid(86_400_000)).ok()) {
            self.ids.forget_before(day.saturating_sub(i32::try_from(self.dedup_days).unwrap_or(i32::MAX)));
        }
    }

    fn account(
        &mut self,
        version: u64,
        parts: &[TakenPart],
        accepted: u64,
        dead_letters_written: u64,
        started: Instant,
    ) {
        let read: u64 = parts.iter().map(TakenPart::read).sum();
        let events: u64 = parts.iter().map(|part| part.events.dates.len() as u64).sum();
        let forgotten: u64 = parts.iter().map(|part| part.forgotten).sum();
        let totals = &mut self.totals;
        totals.messages += read;
        totals.accepted += accepted;
        totals.duplicates += events - accepted;
        totals.dead_letters += read - events - forgotten;
        totals.forgotten += forgotten;
        self.metrics.forgotten(forgotten);
        totals.late += parts.iter().map(|part| part.late).sum::<u64>();
        totals.out_of_order += parts.iter().map(|part| part.out_of_order).sum::<u64>();
        totals.commits += 1;
        totals.version = Some(version);
        for letter in parts.iter().flat_map(|part| &part.dead_letters) {
            *totals.reasons.entry(letter.rejection.reason.code()).or_default() += 1;
            self.metrics.rejected(letter.rejection.reason);
        }
        let sent = parts.iter().filter_map(|part| part.first_sent).min();
        let behind = sent.map(|sent| chrono::Utc::now().timestamp_millis() - sent);
        self.metrics.stored(accepted, events - accepted, started.elapsed(), behind, self.ids.len());
        tracing::info!(
            version,
            messages = read,
            accepted,
            duplicates = events - accepted,
            dead_letters = read - events - forgotten,
            forgotten,
            dead_letters_written,
            partitions = parts.len(),
            seconds = started.elapsed().as_secs_f64(),
            "committed"
        );
    }
}

/// The newest snapshot of a table, read incrementally from the known one if possible.
async fn latest(
    root: &Root,
    known: &mut Option<Snapshot>,
    table: &str,
) -> Result<Option<Snapshot>, TableError> {
    let updated = match known {
        // Fails if the log was cleaned up in the meantime.
        Some(snapshot) => snapshot.updated().await.ok(),
        None => None,
    };
    *known = match updated {
        Some(snapshot) => Some(snapshot),
        None => root.snapshot(table).await?,
    };
    Ok(known.clone())
}

#[cfg(test)]
mod tests;
