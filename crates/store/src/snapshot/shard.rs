//! Reads one shard with the column types of [`schemas::tables`], whichever engine wrote it.
//!
//! Delta has fewer types than Arrow, and writers store each in several ways: a time as INT96 or in microseconds, an unsigned
//! number as signed, a text as a dictionary. All readers of tables use this module (DataFusion's scans cast in the same way). A
//! value that cannot be cast is an error that names its column. Times finer than a millisecond are truncated. Memory: one batch.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, RecordBatch, RecordBatchOptions, StringArray, new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use arrow::error::ArrowError;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::basic::Type as PhysicalType;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use parquet::file::reader::ChunkReader;
use parquet::schema::types::SchemaDescriptor;
use schemas::tables;

use crate::error::TableError;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// One shard of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// Path inside the table.
    pub path: String,
    /// File size in bytes.
    pub bytes: u64,
    /// Number of rows from the log, or else from the shard's footer; `None` if neither can be read.
    pub rows: Option<u64>,
    /// Partition column → value.
    pub partition: std::collections::BTreeMap<String, Option<String>>,
}

impl Shard {
    /// Path in the table's object store. A name may contain a literal `%`.
    pub fn location(&self) -> ObjectPath {
        ObjectPath::parse(&self.path).unwrap_or_else(|_| ObjectPath::from(self.path.as_str()))
    }
}

/// Returns batches of `columns` of a shard of `table`, in this order and with the types of `schemas::tables`.
///
/// # Errors
///
/// [`TableError::Shard`] if `input` is not a readable shard; [`TableError::Column`] if it lacks a column that allows no nulls.
/// Each batch may fail with [`TableError::Type`] or [`TableError::Null`].
pub fn shard_batches<R: ChunkReader + 'static>(
    table: &str,
    shard: &Shard,
    input: R,
    columns: &[&str],
) -> Result<impl Iterator<Item = Result<RecordBatch, TableError>> + use<R>, TableError> {
    shard_rows(table, shard, input, columns, None)
}

/// [`shard_batches`] of all rows or of a range; of a range, only its pages are read.
pub(super) fn shard_rows<R: ChunkReader + 'static>(
    table: &str,
    shard: &Shard,
    input: R,
    columns: &[&str],
    rows: Option<Range<u64>>,
) -> Result<impl Iterator<Item = Result<RecordBatch, TableError>> + use<R>, TableError> {
    let of = Of { table: table.into(), shard: shard.clone() };
    // The page index says which pages hold which rows.
    let pages = if rows.is_some() { PageIndexPolicy::Optional } else { PageIndexPolicy::Skip };
    // Ignore the writer's Arrow schema: its in-memory types say nothing about the values.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_page_index_policy(pages);
    let metadata = ArrowReaderMetadata::load(&input, options).map_err(|e| of.unreadable(e))?;
    let metadata = match in_milliseconds(metadata.parquet_schema(), metadata.schema()) {
        Some(schema) => {
            let options = ArrowReaderOptions::new().with_schema(Arc::new(schema));
            let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options);
            metadata.map_err(|e| of.unreadable(e))?
        }
        None => metadata,
    };
    let stored = |column: &str| match shard.partition.contains_key(column) {
        true => None,
        false => metadata.schema().index_of(column).ok(),
    };
    let field = |&column: &&str| {
        let known = tables::column(table, column);
        match stored(column) {
            Some(at) => Ok(known.unwrap_or_else(|| metadata.schema().fields()[at].clone())),
            None if shard.partition.contains_key(column) => {
                Ok(known.unwrap_or_else(|| Arc::new(Field::new(column, DataType::Utf8, true))))
            }
            // A shard older than the column: its values are null.
            None => known.filter(|field| field.is_nullable()).ok_or_else(|| TableError::Column {
                table: table.into(),
                shard: shard.path.clone(),
                column: column.into(),
            }),
        }
    };
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Result<Vec<_>, _>>()?));
    let mask = ProjectionMask::roots(metadata.parquet_schema(), columns.iter().filter_map(|c| stored(c)));
    let all = metadata.metadata().file_metadata().num_rows().max(0) as usize;
    let mut reader = ParquetRecordBatchReaderBuilder::new_with_metadata(input, metadata);
    let mut first_row = 0;
    if let Some(rows) = rows {
        first_row = rows.start;
        let rows = (rows.start as usize).min(all)..(rows.end as usize).min(all);
        let selection = RowSelection::from_consecutive_ranges(std::iter::once(rows), all);
        reader = reader.with_row_selection(selection);
    }
    let reader = reader.with_projection(mask).build().map_err(|e| of.unreadable(e))?;
    Ok(reader.map(move |batch| {
        let batch = batch.map_err(|e| of.unreadable(e))?;
        let columns = schema.fields().iter().map(|field| of.column(&batch, field, first_row));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        first_row += batch.num_rows() as u64;
        let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(schema.clone(), columns, &rows).map_err(|e| of.unreadable(e))
    }))
}

