//! Parquet files: the wanted columns of each batch, brought to a few plain types.
//!
//! Memory: one batch of the wanted columns for each block on its way. A rejected row is kept whole, as JSON
//! with all its columns; the batch it stands in is then read once more with all columns.

use std::borrow::Cow;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch,
    StringArray, UInt32Array,
};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use arrow::json::{LineDelimitedWriter, WriterBuilder, writer::LineDelimited};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::error::IngestError;
use super::files::{ByteCount, InputFile, Packing, open_parquet};
use super::record::{Records, Step, locate};
use super::source::Reading;
use crate::records::{Fields, Value, Wanted};

const BATCH_ROWS: usize = 8_192;

/// The file, for one reader at a time: its handles share one position.
type SharedFile = Arc<Mutex<File>>;

/// Where the wanted columns are.
pub(super) struct ParquetLayout {
    path: String,
    file: SharedFile,
    /// Slot → column of the batch.
    columns: Vec<Option<usize>>,
    max_record_bytes: usize,
}

/// The batches of a file.
pub(super) struct ParquetBlocks {
    path: String,
    file: SharedFile,
    reader: ParquetRecordBatchReader,
    first_row: usize,
    progress: Progress,
}

/// Consecutive rows of a file.
pub(super) struct ParquetRows {
    batch: RecordBatch,
    /// Rows of the file before these.
    first_row: usize,
}

/// Spreads the bytes of the file over its rows.
struct Progress {
    count: ByteCount,
    bytes: u64,
    rows: u64,
    counted: u64,
}

impl Progress {
    fn at_row(&mut self, row: usize) {
        let at = (u128::from(self.bytes) * row as u128 / u128::from(self.rows.max(1))) as u64;
        self.count.add(at.saturating_sub(self.counted));
        self.counted = self.counted.max(at);
    }
}

/// Opens `file` and finds the wanted columns.
pub(super) fn open_parquet_blocks(
    file: &InputFile,
    wanted: &[Wanted],
    reading: Reading,
    count: &ByteCount,
) -> Result<(ParquetLayout, ParquetBlocks), IngestError> {
    let path = file.source.clone();
    let fail = |e: parquet::errors::ParquetError| IngestError::read(&file.source, e);
    let handle = open_parquet(file, count)?;
    let copy = handle.try_clone().map_err(|e| IngestError::read(&file.source, e))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(copy).map_err(fail)?;
    let schema: SchemaRef = builder.schema().clone();
    let present: Vec<String> = schema.fields().iter().map(|f| f.name().clone()).collect();
    let located = locate(file, wanted, &present)?;
    for (wanted, at) in wanted.iter().zip(&located) {
        if let Some(field) = at.map(|at| schema.field(at))
            && !readable(field.data_type())
        {
            return Err(IngestError::ColumnType {
                path,
                column: wanted.column.clone(),
                found: field.data_type().to_string(),
                key: wanted.key.clone(),
            });
        }
    }
    let mut roots: Vec<usize> = located.iter().flatten().copied().collect();
    roots.sort_unstable();
    roots.dedup();
    let columns = located.iter().map(|at| at.and_then(|at| roots.binary_search(&at).ok())).collect();
    let rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    // What is packed was counted while it was unpacked.
    let bytes = if file.packing == Packing::Plain { file.bytes } else { 0 };
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(fail)?;
    let shared = Arc::new(Mutex::new(handle));
    let max_record_bytes = reading.max_record_bytes;
    let layout = ParquetLayout { path: path.clone(), file: shared.clone(), columns, max_record_bytes };
    let progress = Progress { count: count.clone(), bytes, rows, counted: 0 };
    Ok((layout, ParquetBlocks { path, file: shared, reader, first_row: 0, progress }))
}

impl ParquetBlocks {
    pub(super) fn next(&mut self) -> Result<Option<ParquetRows>, IngestError> {
        let batch = {
            let _alone = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            self.reader.next()
        };
        let Some(batch) = batch else { return Ok(None) };
        let batch = batch.map_err(|e| IngestError::read(&self.path, e))?;
        let first_row = self.first_row;
        self.first_row += batch.num_rows();
        self.progress.at_row(self.first_row);
        Ok(Some(ParquetRows { batch, first_row }))
    }
}

impl ParquetLayout {
    /// A batch with all columns of the file.
    fn read_whole(&self, first_row: usize, rows: usize) -> Result<RecordBatch, IngestError> {
        let fail = |e: parquet::errors::ParquetError| IngestError::read(&self.path, e);
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let copy = file.try_clone().map_err(|e| IngestError::read(&self.path, e))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(copy)
            .and_then(|b| b.with_offset(first_row).with_limit(rows).with_batch_size(rows).build())
            .map_err(fail)?;
        let schema = arrow::array::RecordBatchReader::schema(&reader);
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| IngestError::read(&self.path, e))?;
        arrow::compute::concat_batches(&schema, &batches).map_err(|e| IngestError::read(&self.path, e))
    }
}

/// A column of one batch in one of the types that values are read from.
enum Column {
    Text(StringArray),
    Binary(BinaryArray),
    Int(Int64Array),
    Float(Float64Array),
    Bool(BooleanArray),
    /// Ticks since the epoch, and how many there are in a second.
    Instant(Int64Array, i64),
    /// List elements are text.
    List(ListArray),
}

impl Column {
    fn array(&self) -> &dyn Array {
        match self {
            Self::Text(array) => array,
            Self::Binary(array) => array,
            Self::Int(array) | Self::Instant(array, _) => array,
            Self::Float(array) => array,
            Self::Bool(array) => array,
            Self::List(array) => array,
        }
    }
}

