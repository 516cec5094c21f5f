//! Accepted events as columns, on their way to the table.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Builder, Int32Builder, Int64Array, Int64Builder, RecordBatch,
    StringArray, StringBuilder, TimestampMillisecondBuilder, UInt32Array,
};
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimestampMillisecondType, UInt32Type,
};
use arrow::error::ArrowError;
use schemas::tables::{EVENT_DATE, EVENTS_SCHEMA};

use super::identity::{Content, id_key};
use super::mapping::Event;
use super::ordinary::OrdinaryRows;

const MS_PER_DAY: i64 = 86_400_000;

const EVENT_ID: usize = 0;
const USER_ID: usize = 1;
const ITEM_ID: usize = 2;
const TS: usize = 3;
const REQUEST_ID: usize = 4;
const REQUEST_TS: usize = 5;
const ACTION: usize = 6;
const VALUE: usize = 7;
const POSITION: usize = 8;
// 9: the element.
const FILE: usize = 10;
const PLACE: usize = 11;

/// The columns of `events` without source and date (`event_id` is null if the producer gave none), then the
/// file's number and the event's place in its file: its position, or where records hold
/// several events, the number of those before it.
pub(crate) static STAGED_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let fields = EVENTS_SCHEMA.fields().iter().filter(|f| f.name() != "source" && f.name() != EVENT_DATE);
    let mut fields: Vec<Field> =
        fields.map(|f| f.as_ref().clone().with_nullable(f.is_nullable() || f.name() == "event_id")).collect();
    fields.push(Field::new("file", DataType::UInt32, false));
    fields.push(Field::new("place", DataType::Int64, false));
    Arc::new(Schema::new(fields))
});

/// Events of one file, in order, with the date of each.
pub(crate) struct EventBatch {
    pub(crate) rows: RecordBatch,
    /// Days since the epoch.
    pub(crate) dates: Vec<i32>,
}

impl EventBatch {
    /// The same events, with positions increased by `records`, and places by `elements`, which is the same number where each record
    /// is one event.
    pub(crate) fn moved_by(self, records: u64, elements: u64) -> Result<Self, ArrowError> {
        let mut columns = self.rows.columns().to_vec();
        let moved = |column: usize, by: u64| -> ArrayRef {
            let by = i64::try_from(by).unwrap_or(i64::MAX);
            let before = self.rows.column(column).as_primitive::<Int64Type>();
            Arc::new(Int64Array::from_iter_values(before.values().iter().map(|at| at.saturating_add(by))))
        };
        columns[POSITION] = moved(POSITION, records);
        columns[PLACE] = match Arc::ptr_eq(self.rows.column(POSITION), self.rows.column(PLACE)) {
            true => {
                debug_assert!(self.dates.is_empty() || records == elements, "each record is one event");
                Arc::clone(&columns[POSITION])
            }
            false => moved(PLACE, elements),
        };
        let rows = RecordBatch::try_new(STAGED_SCHEMA.clone(), columns)?;
        Ok(Self { rows, dates: self.dates })
    }
}

/// Where an event comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// The number of its record, or its offset.
    pub(crate) position: i64,
    /// Its place in the record's list.
    pub(crate) element: Option<i32>,
    /// The number of events before it.
    pub(crate) place: i64,
}

impl Place {
    /// The place of a record that is one event.
    pub(crate) fn record(position: i64) -> Self {
        Self { position, element: None, place: position }
    }
}

/// The date of a time, in days.
fn date_at(ts: i64) -> i32 {
    i32::try_from(ts.div_euclid(MS_PER_DAY)).unwrap_or(i32::MAX)
}

/// A batch under construction.
pub(crate) struct Columns {
    event_id: StringBuilder,
    user_id: StringBuilder,
    item_id: StringBuilder,
    ts: TimestampMillisecondBuilder,
    request_id: StringBuilder,
    request_ts: TimestampMillisecondBuilder,
    action: StringBuilder,
    value: Float64Builder,
    position: Int64Builder,
    element: Int32Builder,
    place: Int64Builder,
    dates: Vec<i32>,
}

