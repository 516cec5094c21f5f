//! The meaning of the values of columns, whatever the format.

use arrow::datatypes::TimeUnit;

/// The meaning of the values of a leaf column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source::formats) enum Meaning {
    Boolean,
    Signed,
    Unsigned,
    /// 32 or 64 bits.
    Float,
    /// 16 bits.
    Half,
    /// A whole number with this many digits after the point.
    Decimal(i32),
    Text,
    /// Bytes that may be text.
    Bytes,
    Uuid,
    /// Days since the epoch.
    Date,
    /// Ticks since the epoch; whether in UTC.
    Instant(Ticks, bool),
    /// A Julian day and nanoseconds of it.
    Int96,
    /// Ticks since midnight.
    TimeOfDay(Ticks),
    Duration(Ticks),
    /// Months, days and milliseconds.
    Interval,
    /// An annotation that this program does not know.
    Unknown,
}

/// Units of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::source::formats) enum Ticks {
    Second,
    Milli,
    Micro,
    Nano,
}

impl Ticks {
    /// Ticks in a second.
    pub(in crate::source::formats) fn per_second(self) -> i64 {
        match self {
            Self::Second => 1,
            Self::Milli => 1_000,
            Self::Micro => 1_000_000,
            Self::Nano => 1_000_000_000,
        }
    }

    pub(in crate::source::formats) fn name(self) -> &'static str {
        match self {
            Self::Second => "s",
            Self::Milli => "ms",
            Self::Micro => "us",
            Self::Nano => "ns",
        }
    }
}

impl From<TimeUnit> for Ticks {
    fn from(unit: TimeUnit) -> Self {
        match unit {
            TimeUnit::Second => Self::Second,
            TimeUnit::Millisecond => Self::Milli,
            TimeUnit::Microsecond => Self::Micro,
            TimeUnit::Nanosecond => Self::Nano,
        }
    }
}

/// A column with the meanings of its leaves.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::source::formats) enum Shape {
    Leaf(Meaning),
    List(Box<Shape>),
    Struct(Vec<(String, Shape)>),
    /// Keys and values.
    Map(Box<(Shape, Shape)>),
}

impl Shape {
    /// Whether fields can be read from the column: a value a row, or a list of values.
    pub(in crate::source::formats) fn is_readable(&self) -> bool {
        let value = |shape: &Shape| {
            matches!(shape, Self::Leaf(meaning) if !matches!(
                meaning,
                Meaning::TimeOfDay(_) | Meaning::Duration(_) | Meaning::Interval | Meaning::Unknown
            ))
        };
        match self {
            Self::List(elements) => value(elements),
            other => value(other),
        }
    }

    /// The shape that a path of struct fields leads to, if it leads anywhere; through lists, the list of what is there.
    pub(in crate::source::formats) fn inside(&self, path: &[usize]) -> Option<Self> {
        let Some((&field, rest)) = path.split_first() else { return Some(self.clone()) };
        match self {
            Self::Struct(fields) => fields.get(field)?.1.inside(rest),
            Self::List(elements) => Some(Self::List(Box::new(elements.inside(path)?))),
            Self::Leaf(_) | Self::Map(_) => None,
        }
    }

    /// The places of the struct fields whose names, with points between, are `path`.
    pub(in crate::source::formats) fn path(&self, path: &str) -> Option<Vec<usize>> {
        match self {
            Self::List(elements) => elements.path(path),
            Self::Struct(fields) => fields.iter().enumerate().find_map(|(at, (name, shape))| {
                let rest = path.strip_prefix(name.as_str())?;
                let inside = match rest.strip_prefix('.') {
                    Some(rest) => shape.path(rest)?,
                    None if rest.is_empty() => Vec::new(),
                    None => return None,
                };
                Some([vec![at], inside].concat())
            }),
            Self::Leaf(_) | Self::Map(_) => None,
        }
    }

    /// The column's type in a few words, for messages.
    pub(in crate::source::formats) fn describe(&self) -> String {
        match self {
            Self::Leaf(meaning) => match meaning {
                Meaning::TimeOfDay(_) => "a time of day".into(),
                Meaning::Duration(_) => "a duration".into(),
                Meaning::Interval => "an interval".into(),
                Meaning::Unknown => "a type that this program does not know".into(),
                other => format!("{other:?}").to_lowercase(),
            },
            Self::List(elements) => format!("a list of {}", elements.describe()),
            Self::Struct(_) => "a struct".into(),
            Self::Map(_) => "a map".into(),
        }
    }
}
