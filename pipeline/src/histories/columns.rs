//! The columns of histories, which the sort writes and the history pass reads.

use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, RunArray, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::cast::{
    as_int64_array, as_run_array, as_string_array, as_uint8_array, as_uint32_array, as_uint64_array,
};

use super::event::NO_TIME;
use crate::engine::bucket_field;

/// Schema of sorted events, one row an event. The rows of a user are consecutive, in history order and without
/// duplicates; users are in text order.
pub static HISTORY_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        bucket_field(),
        Field::new("user_id", users_type(), false),
        Field::new("ts", DataType::Int64, false),
        Field::new("event", DataType::UInt64, false),
        Field::new("item_index", DataType::UInt32, false),
        Field::new("request", DataType::UInt64, false),
        Field::new("request_ts", DataType::Int64, false),
        Field::new("marks", DataType::UInt8, false),
    ]))
});

/// The bit of `marks` that a fresh event has.
pub(super) const FRESH_MARK: u8 = 1;
/// The bit of `marks` that an event has which is fit to be learned under a condition.
pub(super) const FIT_MARK: u8 = 2;

/// Run-end encoded texts: one run a user.
fn users_type() -> DataType {
    let run_ends = Field::new("run_ends", DataType::Int32, false);
    DataType::RunEndEncoded(Arc::new(run_ends), Arc::new(Field::new("values", DataType::Utf8, true)))
}

/// The columns of a batch of [`HISTORY_SCHEMA`].
pub(super) struct HistoryColumns<'a> {
    pub bucket: &'a [u32],
    users: &'a StringArray,
    runs: &'a RunArray<Int32Type>,
    ts: &'a [i64],
    pub event: &'a [u64],
    pub item: &'a [u32],
    pub request: &'a [u64],
    request_ts: &'a [i64],
    pub marks: &'a [u8],
}

impl<'a> HistoryColumns<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Result<Self> {
        let runs = as_run_array::<Int32Type>(batch.column(1))?;
        Ok(Self {
            bucket: as_uint32_array(batch.column(0))?.values(),
            users: as_string_array(runs.values())?,
            runs,
            ts: as_int64_array(batch.column(2))?.values(),
            event: as_uint64_array(batch.column(3))?.values(),
            item: as_uint32_array(batch.column(4))?.values(),
            request: as_uint64_array(batch.column(5))?.values(),
            request_ts: as_int64_array(batch.column(6))?.values(),
            marks: as_uint8_array(batch.column(7))?.values(),
        })
    }

    /// The users of the batch, each with the rows of that user.
    pub(super) fn users(&self) -> impl Iterator<Item = (&'a str, Range<usize>)> {
        let (users, ends, len) = (self.users, self.runs.run_ends(), self.runs.len());
        let mut start = 0;
        (self.runs.get_start_physical_index()..).map_while(move |run| {
            // A slice of a batch keeps the run ends of the whole batch.
            let end = (*ends.values().get(run)? as usize - ends.offset()).min(len);
            (start < len).then(|| (users.value(run), std::mem::replace(&mut start, end)..end))
        })
    }

    pub(super) fn ts(&self, rows: Range<usize>) -> &'a [i64] {
        &self.ts[rows]
    }

    pub(super) fn request_ts(&self, rows: Range<usize>) -> impl Iterator<Item = Option<i64>> {
        self.request_ts[rows].iter().map(|&ts| (ts != NO_TIME).then_some(ts))
    }
}
