//! Maps a source's record to the fields of an event.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemas::config::Events;
use schemas::tables::Reason;

use super::explode::Exploding;
use super::time::{Form, Forms, TimeReader, join, shortened};
use crate::privacy::{Forgotten, UserColumn};

use super::value::{Fields, Need, Rejection, Value, Wanted};

/// The action of events whose source has no action and whose configuration gives none.
pub(crate) const DEFAULT_ACTION: &str = "event";

/// An accepted record.
#[derive(Debug, PartialEq)]
pub(crate) struct Event<'a> {
    /// The producer's id, if it gives one.
    pub(crate) event_id: Option<Cow<'a, str>>,
    pub(crate) user_id: Cow<'a, str>,
    pub(crate) item_id: Cow<'a, str>,
    pub(crate) ts: i64,
    pub(crate) request_id: Option<Cow<'a, str>>,
    pub(crate) request_ts: Option<i64>,
    pub(crate) action: Cow<'a, str>,
    pub(crate) value: Option<f64>,
}

/// The configuration `[events]` as slots of a record and rules for its values.
pub(crate) struct Mapping {
    pub(crate) wanted: Vec<Wanted>,
    pub(super) has_time_of_day: bool,
    pub(super) action_named: bool,
    pub(super) action_names: BTreeMap<String, String>,
    pub(super) action: Option<String>,
    pub(super) value: Option<f64>,
    pub(super) times: TimeReader,
    exploding: Option<Exploding>,
    pub(super) earliest: i64,
    pub(super) latest: i64,
    pub(super) max_record_bytes: usize,
    pub(super) forgotten: Option<Forgotten>,
}

pub(super) const USER_ID: usize = 0;
pub(super) const ITEM_ID: usize = 1;
pub(super) const TS: usize = 2;
pub(super) const EVENT_ID: usize = 3;
pub(super) const REQUEST_ID: usize = 4;
pub(super) const REQUEST_TS: usize = 5;
pub(super) const ACTION: usize = 6;
pub(super) const VALUE: usize = 7;
/// Present if the configuration names a column for it.
const TIME_OF_DAY: usize = 8;

impl Mapping {
    pub(crate) fn new(events: &Events) -> Self {
        let columns = &events.columns;
        let required = |key: &str, column: &str| Wanted {
            key: format!("events.columns.{key}"),
            column: column.into(),
            need: Need::Required,
        };
        let optional = |key: &str, column: &Option<String>| Wanted {
            key: format!("events.columns.{key}"),
            column: column.clone().unwrap_or_else(|| key.into()),
            need: if column.is_some() { Need::Named } else { Need::IfPresent },
        };
        // In the order of the slots.
        let mut wanted = vec![
            required("user_id", &columns.user_id),
            required("item_id", &columns.item_id),
            required("ts", &columns.ts),
            optional("event_id", &columns.event_id),
            optional("request_id", &columns.request_id),
            optional("request_ts", &columns.request_ts),
            optional("action", &columns.action),
            optional("value", &columns.value),
        ];
        if columns.time_of_day.is_some() {
            wanted.push(optional("time_of_day", &columns.time_of_day));
        }
        let chosen_slot = wanted.len();
        if let Some(chosen) = &events.explode.chosen {
            wanted.push(Wanted {
                key: "events.explode.chosen.column".into(),
                column: chosen.column.clone(),
                need: Need::Named,
            });
        }
        let exploding = Exploding::new(&events.explode, &wanted, chosen_slot);
        Self {
            wanted,
            exploding,
            has_time_of_day: columns.time_of_day.is_some(),
            action_named: columns.action.is_some(),
            action_names: events.action_names.clone(),
            action: events.constants.get("action").cloned(),
            value: events.constants.get("value").and_then(|v| v.parse().ok()),
            times: TimeReader::new(&events.ts_format, events.ts_zone),
            earliest: events.earliest.timestamp_millis(),
            latest: events.latest.timestamp_millis(),
            max_record_bytes: events.max_record_bytes,
            forgotten: None,
        }
    }

    /// How records are taken apart into events, if they are.
    pub(crate) fn exploding(&self) -> Option<&Exploding> {
        self.exploding.as_ref()
    }

    /// From now on, records of these users are rejected as [`Reason::Forgotten`].
    pub(crate) fn forget(&mut self, forgotten: Option<Forgotten>) {
        self.forgotten = forgotten;
    }

    /// Whether the user of a rejected record is missing or cannot be read.
    pub(crate) fn user_unreadable(&self, record: &impl Fields) -> bool {
        !matches!(identity(record.value(USER_ID), ""), Ok(Some(_)))
    }