/// The shard being read, named in errors.
struct Of {
    table: String,
    shard: Shard,
}

impl Of {
    fn unreadable(&self, source: impl Into<Source>) -> TableError {
        TableError::Shard { table: self.table.clone(), shard: self.shard.path.clone(), source: source.into() }
    }

    /// Returns one column of a batch whose first row is row `first_row` of the shard.
    fn column(&self, batch: &RecordBatch, field: &FieldRef, first_row: u64) -> Result<ArrayRef, TableError> {
        let column = match (self.shard.partition.get(field.name()), batch.column_by_name(field.name())) {
            (Some(value), _) => constant(value.as_deref(), batch.num_rows()),
            (None, Some(column)) => column.clone(),
            (None, None) => new_null_array(field.data_type(), batch.num_rows()),
        };
        // The log stores a partition's value as text, whatever the column's type.
        let is_partition = self.shard.partition.contains_key(field.name());
        let fitted = match is_partition || same_kind(column.data_type(), field.data_type()) {
            true => fitted(&column, field),
            false => Err(ArrowError::CastError("it is another type".into())),
        };
        let fitted = fitted.map_err(|source| TableError::Type {
            table: self.table.clone(),
            shard: self.shard.path.clone(),
            column: field.name().clone(),
            found: column.data_type().to_string().into(),
            expected: field.data_type().to_string().into(),
            source: Box::new(source),
        })?;
        match first_null(&fitted).filter(|_| !field.is_nullable()) {
            Some(row) => Err(TableError::Null {
                table: self.table.clone(),
                shard: self.shard.path.clone(),
                column: field.name().clone(),
                row: first_row + row as u64,
            }),
            None => labelled(fitted, field).map_err(|e| self.unreadable(e)),
        }
    }
}

/// Returns a partition column: its value repeated for each row.
fn constant(value: Option<&str>, rows: usize) -> ArrayRef {
    match value {
        Some(value) => Arc::new(StringArray::from_iter_values(std::iter::repeat_n(value, rows))),
        None => new_null_array(&DataType::Utf8, rows),
    }
}

/// Returns the first row that is null, or whose list contains a null.
fn first_null(column: &dyn Array) -> Option<usize> {
    if column.null_count() > 0 {
        return (0..column.len()).find(|&row| column.is_null(row));
    }
    let lists = column.as_list_opt::<i32>().filter(|lists| lists.values().null_count() > 0)?;
    (0..lists.len()).find(|&row| lists.value(row).null_count() > 0)
}

