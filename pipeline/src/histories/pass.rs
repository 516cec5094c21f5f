//! The history pass: turns sorted events into histories, and histories into the rows of a sink.
//!
//! ```text
//!  sorted batches   │ a a a b b │ b b b b b │ b c d d d │          bucket, user, in order of time …
//!                         ▲ open user ────────▶ ▲
//!  close `a`: sessions, request batches, v_t, roles, windows ──▶ Sink ──▶ batches of rows
//! ```
//!
//! A user's events are consecutive, so one user is open at a time, also across the ends of batches. When the next
//! user begins, the open history is complete: the functions of [`schemas::history`] compute its lists and windows, and
//! a [`Sink`] makes rows of them: rows of `sequences` (`pipeline/src/sequences/rows.rs`) or instruction examples
//! (`pipeline/src/sft/`).
//!
//! **Memory.** One input batch, the open user's history (about 90 bytes an event with its lists and windows),
//! and a batch of rows. Nothing grows with the number of users; a user with a million events costs about
//! 100 MB while it is open.
//!
//! **Input.** The pass accepts any partition of [`HISTORY_SCHEMA`](super::HISTORY_SCHEMA) that has all events of its
//! users: one sorted stream, one sorted bucket, or a shuffled partition of a distributed engine. It returns batches of one
//! bucket each, in the order in which the buckets came.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use schemas::config::{ConfigError, Sequences};
use schemas::hash::hash64;
use schemas::history::{
    DeltaTau, Role, Split, Window, first_held_out, held_out_roles, request_batches, session_ordinals,
    visible_lengths, windows, with_sft_share,
};
use terminal::Progress;

use super::columns::{FIT_MARK, FRESH_MARK, HistoryColumns};
use super::error::BuildError;
use super::event::NO_REQUEST;
use super::intervals::{Intervals, Measured};
use crate::engine::{Pass, PassSpec};

/// The settings that determine a user's rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HistorySettings {
    session_gap_ms: i64,
    batch_gap_ms: i64,
    delta_tau: DeltaTau,
    max_len: usize,
    split: Split,
    sft_share: f64,
}

impl HistorySettings {
    /// The configured settings, with the configured or measured `Δτ`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the configured split is incomplete.
    pub fn new(config: &Sequences, delta_tau: DeltaTau) -> std::result::Result<Self, ConfigError> {
        Ok(Self {
            session_gap_ms: config.session_gap.ms,
            batch_gap_ms: config.batch_gap.ms,
            delta_tau,
            max_len: config.max_len,
            split: config.split()?,
            sft_share: config.sft_share,
        })
    }
}

/// The history pass as an operator over [`HISTORY_SCHEMA`](super::HISTORY_SCHEMA).
#[derive(Debug)]
pub(super) struct Histories<O> {
    pub settings: HistorySettings,
    /// The sink of the histories.
    pub output: Arc<O>,
    /// The request intervals of all histories.
    pub intervals: Arc<Mutex<Intervals>>,
    pub progress: Arc<Mutex<Progress>>,
}

/// Makes sinks for complete histories, and collects what they count.
pub(crate) trait Output: std::fmt::Debug + Send + Sync + 'static {
    /// Columns of the rows; the first is the `bucket`.
    fn schema(&self) -> SchemaRef;

    /// For the histories of one partition.
    fn start(self: Arc<Self>) -> Box<dyn Sink>;
}

/// Turns the histories of one partition into rows.
pub(crate) trait Sink: Send {
    /// Takes the next history of the partition; gives batches of rows as they fill, each of one bucket.
    fn history(&mut self, history: History<'_>, done: &mut Vec<RecordBatch>) -> Result<()>;

    /// Gives the rest.
    fn finish(&mut self) -> Result<Option<RecordBatch>>;
}

/// One user's whole history as parallel lists, and the rows that it is cut into.
pub(crate) struct History<'a> {
    pub bucket: u32,
    pub user: &'a str,
    pub item: &'a [u32],
    pub ts: &'a [i64],
    pub session: &'a [u32],
    pub request: &'a [u32],
    pub visible: &'a [u32],
    /// Whether the event is new to a model (`build-sequences --since`).
    pub fresh: &'a [bool],
    /// Whether the event is fit to be learned under a condition (`build-sft`).
    pub fit: &'a [bool],
    pub roles: Vec<Role>,
    pub windows: Vec<Window>,
    /// Whether the user has too few events for the split to hold anything out.
    pub too_few: bool,
}

