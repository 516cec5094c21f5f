//! Events from whole columns, for formats that store columns. Rows that the columns cannot decide are left to
//! [`Mapping::event`], one by one; for all others, both give the same event.

use std::ops::Range;

use arrow::array::{
    Array, AsArray, BinaryViewArray, Float64Array, Int64Array, NullBufferBuilder, StringArray, StringBuilder,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::error::ArrowError;

use super::mapping::{
    ACTION, DEFAULT_ACTION, EVENT_ID, ITEM_ID, Mapping, REQUEST_ID, REQUEST_TS, TS, USER_ID, VALUE, is_blank,
};
use super::time::{Form, Forms};
use super::value::Value;

/// The values of a slot in all rows of a block.
pub(crate) enum Vector {
    /// The file has no such column.
    Absent,
    /// Bytes that may be text.
    Text(BinaryViewArray),
    Int(Int64Array),
    Float(Float64Array),
    /// Instants in ticks, so many of them a millisecond.
    Instant(Int64Array, i64),
}

/// The ordinary rows of a block as columns, and the numbers of the others.
pub(crate) struct OrdinaryRows {
    rows: usize,
    /// The rows to be read one by one, in order.
    odd: Vec<usize>,
    pub(super) user_id: Texts,
    pub(super) item_id: Texts,
    pub(super) event_id: Texts,
    pub(super) request_id: Texts,
    pub(super) action: Texts,
    pub(super) ts: Instants,
    pub(super) request_ts: Instants,
    pub(super) value: Numbers,
    forms: TimeForms,
}

/// A column of text.
pub(super) enum Texts {
    /// The same in every row.
    Constant(Option<String>),
    /// Null where there is none.
    Column(StringArray),
}

/// A column of times, in epoch milliseconds.
pub(super) enum Instants {
    None,
    Column(Vec<Option<i64>>),
}

/// A column of numbers.
pub(super) enum Numbers {
    Constant(Option<f64>),
    Column { values: Float64Array, default: Option<f64> },
}

enum TimeForms {
    All(Form),
    Each(Vec<Option<Form>>),
}

impl OrdinaryRows {
    /// The runs of ordinary rows, in order; after each but the last comes an odd row.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let starts = std::iter::once(0).chain(self.odd.iter().map(|odd| odd + 1));
        let ends = self.odd.iter().copied().chain([self.rows]);
        starts.zip(ends).map(|(start, end)| start..end)
    }

    /// Counts how the times of these rows are written.
    pub(crate) fn count_forms(&self, rows: Range<usize>, forms: &mut Forms) {
        match &self.forms {
            TimeForms::All(form) => forms.add_many(*form, rows.len() as u64),
            TimeForms::Each(each) => each[rows].iter().flatten().for_each(|form| forms.add(*form)),
        }
    }
}

impl Texts {
    /// The ids in `vector`, whose bytes are added to `lengths`; rows without one are passed to `missing`. `None` if the
    /// values need a look each.
    fn ids(vector: Vector, lengths: &mut [usize], mut missing: impl FnMut(usize)) -> Option<Self> {
        let texts = match vector {
            Vector::Absent => {
                (0..lengths.len()).for_each(missing);
                return Some(Self::Constant(None));
            }
            Vector::Text(bytes) => compact(&bytes)?,
            Vector::Int(numbers) => cast(&numbers, &DataType::Utf8).ok()?.as_string_opt::<i32>()?.clone(),
            Vector::Float(_) | Vector::Instant(..) => return None,
        };
        for (length, ends) in lengths.iter_mut().zip(texts.value_offsets().windows(2)) {
            *length += (ends[1] - ends[0]) as usize;
        }
        if let Some(nulls) = texts.nulls() {
            (0..lengths.len()).filter(|&row| nulls.is_null(row)).for_each(&mut missing);
        }
        Some(Self::Column(texts))
    }

    /// The same id in all rows.
    fn constant(text: Option<String>, lengths: &mut [usize], missing: impl FnMut(usize)) -> Self {
        match &text {
            Some(text) => lengths.iter_mut().for_each(|length| *length += text.len()),
            None => (0..lengths.len()).for_each(missing),
        }
        Self::Constant(text)
    }

    /// The id in a row.
    pub(super) fn get(&self, row: usize) -> Option<&str> {
        match self {
            Self::Constant(text) => text.as_deref(),
            Self::Column(texts) => texts.is_valid(row).then(|| texts.value(row)),
        }
    }

    /// Appends the ids of `rows` to `builder`.
    pub(super) fn append(&self, rows: Range<usize>, builder: &mut StringBuilder) -> Result<(), ArrowError> {
        match self {
            Self::Constant(Some(text)) => rows.for_each(|_| builder.append_value(text)),
            Self::Constant(None) => builder.append_nulls(rows.len()),
            Self::Column(texts) => builder.append_array(&texts.slice(rows.start, rows.len()))?,
        }
        Ok(())
    }
}

/// The values one after the other, checked together; null where there is no id. `None` if one is not UTF-8, or if they are
/// too long together.
fn compact(bytes: &BinaryViewArray) -> Option<StringArray> {
    // The views of null rows may have any length.
    let length = |row: usize| if bytes.is_valid(row) { bytes.views()[row] as u32 as usize } else { 0 };
    let mut values = Vec::with_capacity((0..bytes.len()).map(length).sum());
    let mut offsets = Vec::with_capacity(bytes.len() + 1);
    offsets.push(0);
    let mut nulls = NullBufferBuilder::new(bytes.len());
    for row in 0..bytes.len() {
        let value = bytes.value(row);
        // Most need no second look; bytes that are no text are refused below.
        let is_ascii = value.first().is_some_and(u8::is_ascii_graphic);
        let is_id = is_ascii || std::str::from_utf8(value).map_or(true, |text| !is_blank(text));
        let is_valid = bytes.is_valid(row) && is_id;
        if is_valid {
            values.extend_from_slice(value);
        }
        nulls.append(is_valid);
        offsets.push(i32::try_from(values.len()).ok()?);
    }
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    StringArray::try_new(offsets, Buffer::from_vec(values), nulls.finish()).ok()
}

