//! The meaning of the values of a file's columns.
//!
//! The file is read by its physical types alone: booleans, 32- and 64-bit integers and floats, and bytes. The
//! annotations are removed from the schema before the reader gets it ([`without_annotations`]) and kept here, a
//! [`Meaning`] for each leaf. The reader then converts nothing: no time wraps around, no digit is lost, and a text
//! that is not UTF-8 is one bad value, not an unreadable file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use parquet::arrow::ARROW_SCHEMA_META_KEY;
use parquet::basic::{ConvertedType, LogicalType, TimeUnit as ParquetUnit, Type as Physical};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::schema::types::{SchemaDescriptor, Type};

use super::super::columnar::{Meaning, Shape, Ticks};

/// Days and nanoseconds of a 96-bit time.
pub(super) const INT96_BYTES: i32 = 12;

impl From<ParquetUnit> for Ticks {
    fn from(unit: ParquetUnit) -> Self {
        match unit {
            ParquetUnit::MILLIS => Self::Milli,
            ParquetUnit::MICROS => Self::Micro,
            ParquetUnit::NANOS => Self::Nano,
        }
    }
}

/// The shapes of the root columns of `read`, the schema of the batches; `meanings` are those of all leaves, in order.
pub(super) fn shapes(read: &Schema, meanings: Vec<Meaning>) -> Option<Vec<Shape>> {
    let mut meanings = meanings.into_iter();
    let shapes = read.fields().iter().map(|field| shape(field.data_type(), &mut meanings));
    let shapes = shapes.collect::<Option<Vec<_>>>()?;
    meanings.next().is_none().then_some(shapes)
}

fn shape(of: &DataType, meanings: &mut impl Iterator<Item = Meaning>) -> Option<Shape> {
    Some(match of {
        DataType::List(of) => Shape::List(Box::new(shape(of.data_type(), meanings)?)),
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|f| Some((f.name().clone(), shape(f.data_type(), meanings)?)));
            Shape::Struct(fields.collect::<Option<_>>()?)
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(entry) if entry.len() == 2 => {
                let key = shape(entry[0].data_type(), meanings)?;
                Shape::Map(Box::new((key, shape(entry[1].data_type(), meanings)?)))
            }
            _ => return None,
        },
        _ => Shape::Leaf(meanings.next()?),
    })
}

/// The meanings of all leaves of a file's schema. Arrow's own types are recorded in the file's key-value metadata.
pub(super) fn meanings(file: &SchemaDescriptor, metadata: Option<&Vec<KeyValue>>) -> Vec<Meaning> {
    // Arrow's reader of its own schema panics on a type that it does not know, such as integers of 128 bits.
    let arrow = catch_unwind(AssertUnwindSafe(|| parquet::arrow::parquet_to_arrow_schema(file, metadata)));
    let (arrow, readable) = match arrow {
        Ok(Ok(arrow)) => (arrow, true),
        _ => {
            let has_arrow = metadata.into_iter().flatten().any(|entry| entry.key == ARROW_SCHEMA_META_KEY);
            (Schema::empty(), !has_arrow)
        }
    };
    let mut hints = Vec::new();
    arrow.fields().iter().for_each(|field| leaves(field, &mut hints));
    let hint = |at: usize| hints.get(at).filter(|_| hints.len() == file.num_columns());
    let meanings = (0..file.num_columns()).map(|at| {
        let leaf = file.column(at);
        match meaning(&leaf.self_type_ptr(), hint(at)) {
            // Only Arrow's schema, which is unreadable here, records what these bytes are.
            Meaning::Bytes if !readable && leaf.physical_type() == Physical::FIXED_LEN_BYTE_ARRAY => {
                Meaning::Unknown
            }
            meaning => meaning,
        }
    });
    meanings.collect()
}

