//! `pipeline dead-letters replay`: sends rejected records back to a topic, unchanged.
//!
//! ```text
//!   dead_letters ─▶ filter ─▶ sort by (source, position) ─▶ those that `replays` does not have ─▶ topic
//!                                                                                                 │
//!            replays ◀── one commit for up to CHUNK records ◀── acknowledged ◀────────────────────┘
//! ```
//!
//! Records are sent first and recorded afterwards. A run that is killed in between, or that runs beside another one, may send a
//! chunk of records a second time, but never counts an unsent record as sent. Records stay in `dead_letters`, which counts all
//! rejections; a record that is rejected again is stored twice, at two offsets.
//!
//! Memory: the selected records within the budget, a chunk's positions, and [`Replays`].

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use datafusion::common::ScalarValue;
use datafusion::prelude::{Expr, col, lit};
use futures::StreamExt as _;
use schemas::config::{Config, ConfigError};
use schemas::tables::{DEAD_LETTERS, DEAD_LETTERS_SCHEMA, Reason};
use store::Root;
use store::boxed::Boxed;
use terminal::{Interrupt, Progress};

use super::error::ReplayError;
use super::replays::Replays;
use super::report::{ReplayGroup, ReplayReport};
use crate::engine::{Resources, SnapshotTable};
use crate::kafka::consume::topic_in;
use crate::kafka::producer::Producer;

/// Records between two commits of `replays`.
const CHUNK: usize = 100_000;

/// Selects rejected records.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only these reasons; none means any.
    pub reasons: Vec<String>,
    /// Rejected at this time or later, in epoch milliseconds.
    pub since_ms: Option<i64>,
    /// Rejected before this time, in epoch milliseconds.
    pub until_ms: Option<i64>,
    /// From sources that this pattern fits.
    pub source: Option<glob::Pattern>,
    /// Whether to include records of files; without it, only sources like `clicks-3`, which are topics, are selected.
    pub files: bool,
}

/// The records to send, and the target topic.
#[derive(Debug, Clone)]
pub struct ReplayRequest {
    /// Which records.
    pub filter: Filter,
    /// Whether a filter that selects everything is meant.
    pub all: bool,
    /// The topic.
    pub topic: String,
    /// Only count.
    pub dry_run: bool,
    /// Whether to send also records that were sent before.
    pub again: bool,
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.reasons.is_empty() && self.since_ms.is_none() && self.until_ms.is_none() && self.source.is_none()
    }

    /// The part of the filter that the query evaluates.
    fn condition(&self) -> Option<Expr> {
        let time = |ms| lit(ScalarValue::TimestampMillisecond(Some(ms), Some("UTC".into())));
        let reasons = self.reasons.iter().map(|code| lit(code.as_str())).collect::<Vec<_>>();
        let reasons = (!reasons.is_empty()).then(|| col("reason").in_list(reasons, false));
        let since = self.since_ms.map(|ms| col("rejected_at").gt_eq(time(ms)));
        let until = self.until_ms.map(|ms| col("rejected_at").lt(time(ms)));
        [reasons, since, until].into_iter().flatten().reduce(Expr::and)
    }

    fn has_source(&self, source: &str) -> bool {
        (self.files || topic_in(source).is_some())
            && self.source.as_ref().is_none_or(|pattern| pattern.matches(source))
    }
}

/// Sends the records that `request` selects. Unacknowledged records are a `problem` of the report, not an error.
///
/// # Errors
///
/// Any [`ReplayError`].
pub fn replay<'a>(
    config: &'a Config,
    root: &'a Root,
    request: &'a ReplayRequest,
    interrupt: &'a Interrupt,
) -> Boxed<'a, Result<ReplayReport, ReplayError>> {
    Box::pin(send_again(config, root, request, interrupt))
}

async fn send_again(
    config: &Config,
    root: &Root,
    request: &ReplayRequest,
    interrupt: &Interrupt,
) -> Result<ReplayReport, ReplayError> {
    let ReplayRequest { filter, topic, .. } = request;
    if filter.is_empty() && !request.all {
        let problem =
            "or --since, --until or --source says which records are sent again; --all sends all".into();
        return Err(ConfigError::Invalid { key: "--reason".into(), problem }.into());
    }
    let table = root.require(DEAD_LETTERS, "pipeline consume").await?;
    let replays = Replays::read(root, topic).await?;
    let producer = match request.dry_run {
        true => None,
        false => Some(Producer::connect(&config.kafka, topic, interrupt)?),
    };
    let progress = Progress::start("replaying dead letters", 0, "records");
    let mut run = Run {
        request,
        replays,
        producer,
        groups: HashMap::new(),
        counts: Vec::new(),
        chunk: Vec::new(),
        progress,
    };
    // Bound the batches by bytes: records may be large.
    let session = Resources::default().bounded_session()?;
    let rows = SnapshotTable::new(table, &DEAD_LETTERS_SCHEMA);
    let mut selected = session.read_table(Arc::new(rows))?;
    if let Some(condition) = filter.condition() {
        selected = selected.filter(condition)?;
    }
    let order = vec![col("source").sort(true, true), col("position").sort(true, true)];
    let mut batches = selected.sort(order)?.execute_stream().await?;
    let mut problem = None;
    while let Some(batch) = batches.next().await {
        if !run.send(&batch?).await? {
            break;
        }
        if interrupt.requested() {
            problem = Some("stopped on request; repeat the command for the others".to_owned());
            break;
        }
    }
    run.record().await?;
    if let Some(Err(error)) = run.producer.as_ref().map(Producer::finish) {
        problem = Some(format!("{error}; repeat the command for those that failed"));
    }
    Ok(run.report(problem))
}