impl Instants {
    pub(super) fn get(&self, row: usize) -> Option<i64> {
        match self {
            Self::None => None,
            Self::Column(times) => times[row],
        }
    }
}

impl Numbers {
    pub(super) fn get(&self, row: usize) -> Option<f64> {
        match self {
            Self::Constant(value) => *value,
            Self::Column { values, default } => {
                let value = values.is_valid(row).then(|| values.value(row)).filter(|value| !value.is_nan());
                value.or(*default)
            }
        }
    }
}

impl Mapping {
    /// The events of a block of `rows` rows from the columns of its slots; `None` if the columns, or the configuration,
    /// need a look at each row.
    pub(crate) fn ordinary(
        &self,
        rows: usize,
        vector: impl Fn(usize) -> Option<Vector>,
    ) -> Option<OrdinaryRows> {
        if self.has_time_of_day || self.exploding().is_some() || !self.action_names.is_empty() {
            return None;
        }
        let mut is_odd = vec![false; rows];
        let mut lengths = vec![0; rows];
        let mut ids = |slot: usize, required: bool| {
            Texts::ids(vector(slot)?, &mut lengths, |row| is_odd[row] |= required)
        };
        let user_id = ids(USER_ID, true)?;
        let item_id = ids(ITEM_ID, true)?;
        let event_id = ids(EVENT_ID, false)?;
        let request_id = ids(REQUEST_ID, false)?;
        let action = match vector(ACTION)? {
            Vector::Absent => {
                let default = (!self.action_named).then(|| DEFAULT_ACTION.to_owned());
                Texts::constant(self.action.clone().or(default), &mut lengths, |row| is_odd[row] = true)
            }
            // A row without one may get the constant, or is rejected.
            _ => ids(ACTION, true)?,
        };
        if let Some(forgotten) = &self.forgotten {
            for (row, odd) in is_odd.iter_mut().enumerate() {
                *odd |= user_id.get(row).is_some_and(|user| forgotten.has(user));
            }
        }
        let (ts, forms) = self.times(vector(TS)?, &mut is_odd)?;
        (0..rows).filter(|&row| ts.get(row).is_none()).for_each(|row| is_odd[row] = true);
        let (request_ts, _) = self.times(vector(REQUEST_TS)?, &mut is_odd)?;
        let value = match vector(VALUE)? {
            Vector::Absent => Numbers::Constant(self.value),
            Vector::Float(values) => {
                for (row, odd) in is_odd.iter_mut().enumerate() {
                    *odd |= values.is_valid(row) && values.value(row).is_infinite();
                }
                Numbers::Column { values, default: self.value }
            }
            Vector::Int(numbers) => {
                let is_exact = |number: i64| number.unsigned_abs() < 1 << f64::MANTISSA_DIGITS;
                for (row, odd) in is_odd.iter_mut().enumerate() {
                    *odd |= numbers.is_valid(row) && !is_exact(numbers.value(row));
                }
                let values = numbers.unary(|number| number as f64);
                Numbers::Column { values, default: self.value }
            }
            Vector::Text(_) | Vector::Instant(..) => return None,
        };
        let too_long = |(row, _): &(usize, &bool)| lengths[*row] > self.max_record_bytes;
        let odd = is_odd.iter().enumerate().filter(|row| *row.1 || too_long(row)).map(|(row, _)| row);
        let odd = odd.collect();
        Some(OrdinaryRows {
            rows,
            odd,
            user_id,
            item_id,
            event_id,
            request_id,
            action,
            ts,
            request_ts,
            value,
            forms,
        })
    }

    /// The times in `vector`, and how they are written; marks the rows whose time is refused.
    fn times(&self, vector: Vector, is_odd: &mut [bool]) -> Option<(Instants, TimeForms)> {
        let mut checked = |row: usize, ms: i64| {
            is_odd[row] |= ms < self.earliest || ms >= self.latest;
            ms
        };
        let mut forms = Vec::new();
        let times = match vector {
            Vector::Absent => return Some((Instants::None, TimeForms::All(Form::Typed))),
            Vector::Instant(ticks, per_ms) => {
                let ms = ticks.iter().enumerate().map(|(row, ticks)| {
                    let ms = ticks?.div_euclid(per_ms);
                    Some(checked(row, ms))
                });
                return Some((Instants::Column(ms.collect()), TimeForms::All(Form::Typed)));
            }
            Vector::Int(numbers) => {
                let ms = numbers.iter().enumerate().map(|(row, number)| {
                    let read = number.map(|number| self.times.read(&Value::Int(number), ""));
                    let (ms, form) = match read {
                        Some(Ok(Some(read))) => (Some(checked(row, read.0)), Some(read.1)),
                        Some(Err(_)) => (Some(checked(row, i64::MIN)), None),
                        Some(Ok(None)) | None => (None, None),
                    };
                    forms.push(form);
                    ms
                });
                ms.collect()
            }
            Vector::Text(_) | Vector::Float(_) => return None,
        };
        Some((Instants::Column(times), TimeForms::Each(forms)))
    }
}
