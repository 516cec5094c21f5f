//! The values of a column of one batch, with their meaning.

use std::borrow::Cow;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryViewArray, BooleanArray, FixedSizeBinaryArray, Float32Array,
    Float64Array, Int32Array, Int64Array, ListArray, MapArray, StructArray,
};
use arrow::datatypes::{DataType, i256};

use super::meaning::{Meaning, Shape, Ticks};
use crate::records::{Value, Vector};

pub(in crate::source::formats) const MS_PER_DAY: i64 = 86_400_000;
const NANOS_PER_DAY: i128 = 86_400_000_000_000;
/// The Julian day of the epoch.
const EPOCH_JULIAN_DAY: i128 = 2_440_588;

/// A column of one batch.
pub(in crate::source::formats) enum Cells {
    Leaf(Meaning, Leaf),
    List(ListArray, Box<Cells>),
    Struct(StructArray, Vec<(String, Cells)>),
    /// Keys and values.
    Map(MapArray, Box<(Cells, Cells)>),
}

/// Values of a physical type.
pub(in crate::source::formats) enum Leaf {
    Bool(BooleanArray),
    I32(Int32Array),
    I64(Int64Array),
    F32(Float32Array),
    F64(Float64Array),
    Bytes(BinaryViewArray),
    Fixed(FixedSizeBinaryArray),
}

impl Leaf {
    fn new(array: &ArrayRef) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Boolean => Self::Bool(array.as_boolean().clone()),
            DataType::Int32 => Self::I32(array.as_primitive().clone()),
            DataType::Int64 => Self::I64(array.as_primitive().clone()),
            DataType::Float32 => Self::F32(array.as_primitive().clone()),
            DataType::Float64 => Self::F64(array.as_primitive().clone()),
            DataType::BinaryView => Self::Bytes(array.as_binary_view().clone()),
            DataType::FixedSizeBinary(_) => Self::Fixed(array.as_fixed_size_binary().clone()),
            _ => return None,
        })
    }

    fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Bool(array) => array.is_null(row),
            Self::I32(array) => array.is_null(row),
            Self::I64(array) => array.is_null(row),
            Self::F32(array) => array.is_null(row),
            Self::F64(array) => array.is_null(row),
            Self::Bytes(array) => array.is_null(row),
            Self::Fixed(array) => array.is_null(row),
        }
    }

    /// A whole number, if it holds any.
    pub(in crate::source::formats) fn int(&self, row: usize) -> Option<i64> {
        match self {
            Self::I32(array) => Some(i64::from(array.value(row))),
            Self::I64(array) => Some(array.value(row)),
            _ => None,
        }
    }

    /// An unsigned number of the width of its type.
    pub(in crate::source::formats) fn unsigned(&self, row: usize) -> Option<u64> {
        match self {
            Self::I32(array) => Some(u64::from(array.value(row) as u32)),
            Self::I64(array) => Some(array.value(row) as u64),
            _ => None,
        }
    }

    pub(in crate::source::formats) fn bytes(&self, row: usize) -> Option<&[u8]> {
        match self {
            Self::Bytes(array) => Some(array.value(row)),
            Self::Fixed(array) => Some(array.value(row)),
            _ => None,
        }
    }

    /// The number of 16 bits in two bytes.
    pub(in crate::source::formats) fn half(&self, row: usize) -> Option<f32> {
        let bytes = self.bytes(row)?.try_into().ok()?;
        Some(half::f16::from_le_bytes(bytes).to_f32())
    }

    /// The digits of a decimal without its point: a number of up to 256 bits.
    pub(in crate::source::formats) fn digits(&self, row: usize) -> Option<String> {
        let Some(bytes) = self.bytes(row) else { return self.int(row).map(|number| number.to_string()) };
        let sign = if bytes.first().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
        let (extension, low) = bytes.split_at(bytes.len().saturating_sub(32));
        let kept = low.first().is_none_or(|byte| (byte & 0x80 != 0) == (sign == 0xff));
        if !kept || extension.iter().any(|&byte| byte != sign) {
            return None;
        }
        let mut number = [sign; 32];
        number[32 - low.len()..].copy_from_slice(low);
        let number = i256::from_be_bytes(number);
        Some(number.to_i128().map_or_else(|| number.to_string(), |number| number.to_string()))
    }

    /// A 96-bit time as nanoseconds since the epoch.
    pub(in crate::source::formats) fn int96(&self, row: usize) -> Option<i128> {
        let (nanos, day) = self.bytes(row)?.split_first_chunk::<8>()?;
        let day = i128::from(i32::from_le_bytes(day.try_into().ok()?));
        Some((day - EPOCH_JULIAN_DAY) * NANOS_PER_DAY + i128::from(i64::from_le_bytes(*nanos)))
    }

    pub(in crate::source::formats) fn uuid(&self, row: usize) -> Option<uuid::Uuid> {
        uuid::Uuid::from_slice(self.bytes(row)?).ok()
    }
}