    /// Whether a rejected record names a forgotten user.
    pub(crate) fn is_forgotten(&self, column: UserColumn, key: Option<&[u8]>, value: &[u8]) -> bool {
        let user_field = &self.wanted[USER_ID].column;
        self.forgotten.as_ref().is_some_and(|forgotten| forgotten.is_named_in(user_field, column, key, value))
    }

    /// The event in the current record; counts in `forms` how its time is written.
    pub(crate) fn event<'a>(
        &'a self,
        record: &'a impl Fields,
        forms: &mut Forms,
    ) -> Result<Event<'a>, Rejection> {
        let name = |slot: usize| self.wanted[slot].column.as_str();
        let id = |slot| identity(record.value(slot), name(slot));
        let required = |slot: usize| id(slot)?.ok_or_else(|| missing(name(slot)));
        let user_id = required(USER_ID)?;
        if self.forgotten.as_ref().is_some_and(|forgotten| forgotten.has(&user_id)) {
            return Err(Rejection::new(Reason::Forgotten, ""));
        }
        let item_id = required(ITEM_ID)?;
        let mut ts = record.value(TS);
        if self.has_time_of_day {
            ts = join(ts, record.value(TIME_OF_DAY), name(TS))?;
        }
        let (ts, form) = self.time(ts, name(TS))?.ok_or_else(|| missing(name(TS)))?;
        let event_id = id(EVENT_ID)?;
        let request_id = id(REQUEST_ID)?;
        let request_ts = self.time(record.value(REQUEST_TS), name(REQUEST_TS))?.map(|(ms, _)| ms);
        let action = match (record.value(ACTION), &self.action) {
            (Value::Absent, None) if !self.action_named => Cow::Borrowed(DEFAULT_ACTION),
            (value, constant) => match (identity(value, name(ACTION))?, constant) {
                (Some(action), _) => action,
                (None, Some(constant)) => Cow::Borrowed(constant.as_str()),
                (None, None) => return Err(missing(name(ACTION))),
            },
        };
        let action = match self.action_names.get(&*action) {
            Some(name) => Cow::Borrowed(name.as_str()),
            None => action,
        };
        let value = number(record.value(VALUE), name(VALUE))?.or(self.value);
        let event = Event { event_id, user_id, item_id, ts, request_id, request_ts, action, value };
        // The length of a line is limited while it is read; a row of a Parquet file needs a limit of its own.
        let length = event.texts().iter().flatten().map(|text| text.len()).sum::<usize>();
        if length > self.max_record_bytes {
            let message = format!("the record is longer than {} bytes", self.max_record_bytes);
            return Err(Rejection::new(Reason::TooLong, message));
        }
        forms.add(form);
        Ok(event)
    }

    fn time(&self, value: Value<'_>, name: &str) -> Result<Option<(i64, Form)>, Rejection> {
        match self.times.read(&value, name)? {
            Some((ms, _)) if ms < self.earliest || ms >= self.latest => {
                let time = chrono::DateTime::from_timestamp_millis(ms)
                    .map_or_else(|| format!("{ms} ms"), |time| time.to_rfc3339());
                let message = format!(
                    "{name}: {time} is not between events.earliest and events.latest; is events.ts_format right?"
                );
                Err(Rejection::new(Reason::TimeOutOfRange, message))
            }
            time => Ok(time),
        }
    }
}

impl Event<'_> {
    fn texts(&self) -> [Option<&str>; 5] {
        [
            Some(&*self.user_id),
            Some(&*self.item_id),
            Some(&*self.action),
            self.request_id.as_deref(),
            self.event_id.as_deref(),
        ]
    }

    /// Appends all fields but `event_id` to `bytes`; different events give different bytes.
    ///
    /// Ids are derived from this encoding and must stay the same for ever, so it must not change.
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        let text = |bytes: &mut Vec<u8>, text: &str| {
            bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        };
        let optional = |bytes: &mut Vec<u8>, value: Option<[u8; 8]>| match value {
            Some(value) => {
                bytes.push(1);
                bytes.extend_from_slice(&value);
            }
            None => bytes.push(0),
        };
        text(bytes, &self.user_id);
        text(bytes, &self.item_id);
        bytes.extend_from_slice(&self.ts.to_le_bytes());
        match &self.request_id {
            Some(id) => {
                bytes.push(1);
                text(bytes, id);
            }
            None => bytes.push(0),
        }
        optional(bytes, self.request_ts.map(i64::to_le_bytes));
        text(bytes, &self.action);
        // Zero has two representations and is one value.
        optional(bytes, self.value.map(|value| (value + 0.0).to_le_bytes()));
    }
}

