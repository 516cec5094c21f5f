//! Turns histories into rows of `sequences` and `refresh`. The rows of `refresh` are those of `sequences` that own a
//! fresh event; all other positions have the role of context, so earlier targets are not targets again.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use arrow::array::{
    ArrayRef, AsArray, ListArray, StringBuilder, TimestampMillisecondArray, UInt8Array, UInt32Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, UInt32Type};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use schemas::history::{Role, Window};
use schemas::tables::SEQUENCES_SCHEMA;

use crate::histories::{Counts, History, Output, Sink};

/// The columns of `sequences`, after the column `bucket`, which selects the shard.
pub static ROWS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new("bucket", DataType::UInt32, false))];
    fields.extend(SEQUENCES_SCHEMA.fields().iter().cloned());
    Arc::new(Schema::new(fields))
});

/// Positions of a full batch, so that batches have similar sizes for every row length.
const BATCH_POSITIONS: usize = 1 << 16;

/// The windows of histories as rows.
#[derive(Debug)]
pub(super) struct WindowRows {
    /// Whether only rows with fresh events are wanted.
    pub refresh: bool,
    /// Sums of the counters; each partition adds its own at its end.
    pub counts: Mutex<Counts>,
}

impl Output for WindowRows {
    fn schema(&self) -> SchemaRef {
        ROWS_SCHEMA.clone()
    }

    fn start(self: Arc<Self>) -> Box<dyn Sink> {
        Box::new(WindowSink { of: self, counts: Counts::default(), rows: Rows::of_bucket(0) })
    }
}

struct WindowSink {
    of: Arc<WindowRows>,
    counts: Counts,
    rows: Rows,
}

impl Sink for WindowSink {
    fn history(&mut self, mut history: History<'_>, done: &mut Vec<RecordBatch>) -> Result<()> {
        if self.rows.bucket != history.bucket {
            done.extend(self.rows.take()?);
            self.rows = Rows::of_bucket(history.bucket);
        }
        let mut windows = std::mem::take(&mut history.windows);
        if self.of.refresh {
            let fresh = history.fresh;
            windows.retain(|w| w.positions[w.target_from..].iter().any(|&t| fresh[t as usize]));
            let old = history.roles.iter_mut().zip(fresh).filter(|(_, fresh)| !**fresh);
            old.for_each(|(role, _)| *role = Role::Context);
        }
        self.counts.users_too_few += u64::from(history.too_few);
        self.counts.users += u64::from(!windows.is_empty());
        for window in &windows {
            self.counts.row(window, &history.roles, history.visible);
            self.rows.push(&history, window);
            if self.rows.item.len() >= BATCH_POSITIONS {
                done.extend(self.rows.take()?);
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Option<RecordBatch>> {
        let counts = std::mem::take(&mut self.counts);
        self.of.counts.lock().unwrap_or_else(PoisonError::into_inner).add(&counts);
        self.rows.take()
    }
}

/// Positions that rows of `sequences` own.
pub(super) fn owned(rows: &RecordBatch) -> u64 {
    let offsets = rows.column(2).as_list::<i32>().value_offsets();
    let positions = offsets.last().zip(offsets.first()).map_or(0, |(last, first)| (last - first) as u64);
    let from = rows.column(rows.num_columns() - 1).as_primitive::<UInt32Type>();
    positions - from.values().iter().map(|&from| u64::from(from)).sum::<u64>()
}

/// A batch of rows of one bucket. All lists of a row have one length, so they share their offsets.
#[derive(Debug, Default)]
struct Rows {
    bucket: u32,
    user: StringBuilder,
    offsets: Vec<i32>,
    item: Vec<u32>,
    ts: Vec<i64>,
    session: Vec<u32>,
    request: Vec<u32>,
    visible: Vec<u32>,
    role: Vec<u8>,
    target_from: Vec<u32>,
}

impl Rows {
    /// Empty; for rows of `bucket`.
    fn of_bucket(bucket: u32) -> Self {
        Self { bucket, offsets: vec![0], ..Self::default() }
    }

    /// Appends one window of a history.
    fn push(&mut self, history: &History<'_>, window: &Window) {
        self.user.append_value(history.user);
        let owned = self.role.len() + window.target_from;
        for run in window.runs() {
            self.item.extend_from_slice(&history.item[run.clone()]);
            self.ts.extend_from_slice(&history.ts[run.clone()]);
            self.session.extend_from_slice(&history.session[run.clone()]);
            self.request.extend_from_slice(&history.request[run.clone()]);
            self.visible.extend(history.visible[run.clone()].iter().map(|&v| window.visible_len(v)));
            self.role.extend(history.roles[run].iter().map(|&role| role as u8));
        }
        let context = owned - window.target_from..owned;
        self.role[context].fill(Role::Context as u8);
        self.target_from.push(window.target_from as u32);
        // A row has at most `max_len` positions and a batch little more than BATCH_POSITIONS.
        self.offsets.push(self.item.len() as i32);
    }

    /// Takes the rows so far, if any, and continues with an empty batch of the same bucket.
    fn take(&mut self) -> Result<Option<RecordBatch>> {
        if self.target_from.is_empty() {
            return Ok(None);
        }
        let Self { bucket, mut user, offsets, item, ts, session, request, visible, role, target_from } =
            std::mem::replace(self, Self::of_bucket(self.bucket));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        let list = |column: &str, values: ArrayRef| -> Result<ArrayRef> {
            let element = match ROWS_SCHEMA.field_with_name(column)?.data_type() {
                DataType::List(element) => Arc::clone(element),
                other => unreachable!("{column} is a list, not {other}"),
            };
            Ok(Arc::new(ListArray::try_new(element, offsets.clone(), values, None)?))
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from(vec![bucket; target_from.len()])),
            Arc::new(user.finish()),
            list("item_index", Arc::new(UInt32Array::from(item)))?,
            list("ts", Arc::new(TimestampMillisecondArray::from(ts).with_timezone("UTC")))?,
            list("session", Arc::new(UInt32Array::from(session)))?,
            list("request", Arc::new(UInt32Array::from(request)))?,
            list("visible_len", Arc::new(UInt32Array::from(visible)))?,
            list("role", Arc::new(UInt8Array::from(role)))?,
            Arc::new(UInt32Array::from(target_from)),
        ];
        Ok(Some(RecordBatch::try_new(ROWS_SCHEMA.clone(), columns)?))
    }
}