/// Returns true if both types store the same type of Delta. A text never counts as a number.
fn same_kind(one: &DataType, other: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Date32, Date64, Dictionary, FixedSizeBinary, FixedSizeList, LargeBinary,
        LargeList, LargeListView, LargeUtf8, List, ListView, Null, RunEndEncoded, Timestamp, Utf8, Utf8View,
    };
    match (one, other) {
        (Dictionary(_, of), _) => same_kind(of, other),
        (RunEndEncoded(_, of), _) => same_kind(of.data_type(), other),
        (Null, _)
        | (Utf8 | LargeUtf8 | Utf8View, Utf8)
        | (Timestamp(..), Timestamp(..))
        | (Date32 | Date64, Date32) => true,
        (Binary | LargeBinary | BinaryView | FixedSizeBinary(_), Binary) => true,
        (
            List(of) | LargeList(of) | ListView(of) | LargeListView(of) | FixedSizeList(of, _),
            List(element),
        ) => same_kind(of.data_type(), element.data_type()),
        _ => {
            one == other
                || (one.is_integer() && other.is_integer())
                || (one.is_floating() && other.is_floating())
        }
    }
}

/// Casts the column to the type of `field`, but with nulls allowed inside lists. Fails on a value that does not fit.
fn fitted(column: &ArrayRef, field: &Field) -> Result<ArrayRef, ArrowError> {
    if column.data_type() == field.data_type() {
        return Ok(column.clone());
    }
    // `Of::column` reports nulls inside lists with their row.
    let target = match field.data_type() {
        DataType::List(element) => {
            DataType::List(Arc::new(Field::new(element.name(), element.data_type().clone(), true)))
        }
        other => other.clone(),
    };
    cast_with_options(column, &target, &CastOptions { safe: false, ..CastOptions::default() })
}

/// Labels a list's elements as `field` does, now that its nulls are checked.
fn labelled(column: ArrayRef, field: &Field) -> Result<ArrayRef, ArrowError> {
    match (field.data_type(), column.as_list_opt::<i32>()) {
        (DataType::List(element), Some(lists)) if column.data_type() != field.data_type() => {
            let (_, offsets, values, nulls) = lists.clone().into_parts();
            Ok(Arc::new(ListArray::try_new(element.clone(), offsets, values, nulls)?))
        }
        _ => Ok(column),
    }
}

/// Returns the schema with INT96 columns in milliseconds, since nanoseconds end in 2262; `None` if there are no such columns.
fn in_milliseconds(parquet: &SchemaDescriptor, schema: &Schema) -> Option<Schema> {
    let leaves = parquet.columns().iter().enumerate();
    let roots: Vec<usize> = leaves
        .filter(|(_, leaf)| leaf.physical_type() == PhysicalType::INT96)
        .map(|(leaf, _)| parquet.get_column_root_idx(leaf))
        .collect();
    let field = |(at, field): (usize, &FieldRef)| match roots.contains(&at) {
        true => Arc::new(field.as_ref().clone().with_data_type(coarser(field.data_type()))),
        false => field.clone(),
    };
    (!roots.is_empty())
        .then(|| Schema::new(schema.fields().iter().enumerate().map(field).collect::<Vec<_>>()))
}

fn coarser(of: &DataType) -> DataType {
    match of {
        DataType::Timestamp(TimeUnit::Nanosecond, None) => tables::timestamp(),
        DataType::List(element) => {
            DataType::List(Arc::new(element.as_ref().clone().with_data_type(coarser(element.data_type()))))
        }
        other => other.clone(),
    }
}

/// Reads the number of rows from the shard's footer; `None` if it cannot be read.
pub(super) async fn footer_rows(store: &dyn ObjectStore, shard: &Shard) -> Option<u64> {
    let mut length = (64 << 10).min(shard.bytes);
    loop {
        let end = store.get_range(&shard.location(), shard.bytes - length..shard.bytes).await.ok()?;
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&end, shard.bytes) {
            Ok(()) => return u64::try_from(reader.finish().ok()?.file_metadata().num_rows()).ok(),
            Err(ParquetError::NeedMoreData(more)) if more as u64 > length && more as u64 <= shard.bytes => {
                length = more as u64;
            }
            Err(_) => return None,
        }
    }
}