pub(crate) fn missing(name: &str) -> Rejection {
    Rejection::new(Reason::MissingField, format!("{name} is missing"))
}

/// Whether a text is nothing but white space. Nearly all ids begin with a visible ASCII character.
pub(super) fn is_blank(text: &str) -> bool {
    !text.as_bytes().first().is_some_and(u8::is_ascii_graphic) && text.trim().is_empty()
}

/// An id as text: text is kept unchanged, a whole number is written in decimal.
pub(crate) fn identity<'a>(value: Value<'a>, name: &str) -> Result<Option<Cow<'a, str>>, Rejection> {
    /// From here on, an `f64` (or an `f32`) cannot represent every whole number.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    const SINGLE_MAX: f32 = 16_777_216.0;
    match value {
        Value::Absent | Value::Null => Ok(None),
        Value::Text(text) if is_blank(&text) => Ok(None),
        Value::Text(text) => Ok(Some(text)),
        Value::Int(number) => Ok(Some(Cow::Owned(number.to_string()))),
        // Data frames store whole numbers with missing values as floats.
        Value::Float(number) if number.is_nan() => Ok(None),
        Value::Float(number) if number.fract() == 0.0 && number.abs() < EXACT_MAX => {
            Ok(Some(Cow::Owned((number as i64).to_string())))
        }
        Value::Single(number) if number.is_nan() => Ok(None),
        Value::Single(number) if number.fract() == 0.0 && number.abs() < SINGLE_MAX => {
            Ok(Some(Cow::Owned((number as i64).to_string())))
        }
        Value::Decimal(digits) if !digits.contains('.') => Ok(Some(digits)),
        Value::NotUtf8 => Err(Rejection::new(Reason::InvalidUtf8, format!("{name} is not UTF-8"))),
        Value::Float(number) => Err(not_whole(name, &number)),
        Value::Single(number) => Err(not_whole(name, &number)),
        Value::Decimal(digits) => Err(not_whole(name, &digits)),
        other => Err(Rejection::new(
            Reason::WrongType,
            format!("{name} is {}, not text or a whole number", other.kind()),
        )),
    }
}

fn not_whole(name: &str, number: &dyn std::fmt::Display) -> Rejection {
    let message = format!("{name}: {number} is not text or a whole number that its type holds exactly");
    Rejection::new(Reason::WrongType, message)
}

/// The nearest `f64`; a whole number must be represented exactly.
fn number(value: Value<'_>, name: &str) -> Result<Option<f64>, Rejection> {
    let wrong =
        |what: &str| Err(Rejection::new(Reason::WrongType, format!("{name}: {what} is not a number")));
    let number = match value {
        Value::Absent | Value::Null => return Ok(None),
        Value::Int(number) if number.unsigned_abs() < 1 << f64::MANTISSA_DIGITS => number as f64,
        Value::Int(number) => return exact(&number.to_string(), name),
        Value::Float(number) => number,
        Value::Single(number) => f64::from(number),
        Value::Decimal(digits) => return exact(&digits, name),
        Value::NotUtf8 => {
            return Err(Rejection::new(Reason::InvalidUtf8, format!("{name} is not UTF-8")));
        }
        Value::Text(text) => match text.trim() {
            "" => return Ok(None),
            // Every whole number of up to 15 digits is exact; longer ones are checked.
            text if text.len() > 15 && text.bytes().all(|b| b.is_ascii_digit() || b == b'-') => {
                return exact(text, name);
            }
            text => match text.parse() {
                Ok(number) => number,
                Err(_) => return wrong(&format!("`{}`", shortened(text))),
            },
        },
        other => return wrong(other.kind()),
    };
    if number.is_nan() {
        Ok(None)
    } else if number.is_infinite() {
        wrong("infinity")
    } else {
        Ok(Some(number))
    }
}

/// The number in `digits`: the nearest `f64` for a fraction; an error for a whole number without an exact `f64`.
fn exact(digits: &str, name: &str) -> Result<Option<f64>, Rejection> {
    let wrong = |problem: &str| {
        let message = format!("{name}: {} {problem}", shortened(digits));
        Err(Rejection::new(Reason::WrongType, message))
    };
    let Ok(number) = digits.parse::<f64>() else { return wrong("is not a number") };
    let (minus, whole) = digits.strip_prefix('-').map_or(("", digits), |whole| ("-", whole));
    let whole = format!("{minus}{}", whole.trim_start_matches('0'));
    if !digits.contains('.') && number != 0.0 && format!("{number:.0}") != whole {
        return wrong("is a whole number that 64-bit floats do not have");
    }
    Ok(Some(number))
}
