//! The columns of scanned events, and of packed events on their way to a bucket.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, Float64Array, Int32Array, Int64Array, StringViewArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use datafusion::common::cast::{
    as_float64_array, as_int32_array, as_int64_array, as_primitive_array, as_string_view_array,
};
use datafusion::common::{Result, exec_err};
use schemas::tables::{ELEMENT, ELEMENT_BITS, EVENTS_SCHEMA};

use super::event::PackedEvent;
use crate::engine::{bucket_schema, scattered_schema};
use crate::records::date_of;

/// The columns that the keys are made from, in the order of [`ScannedEvents`].
pub(super) const INPUT_COLUMNS: [&str; 10] = [
    "event_id",
    "source",
    "position",
    "ts",
    "user_id",
    "item_id",
    "action",
    "request_id",
    "request_ts",
    ELEMENT,
];

/// The column after [`INPUT_COLUMNS`], read only if a smallest value is configured.
pub(super) const VALUE_COLUMN: &str = "value";

/// The schema of a scan of `events`: texts are views into the pages, not copies.
pub(crate) fn scan_schema() -> Schema {
    let view = |field: &FieldRef| match field.data_type() {
        DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
        _ => Arc::clone(field),
    };
    Schema::new(EVENTS_SCHEMA.fields().iter().map(view).collect::<Vec<_>>())
}

/// A batch with the [`INPUT_COLUMNS`], in their order, and perhaps the [`VALUE_COLUMN`].
pub(super) struct ScannedEvents<'a> {
    pub event: &'a StringViewArray,
    pub source: &'a StringViewArray,
    position: &'a Int64Array,
    element: &'a Int32Array,
    pub ts: &'a TimestampMillisecondArray,
    pub user: &'a StringViewArray,
    pub item: &'a StringViewArray,
    pub action: &'a StringViewArray,
    pub request: &'a StringViewArray,
    pub request_ts: &'a TimestampMillisecondArray,
    pub value: Option<&'a Float64Array>,
}

impl<'a> ScannedEvents<'a> {
    pub(super) fn of(batch: &'a RecordBatch) -> Result<Self> {
        Ok(Self {
            event: as_string_view_array(batch.column(0))?,
            source: as_string_view_array(batch.column(1))?,
            position: as_int64_array(batch.column(2))?,
            ts: as_primitive_array::<TimestampMillisecondType>(batch.column(3))?,
            user: as_string_view_array(batch.column(4))?,
            item: as_string_view_array(batch.column(5))?,
            action: as_string_view_array(batch.column(6))?,
            request: as_string_view_array(batch.column(7))?,
            request_ts: as_primitive_array::<TimestampMillisecondType>(batch.column(8))?,
            element: as_int32_array(batch.column(9))?,
            value: batch.columns().get(10).map(|column| as_float64_array(column)).transpose()?,
        })
    }

    /// The event's place in its source: the position, and behind it the element of the record.
    ///
    /// # Errors
    ///
    /// The two do not fit into 64 bits.
    pub(super) fn place(&self, row: usize) -> Result<i64> {
        let position = self.position.value(row);
        let element = if self.element.is_valid(row) { i64::from(self.element.value(row)) } else { 0 };
        let fits = (position << ELEMENT_BITS) >> ELEMENT_BITS == position && element >> ELEMENT_BITS == 0;
        match fits {
            true => Ok(position << ELEMENT_BITS | element),
            false => exec_err!("position {position} with element {element} is out of range"),
        }
    }

    /// The event's date in days, computed from its time, which is faster than reading the column.
    pub(super) fn date(&self, row: usize) -> i32 {
        date_of(self.ts.value(row))
    }

    /// The event's value; `None` if it has none or the column was not read.
    pub(super) fn value(&self, row: usize) -> Option<f64> {
        self.value.filter(|values| values.is_valid(row)).map(|values| values.value(row))
    }

    /// Whether a row has the source of the row before. It nearly always has, and then the two views are mostly equal.
    pub(super) fn same_source(&self, row: usize) -> bool {
        let views = self.source.views();
        row > 0 && (views[row] == views[row - 1] || self.source.value(row) == self.source.value(row - 1))
    }
}

/// A keyed event on its way to a bucket: the user and the [`PackedEvent`] as bytes, with codes for `source` and `item`.
pub(super) static KEYED_SCHEMA: LazyLock<SchemaRef> =
    LazyLock::new(|| scattered_schema("user_id", "event", PackedEvent::BYTES));

/// A keyed event in its bucket.
pub(super) static BUCKET_SCHEMA: LazyLock<SchemaRef> =
    LazyLock::new(|| bucket_schema("user_id", "event", PackedEvent::BYTES));