/// Whether [`plain`] knows the type.
fn readable(of: &DataType) -> bool {
    match of {
        DataType::Struct(_)
        | DataType::Map(_, _)
        | DataType::Union(_, _)
        | DataType::Interval(_)
        | DataType::Duration(_)
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::RunEndEncoded(_, _) => false,
        DataType::List(of)
        | DataType::LargeList(of)
        | DataType::ListView(of)
        | DataType::LargeListView(of)
        | DataType::FixedSizeList(of, _) => !of.data_type().is_nested() && readable(of.data_type()),
        DataType::Dictionary(_, of) => readable(of),
        _ => true,
    }
}

fn plain(array: &ArrayRef) -> Result<Column, arrow::error::ArrowError> {
    let to = |of: &DataType| cast(array, of);
    let ints = |array: ArrayRef| array.as_primitive().clone();
    Ok(match array.data_type() {
        DataType::Utf8 => Column::Text(array.as_string().clone()),
        DataType::LargeUtf8 | DataType::Utf8View | DataType::UInt64 | DataType::Null => {
            Column::Text(to(&DataType::Utf8)?.as_string().clone())
        }
        DataType::Dictionary(_, of) => plain(&to(of)?)?,
        DataType::Binary => Column::Binary(array.as_binary().clone()),
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Column::Binary(to(&DataType::Binary)?.as_binary().clone())
        }
        of if of.is_integer() => Column::Int(ints(to(&DataType::Int64)?)),
        DataType::Boolean => Column::Bool(array.as_boolean().clone()),
        DataType::Timestamp(unit, _) => {
            let per_second = match unit {
                TimeUnit::Second => 1,
                TimeUnit::Millisecond => 1_000,
                TimeUnit::Microsecond => 1_000_000,
                TimeUnit::Nanosecond => 1_000_000_000,
            };
            Column::Instant(ints(to(&DataType::Int64)?), per_second)
        }
        DataType::Date32 | DataType::Date64 => {
            let ms = cast(array, &DataType::Timestamp(TimeUnit::Millisecond, None))?;
            Column::Instant(ints(cast(&ms, &DataType::Int64)?), 1_000)
        }
        of if of.is_nested() => {
            Column::List(to(&DataType::new_list(DataType::Utf8, true))?.as_list().clone())
        }
        // Floats of every width, and decimals.
        _ => Column::Float(to(&DataType::Float64)?.as_primitive().clone()),
    })
}

/// The rows of a batch.
pub(super) struct ParquetRecords<'a> {
    layout: &'a ParquetLayout,
    rows: &'a ParquetRows,
    columns: Vec<Column>,
    /// The row after the current one.
    next: usize,
    /// The batch with all its columns.
    whole: Option<RecordBatch>,
}

impl<'a> ParquetRecords<'a> {
    pub(super) fn new(layout: &'a ParquetLayout, rows: &'a ParquetRows) -> Result<Self, IngestError> {
        let columns = rows.batch.columns().iter().map(plain).collect::<Result<_, _>>();
        let columns = columns.map_err(|e| IngestError::read(&layout.path, e))?;
        Ok(Self { layout, rows, columns, next: 0, whole: None })
    }

    fn row(&self) -> usize {
        self.next.saturating_sub(1)
    }
}

impl Fields for ParquetRecords<'_> {
    fn value(&self, slot: usize) -> Value<'_> {
        let Some(at) = self.layout.columns[slot] else { return Value::Absent };
        let row = self.row();
        let column = &self.columns[at];
        if column.array().is_null(row) {
            return Value::Null;
        }
        match column {
            Column::Text(array) => text(array.value(row)),
            Column::Binary(array) => match std::str::from_utf8(array.value(row)) {
                Ok(value) => text(value),
                Err(_) => Value::NotUtf8,
            },
            Column::Int(array) => Value::Int(array.value(row)),
            Column::Float(array) => Value::Float(array.value(row)),
            Column::Bool(array) => Value::Bool(array.value(row)),
            Column::Instant(array, per_second) => {
                let ticks = array.value(row);
                match *per_second {
                    1 => ticks.checked_mul(1_000).map_or(Value::Other("a time out of range"), Value::Instant),
                    per_second => Value::Instant(ticks.div_euclid(per_second / 1_000)),
                }
            }
            Column::List(array) => {
                let elements = array.value(row);
                let elements = elements.as_string::<i32>();
                Value::List(elements.iter().flatten().map(|e| Cow::Owned(e.to_owned())).collect())
            }
        }
    }
}

impl Records for ParquetRecords<'_> {
    fn advance(&mut self) -> Step {
        if self.next == self.rows.batch.num_rows() {
            return Step::End;
        }
        self.next += 1;
        Step::Record
    }

    fn raw(&mut self) -> Result<Vec<u8>, IngestError> {
        let ParquetRows { batch, first_row } = self.rows;
        let whole = match self.whole.take() {
            Some(whole) => whole,
            None => self.layout.read_whole(*first_row, batch.num_rows())?,
        };
        let fail = |e| IngestError::read(&self.layout.path, e);
        let row = take_record_batch(&whole, &UInt32Array::from(vec![self.row() as u32])).map_err(fail)?;
        self.whole = Some(whole);
        let mut json = Vec::new();
        let mut writer: LineDelimitedWriter<_> =
            WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut json);
        writer.write(&row).and_then(|()| writer.finish()).map_err(fail)?;
        drop(writer);
        while json.last() == Some(&b'\n') {
            json.pop();
        }
        json.truncate(self.layout.max_record_bytes);
        Ok(json)
    }

    fn done(&self) -> usize {
        0
    }
}

fn text(value: &str) -> Value<'_> {
    if value.is_empty() { Value::Null } else { Value::Text(Cow::Borrowed(value)) }
}
