//! The values of a record of any format, the wanted columns, and the reason for a rejection.

use std::borrow::Cow;

use chrono::{DateTime, SecondsFormat};
use schemas::tables::Reason;

/// A value as it was read from a source.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    /// The source has no such column, or the JSON object no such key.
    Absent,
    /// No value.
    Null,
    Text(Cow<'a, str>),
    Int(i64),
    Float(f64),
    /// A number of 32 bits or fewer; whole numbers are exact up to 2^24 only.
    Single(f32),
    /// All digits of a decimal, without trailing zeros in its fraction.
    Decimal(Cow<'a, str>),
    Bool(bool),
    /// An instant in epoch milliseconds, from a typed column.
    Instant(i64),
    /// An instant from a typed column that does not fit into 64-bit milliseconds.
    OutOfRange,
    List(Vec<Value<'a>>),
    /// Text that is not UTF-8.
    NotUtf8,
    /// Any other value; the text describes it.
    Other(&'static str),
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl<'a> Value<'a> {
    /// An element of a list as text; `None` for a missing one.
    ///
    /// # Errors
    ///
    /// The value that describes the list, if this is nothing to write as text.
    pub(crate) fn into_text(self) -> Result<Option<Cow<'a, str>>, Value<'static>> {
        match self {
            Self::Absent | Self::Null => Ok(None),
            Self::Text(text) | Self::Decimal(text) => Ok(Some(text)),
            Self::Int(number) => Ok(Some(Cow::Owned(number.to_string()))),
            Self::Bool(value) => Ok(Some(Cow::Owned(value.to_string()))),
            // Data frames write a missing value as NaN.
            Self::Float(number) if number.is_nan() => Ok(None),
            Self::Single(number) if number.is_nan() => Ok(None),
            Self::Float(number) => Ok(Some(Cow::Owned(format!("{number:?}")))),
            Self::Single(number) => Ok(Some(Cow::Owned(format!("{number:?}")))),
            Self::NotUtf8 => Err(Value::NotUtf8),
            Self::Instant(_) | Self::OutOfRange => Err(Value::Other("a list of times")),
            Self::List(_) | Self::Other(_) => Err(Value::Other("a list of something else than text")),
        }
    }
}

impl Value<'_> {
    /// The same value, without a copy of its text.
    pub(crate) fn borrowed(&self) -> Value<'_> {
        match self {
            Self::Text(text) => Value::Text(Cow::Borrowed(text)),
            Self::Decimal(text) => Value::Decimal(Cow::Borrowed(text)),
            Self::List(elements) => Value::List(elements.iter().map(Value::borrowed).collect()),
            other => other.clone(),
        }
    }

    /// The same value with its own text.
    pub(crate) fn into_owned(self) -> Value<'static> {
        match self {
            Self::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
            Self::Decimal(text) => Value::Decimal(Cow::Owned(text.into_owned())),
            Self::List(elements) => Value::List(elements.into_iter().map(Value::into_owned).collect()),
            Self::Absent => Value::Absent,
            Self::Null => Value::Null,
            Self::Int(number) => Value::Int(number),
            Self::Float(number) => Value::Float(number),
            Self::Single(number) => Value::Single(number),
            Self::Bool(value) => Value::Bool(value),
            Self::Instant(ms) => Value::Instant(ms),
            Self::OutOfRange => Value::OutOfRange,
            Self::NotUtf8 => Value::NotUtf8,
            Self::Other(kind) => Value::Other(kind),
        }
    }

    /// The value as people read it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Text(text) | Self::Decimal(text) => text.to_string(),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Single(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Instant(ms) => DateTime::from_timestamp_millis(*ms)
                .map_or_else(|| format!("{ms} ms"), |time| time.to_rfc3339_opts(SecondsFormat::AutoSi, true)),
            Self::List(elements) => {
                let elements: Vec<String> = elements.iter().take(8).map(Self::shown).collect();
                format!("[{}]", elements.join(", "))
            }
            other => other.kind().to_owned(),
        }
    }

    /// The kind of the value, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Absent | Self::Null => "nothing",
            Self::Text(_) => "text",
            Self::Int(_) => "a whole number",
            Self::Float(_) | Self::Single(_) | Self::Decimal(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::Instant(_) | Self::OutOfRange => "a time",
            Self::List(_) => "a list",
            Self::NotUtf8 => "text that is not UTF-8",
            Self::Other(kind) => kind,
        }
    }
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Rejection {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Whether a file without a wanted column is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A missing column is an error.
    Required,
    /// The configuration names the column.
    Named,
    /// Read if present.
    IfPresent,
    /// The file's path has the value; the file is not asked for it.
    InPath,
}

/// A column to read. Its position in the list of wanted columns is its slot.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The key of the configuration that names it.
    pub(crate) key: String,
    pub(crate) column: String,
    pub(crate) need: Need,
}

/// One record.
pub(crate) trait Fields {
    /// The value in `slot`.
    fn value(&self, slot: usize) -> Value<'_>;
}