impl<O: Output> PassSpec for Histories<O> {
    fn name(&self) -> &'static str {
        "Histories"
    }

    fn schema(&self) -> SchemaRef {
        self.output.schema()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(HistoryPass {
            settings: self.settings,
            sink: Arc::clone(&self.output).start(),
            measured: Measured::new(Arc::clone(&self.intervals)),
            open: OpenUser::default(),
            progress: Arc::clone(&self.progress),
        })
    }
}

struct HistoryPass {
    settings: HistorySettings,
    sink: Box<dyn Sink>,
    measured: Measured,
    open: OpenUser,
    progress: Arc<Mutex<Progress>>,
}

/// The history of the current user, whose end has not been reached.
#[derive(Debug, Default)]
struct OpenUser {
    bucket: u32,
    user: String,
    ts: Vec<i64>,
    item: Vec<u32>,
    event: Vec<u64>,
    request: Vec<Option<u64>>,
    request_ts: Vec<Option<i64>>,
    fresh: Vec<bool>,
    fit: Vec<bool>,
}

impl OpenUser {
    fn begin(&mut self, bucket: u32, user: &str) {
        self.bucket = bucket;
        self.user.clear();
        self.user.push_str(user);
        self.ts.clear();
        self.item.clear();
        self.event.clear();
        self.request.clear();
        self.request_ts.clear();
        self.fresh.clear();
        self.fit.clear();
    }

    /// Appends rows, all of the open user.
    fn extend(&mut self, columns: &HistoryColumns<'_>, rows: Range<usize>) {
        self.ts.extend_from_slice(columns.ts(rows.clone()));
        self.item.extend_from_slice(&columns.item[rows.clone()]);
        self.event.extend_from_slice(&columns.event[rows.clone()]);
        let request = |&id: &u64| (id != NO_REQUEST).then_some(id);
        self.request.extend(columns.request[rows.clone()].iter().map(request));
        self.request_ts.extend(columns.request_ts(rows.clone()));
        self.fresh.extend(columns.marks[rows.clone()].iter().map(|marks| marks & FRESH_MARK > 0));
        self.fit.extend(columns.marks[rows].iter().map(|marks| marks & FIT_MARK > 0));
    }
}

impl Pass for HistoryPass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let columns = HistoryColumns::of(batch)?;
        let mut done = Vec::new();
        for (user, rows) in columns.users() {
            if self.open.ts.is_empty() || self.open.user != user {
                self.close_user(&mut done)?;
                self.open.begin(columns.bucket[rows.start], user);
            }
            self.open.extend(&columns, rows);
        }
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).add(batch.num_rows() as u64);
        Ok(done)
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        let mut done = Vec::new();
        self.close_user(&mut done)?;
        done.extend(self.sink.finish()?);
        self.measured.hand_over();
        Ok(done)
    }
}

impl HistoryPass {
    /// Passes the complete history of the open user to the sink.
    fn close_user(&mut self, done: &mut Vec<RecordBatch>) -> Result<()> {
        let OpenUser { bucket, user, ts, item, event, request, request_ts, fresh, fit } = &self.open;
        if ts.is_empty() {
            return Ok(());
        }
        let HistorySettings { session_gap_ms, batch_gap_ms, delta_tau, max_len, split, sft_share } =
            self.settings;
        let session = session_ordinals(ts, session_gap_ms);
        let requests = request_batches(ts, request, batch_gap_ms);
        let visible = visible_lengths(ts, &requests, delta_tau);
        let held_out = held_out_roles(ts, hash64(user.as_bytes()), split);
        let too_few = held_out.is_none();
        let mut roles = held_out.unwrap_or_else(|| vec![Role::Pretrain; ts.len()]);
        with_sft_share(&mut roles, event, sft_share);
        let windows = windows(&visible, max_len, first_held_out(&roles, split))
            .map_err(|source| BuildError::Window { user: user.clone(), source })?;
        self.measured.add_history(&session, request_ts);
        let history = History {
            bucket: *bucket,
            user,
            item,
            ts,
            session: &session,
            request: &requests.ordinal,
            visible: &visible,
            fresh,
            fit,
            roles,
            windows,
            too_few,
        };
        self.sink.history(history, done)?;
        self.open.ts.clear();
        Ok(())
    }
}
