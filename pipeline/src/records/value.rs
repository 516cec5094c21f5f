//! The values of a record of any format, the wanted columns, and the reason for a rejection.

use std::borrow::Cow;

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
    List(Vec<Cow<'a, str>>),
    /// Text that is not UTF-8.
    NotUtf8,
    /// Any other value; the text describes it.
    Other(&'static str),
}

impl Value<'_> {
    /// The same value, without a copy of its text.
    pub(crate) fn borrowed(&self) -> Value<'_> {
        match self {
            Self::Text(text) => Value::Text(Cow::Borrowed(text)),
            Self::Decimal(text) => Value::Decimal(Cow::Borrowed(text)),
            other => other.clone(),
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
