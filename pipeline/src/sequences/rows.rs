//! Rows of `sequences` in the making.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, ListArray, StringBuilder, TimestampMillisecondArray, UInt8Array, UInt32Array};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use schemas::history::{Role, Window};
use schemas::tables::SEQUENCES_SCHEMA;

/// The rows of `sequences` behind the `bucket` whose shard they belong to.
pub static ROWS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields: Vec<FieldRef> = vec![Arc::new(Field::new("bucket", DataType::UInt32, false))];
    fields.extend(SEQUENCES_SCHEMA.fields().iter().cloned());
    Arc::new(Schema::new(fields))
});

/// A batch is given out at this many positions, so that it stays about this size whatever the row length.
const BATCH_POSITIONS: usize = 1 << 16;

/// One user's whole history as parallel lists.
pub(super) struct History<'a> {
    pub user: &'a str,
    pub item: &'a [u32],
    pub ts: &'a [i64],
    pub session: &'a [u32],
    pub request: &'a [u32],
    pub visible: &'a [u32],
    pub roles: &'a [Role],
}

/// A batch of rows of one bucket. All lists of a row have one length, so they share their offsets.
#[derive(Debug, Default)]
pub(super) struct Rows {
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
    /// No rows yet, all to come of `bucket`.
    pub(super) fn of_bucket(bucket: u32) -> Self {
        Self { bucket, offsets: vec![0], ..Self::default() }
    }

    pub(super) fn bucket(&self) -> u32 {
        self.bucket
    }

    pub(super) fn is_full(&self) -> bool {
        self.item.len() >= BATCH_POSITIONS
    }

    /// Appends one window of a history.
    pub(super) fn push(&mut self, history: &History<'_>, window: &Window) {
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

    /// The rows so far, or nothing; starts afresh in the same bucket.
    pub(super) fn take(&mut self) -> Result<Option<RecordBatch>> {
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