impl Columns {
    pub(crate) fn new() -> Self {
        Self::with_capacity(0, [0; 5])
    }

    /// Empty builders with capacity for `rows` rows and, in `bytes`, for the texts of the five text columns.
    fn with_capacity(rows: usize, bytes: [usize; 5]) -> Self {
        let [event_id, user_id, item_id, request_id, action] =
            bytes.map(|bytes| StringBuilder::with_capacity(rows, bytes));
        let time = || TimestampMillisecondBuilder::with_capacity(rows).with_timezone("UTC");
        Self {
            event_id,
            user_id,
            item_id,
            ts: time(),
            request_id,
            request_ts: time(),
            action,
            value: Float64Builder::with_capacity(rows),
            position: Int64Builder::with_capacity(rows),
            element: Int32Builder::with_capacity(rows),
            place: Int64Builder::with_capacity(rows),
            dates: Vec::with_capacity(rows),
        }
    }

    /// An empty builder with capacity for a batch like this one, so that columns rarely grow and waste little memory.
    fn like_this(&self) -> Self {
        let texts = [&self.event_id, &self.user_id, &self.item_id, &self.request_id, &self.action];
        let room = |used: usize| used + used / 32;
        Self::with_capacity(room(self.dates.len()), texts.map(|text| room(text.values_slice().len())))
    }

    pub(crate) fn push(&mut self, event: &Event<'_>, from: Place) -> Result<(), ArrowError> {
        self.event_id.append_option(event.event_id.as_deref());
        self.user_id.append_value(&event.user_id);
        self.item_id.append_value(&event.item_id);
        self.ts.append_value(event.ts);
        self.request_id.append_option(event.request_id.as_deref());
        self.request_ts.append_option(event.request_ts);
        self.action.append_value(&event.action);
        self.value.append_option(event.value);
        self.position.append_value(from.position);
        self.element.append_option(from.element);
        if from.element.is_some() {
            self.place.append_value(from.place);
        }
        self.dates.push(date_at(event.ts));
        Ok(())
    }

    /// Appends ordinary rows, the first of which has `position`.
    pub(crate) fn extend(
        &mut self,
        from: &OrdinaryRows,
        rows: Range<usize>,
        position: i64,
    ) -> Result<(), ArrowError> {
        for (texts, builder) in [
            (&from.event_id, &mut self.event_id),
            (&from.user_id, &mut self.user_id),
            (&from.item_id, &mut self.item_id),
            (&from.request_id, &mut self.request_id),
            (&from.action, &mut self.action),
        ] {
            texts.append(rows.clone(), builder)?;
        }
        rows.clone().for_each(|row| self.request_ts.append_option(from.request_ts.get(row)));
        rows.clone().for_each(|row| self.value.append_option(from.value.get(row)));
        for row in rows.clone() {
            let ts = from.ts.get(row).unwrap_or_default();
            self.ts.append_value(ts);
            self.dates.push(date_at(ts));
        }
        let end = position.saturating_add(i64::try_from(rows.len()).unwrap_or(i64::MAX));
        (position..end).for_each(|at| self.position.append_value(at));
        self.element.append_nulls(rows.len());
        Ok(())
    }

    /// The events so far, as those of `file`; the builder is empty afterwards.
    pub(crate) fn finish(&mut self, file: u32) -> Result<EventBatch, ArrowError> {
        let next = self.like_this();
        let mut done = std::mem::replace(self, next);
        let position: ArrayRef = Arc::new(done.position.finish());
        // Unless records hold several events, an event's place is its position.
        let place = match done.place.values_slice().is_empty() {
            true => Arc::clone(&position),
            false => Arc::new(done.place.finish()),
        };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(done.event_id.finish()),
            Arc::new(done.user_id.finish()),
            Arc::new(done.item_id.finish()),
            Arc::new(done.ts.finish()),
            Arc::new(done.request_id.finish()),
            Arc::new(done.request_ts.finish()),
            Arc::new(done.action.finish()),
            Arc::new(done.value.finish()),
            position,
            Arc::new(done.element.finish()),
            Arc::new(UInt32Array::from(vec![file; done.dates.len()])),
            place,
        ];
        let rows = RecordBatch::try_new(STAGED_SCHEMA.clone(), columns)?;
        Ok(EventBatch { rows, dates: done.dates })
    }
}