impl Cells {
    /// `array` read by `shape`; `None` if the array has another shape.
    pub(in crate::source::formats) fn new(array: &ArrayRef, shape: &Shape) -> Option<Self> {
        Some(match shape {
            Shape::Leaf(meaning) => Self::Leaf(meaning.clone(), Leaf::new(array)?),
            Shape::List(of) => {
                let lists = array.as_list_opt::<i32>()?.clone();
                let elements = Self::new(lists.values(), of)?;
                Self::List(lists, Box::new(elements))
            }
            Shape::Struct(fields) => {
                let structs = array.as_struct_opt()?.clone();
                let columns = structs.columns().iter().zip(fields);
                let columns =
                    columns.map(|(column, (name, shape))| Some((name.clone(), Self::new(column, shape)?)));
                let columns = columns.collect::<Option<Vec<_>>>()?;
                Self::Struct(structs, columns)
            }
            Shape::Map(of) => {
                let maps = array.as_map_opt()?.clone();
                let entries = (Self::new(maps.keys(), &of.0)?, Self::new(maps.values(), &of.1)?);
                Self::Map(maps, Box::new(entries))
            }
        })
    }

    pub(in crate::source::formats) fn is_null(&self, row: usize) -> bool {
        match self {
            Self::Leaf(_, leaf) => leaf.is_null(row),
            Self::List(array, _) => array.is_null(row),
            Self::Struct(array, _) => array.is_null(row),
            Self::Map(array, _) => array.is_null(row),
        }
    }

    /// Where the elements of a row lie.
    pub(in crate::source::formats) fn range(offsets: &[i32], row: usize) -> std::ops::Range<usize> {
        offsets[row] as usize..offsets[row + 1] as usize
    }

    /// The value of a row.
    pub(in crate::source::formats) fn value(&self, row: usize) -> Value<'_> {
        if self.is_null(row) {
            return Value::Null;
        }
        match self {
            Self::Leaf(meaning, leaf) => leaf.value(meaning, row),
            Self::List(lists, elements) => {
                Value::List(Self::range(lists.value_offsets(), row).map(|at| elements.value(at)).collect())
            }
            Self::Struct(..) => Value::Other("a struct"),
            Self::Map(..) => Value::Other("a map"),
        }
    }

    /// The values of all rows, if they are of a simple type.
    pub(in crate::source::formats) fn vector(&self) -> Option<Vector> {
        let Self::Leaf(meaning, leaf) = self else { return None };
        let ints = || match leaf {
            Leaf::I32(array) => Some(array.unary(i64::from)),
            Leaf::I64(array) => Some(array.clone()),
            _ => None,
        };
        match (meaning, leaf) {
            (Meaning::Text | Meaning::Bytes, Leaf::Bytes(array)) => Some(Vector::Text(array.clone())),
            (Meaning::Signed, _) => Some(Vector::Int(ints()?)),
            (Meaning::Float, Leaf::F32(array)) => Some(Vector::Float(array.unary(f64::from))),
            (Meaning::Float, Leaf::F64(array)) => Some(Vector::Float(array.clone())),
            (Meaning::Date, Leaf::I32(array)) => {
                Some(Vector::Instant(array.unary(|days| i64::from(days) * MS_PER_DAY), 1))
            }
            (Meaning::Instant(ticks, _), _) if *ticks != Ticks::Second => {
                Some(Vector::Instant(ints()?, ticks.per_second() / 1_000))
            }
            _ => None,
        }
    }

    /// The value in the field of a struct that `path` leads to; of a list of structs, the values of all.
    pub(in crate::source::formats) fn value_at(&self, path: &[usize], row: usize) -> Value<'_> {
        let Some((&field, rest)) = path.split_first() else { return self.value(row) };
        if self.is_null(row) {
            return Value::Null;
        }
        match self {
            Self::Struct(_, fields) => fields[field].1.value_at(rest, row),
            Self::List(lists, elements) => {
                let range = Self::range(lists.value_offsets(), row);
                Value::List(range.map(|at| elements.value_at(path, at)).collect())
            }
            Self::Leaf(..) | Self::Map(..) => Value::Other("not a struct"),
        }
    }

    /// Upper bound of the bytes of text in all rows.
    pub(in crate::source::formats) fn text_bytes_max(&self) -> usize {
        match self {
            Self::Leaf(_, Leaf::Bytes(array)) => array.views().iter().map(|view| *view as u32 as usize).sum(),
            Self::Leaf(_, Leaf::Fixed(array)) => array.len() * array.value_length() as usize,
            Self::Leaf(..) => 0,
            Self::List(_, elements) => elements.text_bytes_max(),
            Self::Struct(_, fields) => fields.iter().map(|(_, field)| field.text_bytes_max()).sum(),
            Self::Map(_, of) => of.0.text_bytes_max() + of.1.text_bytes_max(),
        }
    }

    /// Bytes of text in a row, including the elements of lists.
    pub(in crate::source::formats) fn text_bytes(&self, row: usize) -> usize {
        match self {
            _ if self.is_null(row) => 0,
            Self::Leaf(_, leaf) => leaf.bytes(row).map_or(0, <[u8]>::len),
            Self::List(lists, elements) => {
                Self::range(lists.value_offsets(), row).map(|at| elements.text_bytes(at)).sum()
            }
            Self::Struct(_, fields) => fields.iter().map(|(_, field)| field.text_bytes(row)).sum(),
            Self::Map(maps, of) => Self::range(maps.value_offsets(), row)
                .map(|at| of.0.text_bytes(at) + of.1.text_bytes(at))
                .sum(),
        }
    }
}