fn leaves<'a>(field: &'a Field, all: &mut Vec<&'a Field>) {
    match field.data_type() {
        DataType::Struct(fields) => fields.iter().for_each(|field| leaves(field, all)),
        DataType::List(of)
        | DataType::LargeList(of)
        | DataType::ListView(of)
        | DataType::LargeListView(of)
        | DataType::FixedSizeList(of, _)
        | DataType::Map(of, _)
        | DataType::RunEndEncoded(_, of) => leaves(of, all),
        _ => all.push(field),
    }
}

fn meaning(leaf: &Type, hint: Option<&&Field>) -> Meaning {
    let (info, physical) = (leaf.get_basic_info(), leaf.get_physical_type());
    let bytes = matches!(physical, Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY);
    let integer = matches!(physical, Physical::INT32 | Physical::INT64);
    let length = match leaf {
        Type::PrimitiveType { type_length, .. } if physical == Physical::FIXED_LEN_BYTE_ARRAY => *type_length,
        _ => -1,
    };
    match info.logical_type_ref() {
        Some(LogicalType::String | LogicalType::Json | LogicalType::Enum) if bytes => Meaning::Text,
        Some(LogicalType::Bson | LogicalType::Geometry(_) | LogicalType::Geography(_)) if bytes => {
            Meaning::Bytes
        }
        Some(LogicalType::Decimal(of)) if bytes || integer => decimal(of.scale),
        Some(LogicalType::Date) if physical == Physical::INT32 => Meaning::Date,
        Some(LogicalType::Time(of)) if integer => Meaning::TimeOfDay(of.unit.into()),
        Some(LogicalType::Timestamp(of)) if physical == Physical::INT64 => {
            Meaning::Instant(of.unit.into(), of.is_adjusted_to_u_t_c)
        }
        Some(LogicalType::Integer(of)) if integer => match of.is_signed {
            true => Meaning::Signed,
            false => Meaning::Unsigned,
        },
        Some(LogicalType::Uuid) if length == 16 => Meaning::Uuid,
        Some(LogicalType::Float16) if length == 2 => Meaning::Half,
        // A column of nulls.
        Some(LogicalType::Unknown) => plain(physical),
        Some(_) => Meaning::Unknown,
        None => match info.converted_type() {
            ConvertedType::NONE => hinted(physical, length, hint).unwrap_or_else(|| plain(physical)),
            ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON if bytes => Meaning::Text,
            ConvertedType::BSON if bytes => Meaning::Bytes,
            ConvertedType::DECIMAL if bytes || integer => decimal(leaf.get_scale()),
            ConvertedType::DATE if physical == Physical::INT32 => Meaning::Date,
            ConvertedType::TIME_MILLIS if integer => Meaning::TimeOfDay(Ticks::Milli),
            ConvertedType::TIME_MICROS if integer => Meaning::TimeOfDay(Ticks::Micro),
            ConvertedType::TIMESTAMP_MILLIS if physical == Physical::INT64 => {
                Meaning::Instant(Ticks::Milli, true)
            }
            ConvertedType::TIMESTAMP_MICROS if physical == Physical::INT64 => {
                Meaning::Instant(Ticks::Micro, true)
            }
            ConvertedType::INT_8 | ConvertedType::INT_16 | ConvertedType::INT_32 | ConvertedType::INT_64
                if integer =>
            {
                Meaning::Signed
            }
            ConvertedType::UINT_8
            | ConvertedType::UINT_16
            | ConvertedType::UINT_32
            | ConvertedType::UINT_64
                if integer =>
            {
                Meaning::Unsigned
            }
            ConvertedType::INTERVAL if length == INT96_BYTES => Meaning::Interval,
            _ => Meaning::Unknown,
        },
    }
}

fn decimal(scale: i32) -> Meaning {
    /// More digits than 256 bits have.
    const SCALE_MAX: i32 = 80;
    if (-SCALE_MAX..=SCALE_MAX).contains(&scale) { Meaning::Decimal(scale) } else { Meaning::Unknown }
}