struct Run<'a> {
    request: &'a ReplayRequest,
    replays: Replays<'a>,
    producer: Option<Producer>,
    /// Reason and source → place in `counts`.
    groups: HashMap<(String, String), usize>,
    counts: Vec<ReplayGroup>,
    /// Group and position of each record sent since the last commit; a message's tag is its index here, from 1.
    chunk: Vec<(usize, i64)>,
    progress: Progress,
}

impl Run<'_> {
    /// Sends a batch's records; false if the producer gave up.
    async fn send(&mut self, batch: &RecordBatch) -> Result<bool, ReplayError> {
        let column = |name: &str| batch.column_by_name(name).cloned().ok_or_else(|| missing(name));
        let (sources, reasons) = (column("source")?, column("reason")?);
        let (positions, keys, values) = (column("position")?, column("key")?, column("value")?);
        let (sources, reasons) = (sources.as_string::<i32>(), reasons.as_string::<i32>());
        let (positions, keys) = (positions.as_primitive::<Int64Type>(), keys.as_binary::<i32>());
        let values = values.as_binary::<i32>();
        let rejected = column("rejected_at")?;
        let rejected = rejected.as_primitive::<TimestampMillisecondType>();
        for row in 0..batch.num_rows() {
            let (source, reason, position) = (sources.value(row), reasons.value(row), positions.value(row));
            if !self.request.filter.has_source(source) {
                continue;
            }
            let group = self.group(reason, source);
            self.counts[group].selected += 1;
            if self.replays.has(source, position, rejected.value(row)) && !self.request.again {
                self.counts[group].sent_before += 1;
                continue;
            }
            self.progress.add(1);
            let Some(producer) = &self.producer else {
                self.counts[group].sent += 1;
                continue;
            };
            self.chunk.push((group, position));
            let key = keys.is_valid(row).then(|| keys.value(row));
            // A tombstone has no value; the table stores an empty one.
            let is_tombstone = reason == Reason::Tombstone.code() && values.value(row).is_empty();
            let value = (!is_tombstone).then(|| values.value(row));
            if producer.send(key, value, self.chunk.len()).is_err() {
                return Ok(false);
            }
            if self.chunk.len() == CHUNK {
                self.record().await?;
            }
        }
        Ok(true)
    }

    fn group(&mut self, reason: &str, source: &str) -> usize {
        // Records are sorted by source, so the group is nearly always the previous one.
        let is_same = |group: &ReplayGroup| group.reason == reason && group.source == source;
        if let Some(last) = self.counts.len().checked_sub(1).filter(|&last| is_same(&self.counts[last])) {
            return last;
        }
        let next = self.counts.len();
        let group = *self.groups.entry((reason.into(), source.into())).or_insert(next);
        if group == next {
            self.counts.push(ReplayGroup {
                reason: reason.into(),
                source: source.into(),
                selected: 0,
                sent_before: 0,
                sent: 0,
            });
        }
        group
    }

    /// Waits for the acknowledgements and records them.
    async fn record(&mut self) -> Result<(), ReplayError> {
        let Some(producer) = &self.producer else { return Ok(()) };
        producer.flush();
        let acknowledged: Vec<(usize, i64)> =
            producer.take_acknowledged().into_iter().map(|tag| self.chunk[tag - 1]).collect();
        self.chunk.clear();
        let sent: Vec<(&str, i64)> = acknowledged
            .iter()
            .map(|&(group, position)| (self.counts[group].source.as_str(), position))
            .collect();
        let fail = |source| ReplayError::Record { sent: sent.len(), source };
        self.replays.add(&sent).await.map_err(fail)?;
        acknowledged.iter().for_each(|&(group, _)| self.counts[group].sent += 1);
        Ok(())
    }

    fn report(mut self, problem: Option<String>) -> ReplayReport {
        self.counts.sort_by(|a, b| (&a.reason, &a.source).cmp(&(&b.reason, &b.source)));
        let sum = |of: fn(&ReplayGroup) -> u64| self.counts.iter().map(of).sum();
        ReplayReport {
            topic: self.request.topic.clone(),
            dry_run: self.request.dry_run,
            selected: sum(|group| group.selected),
            sent_before: sum(|group| group.sent_before),
            sent: sum(|group| group.sent),
            groups: self.counts,
            problem,
        }
    }
}

fn missing(column: &str) -> ReplayError {
    datafusion::error::DataFusionError::Internal(format!("no column {column}")).into()
}