/// A staged batch, read row by row.
pub(crate) struct StagedRows<'a>(pub(crate) &'a RecordBatch);

impl<'a> StagedRows<'a> {
    fn text(&self, column: usize) -> &'a StringArray {
        self.0.column(column).as_string::<i32>()
    }

    pub(crate) fn event_ids(&self) -> &'a StringArray {
        self.text(EVENT_ID)
    }

    pub(crate) fn items(&self) -> &'a StringArray {
        self.text(ITEM_ID)
    }

    /// In epoch milliseconds.
    pub(crate) fn times(&self) -> &'a [i64] {
        self.0.column(TS).as_primitive::<TimestampMillisecondType>().values()
    }

    /// The places in the file, which are in order.
    pub(crate) fn places(&self) -> &'a [i64] {
        self.0.column(PLACE).as_primitive::<Int64Type>().values()
    }

    pub(crate) fn files(&self) -> &'a [u32] {
        self.0.column(FILE).as_primitive::<UInt32Type>().values()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.num_rows()
    }

    /// The key of the given id, or of the content.
    pub(crate) fn key(&self, row: usize, content: &mut Content) -> u128 {
        match self.event_ids().is_valid(row) {
            true => id_key(self.event_ids().value(row)),
            false => content.key(&self.event(row), 0),
        }
    }

    /// The event without its id.
    pub(crate) fn event(&self, row: usize) -> Event<'a> {
        let text = |column| Cow::Borrowed(self.text(column).value(row));
        let time = |column: usize| self.0.column(column).as_primitive::<TimestampMillisecondType>();
        let values = self.0.column(VALUE).as_primitive::<Float64Type>();
        Event {
            event_id: None,
            user_id: text(USER_ID),
            item_id: text(ITEM_ID),
            ts: time(TS).value(row),
            request_id: self.text(REQUEST_ID).is_valid(row).then(|| text(REQUEST_ID)),
            request_ts: time(REQUEST_TS).is_valid(row).then(|| time(REQUEST_TS).value(row)),
            action: text(ACTION),
            value: values.is_valid(row).then(|| values.value(row)),
        }
    }

    /// The rows in the schema of shards; `sources` are the files' names by number.
    pub(crate) fn shard_rows(
        &self,
        event_ids: ArrayRef,
        sources: &[String],
    ) -> Result<RecordBatch, ArrowError> {
        let source = self.files().iter().map(|&file| sources[file as usize].as_str());
        self.with_source(event_ids, Arc::new(StringArray::from_iter_values(source)))
    }

    /// The rows in the schema of shards, all with one `source`.
    pub(crate) fn shard_rows_of(&self, event_ids: ArrayRef, source: &str) -> Result<RecordBatch, ArrowError> {
        let sources = std::iter::repeat_n(source, self.0.num_rows());
        self.with_source(event_ids, Arc::new(StringArray::from_iter_values(sources)))
    }

    fn with_source(&self, event_ids: ArrayRef, source: ArrayRef) -> Result<RecordBatch, ArrowError> {
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        for field in EVENTS_SCHEMA.fields().iter().filter(|field| field.name() != EVENT_DATE) {
            fields.push(field.clone());
            columns.push(match field.name().as_str() {
                "event_id" => event_ids.clone(),
                "source" => source.clone(),
                name => self.0.column(STAGED_SCHEMA.index_of(name)?).clone(),
            });
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
    }
}