impl Leaf {
    fn value(&self, meaning: &Meaning, row: usize) -> Value<'_> {
        /// For a column whose type contradicts its annotation; the schema check has excluded this.
        const OTHER: Value<'static> = Value::Other("something else than its column's type says");
        let instant = |ms: Option<i64>| ms.map_or(Value::OutOfRange, Value::Instant);
        match meaning {
            Meaning::Boolean => match self {
                Self::Bool(array) => Value::Bool(array.value(row)),
                _ => OTHER,
            },
            Meaning::Signed => self.int(row).map_or(OTHER, Value::Int),
            Meaning::Unsigned => match self.unsigned(row) {
                Some(number) => i64::try_from(number)
                    .map_or_else(|_| Value::Text(Cow::Owned(number.to_string())), Value::Int),
                None => OTHER,
            },
            Meaning::Float => match self {
                Self::F32(array) => Value::Single(array.value(row)),
                Self::F64(array) => Value::Float(array.value(row)),
                _ => OTHER,
            },
            Meaning::Half => self.half(row).map_or(OTHER, Value::Single),
            Meaning::Decimal(scale) => match self.digits(row) {
                Some(digits) => Value::Decimal(Cow::Owned(decimal(&digits, *scale, true))),
                None => Value::Other("a decimal of more than 256 bits"),
            },
            Meaning::Text | Meaning::Bytes => match self.bytes(row).map(std::str::from_utf8) {
                Some(Ok("")) => Value::Null,
                Some(Ok(text)) => Value::Text(Cow::Borrowed(text)),
                Some(Err(_)) => Value::NotUtf8,
                None => OTHER,
            },
            Meaning::Uuid => self.uuid(row).map_or(OTHER, |uuid| Value::Text(Cow::Owned(uuid.to_string()))),
            Meaning::Date => instant(self.int(row).and_then(|days| days.checked_mul(MS_PER_DAY))),
            Meaning::Instant(ticks, _) => {
                let Some(value) = self.int(row) else { return OTHER };
                instant(match ticks {
                    Ticks::Second => value.checked_mul(1_000),
                    ticks => Some(value.div_euclid(ticks.per_second() / 1_000)),
                })
            }
            Meaning::Int96 => match self.int96(row) {
                Some(nanos) => instant(i64::try_from(nanos.div_euclid(1_000_000)).ok()),
                None => OTHER,
            },
            Meaning::TimeOfDay(_) => Value::Other("a time of day"),
            Meaning::Duration(_) => Value::Other("a duration"),
            Meaning::Interval => Value::Other("an interval"),
            Meaning::Unknown => Value::Other("of a type that this program does not know"),
        }
    }
}

/// The number with these `digits`, `scale` of them after the point. `short` drops trailing zeros of the fraction, and
/// the point of an empty fraction.
pub(in crate::source::formats) fn decimal(digits: &str, scale: i32, short: bool) -> String {
    let (minus, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let Ok(scale) = usize::try_from(scale) else {
        let zeros = usize::try_from(scale.unsigned_abs()).unwrap_or_default();
        return format!("{minus}{digits}{:0<zeros$}", "");
    };
    let digits = format!("{digits:0>width$}", width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let fraction = if short { fraction.trim_end_matches('0') } else { fraction };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{minus}{whole}{point}{fraction}")
}