fn plain(physical: Physical) -> Meaning {
    match physical {
        Physical::BOOLEAN => Meaning::Boolean,
        Physical::INT32 | Physical::INT64 => Meaning::Signed,
        Physical::INT96 => Meaning::Int96,
        Physical::FLOAT | Physical::DOUBLE => Meaning::Float,
        Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY => Meaning::Bytes,
    }
}

/// The meaning of a leaf without annotation, according to the Arrow schema that writers store beside Parquet's.
fn hinted(physical: Physical, length: i32, hint: Option<&&Field>) -> Option<Meaning> {
    let hint = hint?;
    let of = match hint.data_type() {
        DataType::Dictionary(_, of) => of,
        of => of,
    };
    Some(match (physical, of) {
        (Physical::INT32 | Physical::INT64, DataType::Timestamp(unit, zone)) => {
            Meaning::Instant((*unit).into(), zone.is_some())
        }
        (Physical::INT64, DataType::Date64) => Meaning::Instant(Ticks::Milli, true),
        (Physical::INT32, DataType::Time32(unit)) | (Physical::INT64, DataType::Time64(unit)) => {
            Meaning::TimeOfDay((*unit).into())
        }
        (Physical::INT64, DataType::Duration(unit)) => Meaning::Duration((*unit).into()),
        (Physical::BYTE_ARRAY, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) => Meaning::Text,
        (Physical::FIXED_LEN_BYTE_ARRAY, _)
            if length == 16 && hint.extension_type_name() == Some("arrow.uuid") =>
        {
            Meaning::Uuid
        }
        (Physical::FIXED_LEN_BYTE_ARRAY, DataType::Float16) if length == 2 => Meaning::Half,
        _ => return None,
    })
}

/// The schema reduced to physical types, lists and maps; a 96-bit time becomes twelve bytes.
pub(super) fn without_annotations(file: &SchemaDescriptor) -> Result<SchemaDescriptor, ParquetError> {
    Ok(SchemaDescriptor::new(Arc::new(bare(file.root_schema())?)))
}

fn bare(of: &Type) -> Result<Type, ParquetError> {
    let info = of.get_basic_info();
    let id = info.has_id().then(|| info.id());
    match of {
        Type::PrimitiveType { physical_type, type_length, .. } => {
            let (physical, length) = match physical_type {
                Physical::INT96 => (Physical::FIXED_LEN_BYTE_ARRAY, INT96_BYTES),
                physical => (*physical, *type_length),
            };
            Type::primitive_type_builder(info.name(), physical)
                .with_repetition(info.repetition())
                .with_length(length)
                .with_id(id)
                .build()
        }
        Type::GroupType { fields, .. } => {
            let fields =
                fields.iter().map(|field| bare(field).map(Arc::new)).collect::<Result<Vec<_>, _>>()?;
            let mut group = Type::group_type_builder(info.name()).with_fields(fields).with_id(id);
            if info.has_repetition() {
                group = group.with_repetition(info.repetition());
            }
            if matches!(
                info.converted_type(),
                ConvertedType::LIST | ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE
            ) {
                group = group
                    .with_converted_type(info.converted_type())
                    .with_logical_type(info.logical_type_ref().cloned());
            }
            group.build()
        }
    }
}

/// The same schema with bytes as views, which point into the pages that were read.
pub(super) fn with_views(read: &Schema) -> Schema {
    Schema::new_with_metadata(fields_with_views(read.fields()), read.metadata().clone())
}

fn fields_with_views(fields: &Fields) -> Fields {
    fields.iter().map(field_with_views).collect()
}

fn field_with_views(field: &FieldRef) -> FieldRef {
    let of = match field.data_type() {
        DataType::Binary => DataType::BinaryView,
        DataType::List(of) => DataType::List(field_with_views(of)),
        DataType::Map(of, sorted) => DataType::Map(field_with_views(of), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields_with_views(fields)),
        other => other.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(of))
}
