//! Arrow's many types as the few physical ones of Parquet, with their meanings.
//!
//! | stored | read as |
//! |---|---|
//! | integers of any width, times, dates, decimals of up to 64 bits | 32- and 64-bit integers |
//! | 16-bit floats | 32-bit floats |
//! | text and bytes of any layout | views |
//! | decimals of 128 and 256 bits | bytes, the largest first |
//! | dictionaries, runs | their values |
//! | lists of any layout | lists |
//! | unions, intervals, unknown types | text, for rejected rows; no field can be read from them |

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeBinaryArray, Int32Array, Int64Array, ListArray, MapArray,
    StringViewBuilder, StructArray,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Field, FieldRef, Int32Type,
    Int64Type, IntervalUnit, UInt32Type, UInt64Type,
};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::super::columnar::{Meaning, Shape, Ticks};

/// The shape of a column of [`physical`] values.
pub(super) fn shape(field: &Field) -> Shape {
    let inner = |field: &FieldRef| Box::new(shape(field));
    match field.data_type() {
        DataType::Dictionary(_, of) => shape(&Field::new("", of.as_ref().clone(), true)),
        DataType::RunEndEncoded(_, of) => shape(of),
        DataType::List(of)
        | DataType::LargeList(of)
        | DataType::ListView(of)
        | DataType::LargeListView(of)
        | DataType::FixedSizeList(of, _) => Shape::List(inner(of)),
        DataType::Struct(fields) => {
            Shape::Struct(fields.iter().map(|field| (field.name().clone(), shape(field))).collect())
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(of) if of.len() == 2 => Shape::Map(Box::new((shape(&of[0]), shape(&of[1])))),
            _ => Shape::Leaf(Meaning::Unknown),
        },
        _ if field.extension_type_name() == Some("arrow.uuid") => Shape::Leaf(Meaning::Uuid),
        of => Shape::Leaf(meaning(of)),
    }
}

fn meaning(of: &DataType) -> Meaning {
    match of {
        DataType::Boolean => Meaning::Boolean,
        DataType::Null | DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            Meaning::Signed
        }
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => Meaning::Unsigned,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => Meaning::Float,
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale) => Meaning::Decimal(i32::from(*scale)),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Meaning::Text,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Meaning::Bytes
        }
        DataType::Date32 => Meaning::Date,
        DataType::Date64 => Meaning::Instant(Ticks::Milli, true),
        DataType::Timestamp(unit, zone) => Meaning::Instant((*unit).into(), zone.is_some()),
        DataType::Time32(unit) | DataType::Time64(unit) => Meaning::TimeOfDay((*unit).into()),
        DataType::Duration(unit) => Meaning::Duration((*unit).into()),
        _ => Meaning::Unknown,
    }
}

/// The type of a column, or of the field inside it, that cannot be read; for messages.
pub(super) fn unreadable(of: &DataType, shape: &Shape, path: &[usize]) -> String {
    match shape.inside(path) {
        Some(Shape::Leaf(Meaning::Unknown)) if path.is_empty() => match of {
            DataType::Union(..) => "a union".into(),
            DataType::Interval(
                IntervalUnit::YearMonth | IntervalUnit::DayTime | IntervalUnit::MonthDayNano,
            ) => "an interval".into(),
            of => format!("of type {of}"),
        },
        inside => inside.as_ref().unwrap_or(shape).describe(),
    }
}

/// `array` as physical values.
///
/// # Errors
///
/// A layout that Arrow's functions do not convert.
pub(super) fn physical(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    Ok(match array.data_type() {
        DataType::Boolean
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => Arc::clone(array),
        DataType::Null => Arc::new(Int32Array::new_null(array.len())),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => {
            cast(array, &DataType::Int32)?
        }
        // The same bits: the meaning says that they have no sign.
        DataType::UInt32 => {
            let numbers = array.as_primitive::<UInt32Type>();
            let bits = numbers.values().inner().clone();
            Arc::new(Int32Array::new(bits.into(), numbers.nulls().cloned()))
        }
        DataType::UInt64 => {
            let numbers = array.as_primitive::<UInt64Type>();
            let bits = numbers.values().inner().clone();
            Arc::new(Int64Array::new(bits.into(), numbers.nulls().cloned()))
        }
        DataType::Float16 => cast(array, &DataType::Float32)?,
        DataType::Date32 | DataType::Time32(_) => cast(array, &DataType::Int32)?,
        DataType::Date64 | DataType::Time64(_) | DataType::Timestamp(..) | DataType::Duration(_) => {
            cast(array, &DataType::Int64)?
        }
        DataType::Decimal32(..) => {
            Arc::new(array.as_primitive::<Decimal32Type>().reinterpret_cast::<Int32Type>())
        }
        DataType::Decimal64(..) => {
            Arc::new(array.as_primitive::<Decimal64Type>().reinterpret_cast::<Int64Type>())
        }
        DataType::Decimal128(..) => {
            let numbers = array.as_primitive::<Decimal128Type>().iter();
            fixed(numbers.map(|number| number.map(i128::to_be_bytes)), 16)?
        }
        DataType::Decimal256(..) => {
            let numbers = array.as_primitive::<Decimal256Type>().iter();
            fixed(numbers.map(|number| number.map(arrow::datatypes::i256::to_be_bytes)), 32)?
        }
        DataType::Utf8 | DataType::LargeUtf8 => physical(&cast(array, &DataType::Utf8View)?)?,
        DataType::Utf8View => Arc::new(array.as_string_view().clone().to_binary_view()),
        DataType::Binary | DataType::LargeBinary => cast(array, &DataType::BinaryView)?,
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            // As views, so that a long text is not copied for each row that has it.
            take(&physical(dictionary.values())?, dictionary.keys(), None)?
        }
        DataType::RunEndEncoded(_, of) => physical(&cast(array, of.data_type())?)?,
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            let elements = physical(lists.values())?;
            let field = Field::new("element", elements.data_type().clone(), true);
            let (offsets, nulls) = (lists.offsets().clone(), lists.nulls().cloned());
            Arc::new(ListArray::try_new(Arc::new(field), offsets, elements, nulls)?)
        }
        DataType::LargeList(of)
        | DataType::ListView(of)
        | DataType::LargeListView(of)
        | DataType::FixedSizeList(of, _) => physical(&cast(array, &DataType::List(Arc::clone(of)))?)?,
        DataType::Struct(fields) => {
            let structs = array.as_struct();
            let columns = structs.columns().iter().map(physical).collect::<Result<Vec<_>, _>>()?;
            let fields = fields.iter().zip(&columns);
            let fields =
                fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
            let nulls = structs.nulls().cloned();
            Arc::new(StructArray::try_new_with_length(fields.collect(), columns, nulls, structs.len())?)
        }
        DataType::Map(entries, sorted) => match entries.data_type() {
            DataType::Struct(of) if of.len() == 2 => {
                let maps = array.as_map();
                let (keys, values) = (physical(maps.keys())?, physical(maps.values())?);
                let fields = vec![
                    Field::new("key", keys.data_type().clone(), false),
                    Field::new("value", values.data_type().clone(), true),
                ];
                let of = StructArray::try_new(fields.into(), vec![keys, values], None)?;
                let field = Arc::new(Field::new("entries", of.data_type().clone(), false));
                let (offsets, nulls) = (maps.offsets().clone(), maps.nulls().cloned());
                Arc::new(MapArray::try_new(field, offsets, of, nulls, *sorted)?)
            }
            _ => text(array)?,
        },
        _ => text(array)?,
    })
}

fn fixed<const N: usize>(
    numbers: impl Iterator<Item = Option<[u8; N]>>,
    width: i32,
) -> Result<ArrayRef, ArrowError> {
    Ok(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(numbers, width)?))
}

/// The values as text for people.
fn text(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let format = FormatOptions::default().with_display_error(true);
    let formatter = ArrayFormatter::try_new(array.as_ref(), &format)?;
    let (mut texts, mut written) = (StringViewBuilder::new(), String::new());
    for row in 0..array.len() {
        if array.is_null(row) {
            texts.append_null();
            continue;
        }
        written.clear();
        write!(written, "{}", formatter.value(row)).map_err(|e| ArrowError::CastError(e.to_string()))?;
        texts.append_value(&written);
    }
    physical(&(Arc::new(texts.finish()) as ArrayRef))
}
