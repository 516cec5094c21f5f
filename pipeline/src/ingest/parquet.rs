//! Parquet files: the wanted columns of each batch, brought to a few plain types.
//!
//! Memory: one batch of the wanted columns. A rejected row is kept whole, as JSON with all its columns; the
//! batch it stands in is then read once more with all columns.

use std::borrow::Cow;
use std::fs::File;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef, TimeUnit};
use arrow::json::{LineDelimitedWriter, WriterBuilder, writer::LineDelimited};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::error::IngestError;
use super::files::{ByteCount, InputFile, open_parquet};
use super::source::{RecordSource, Step, Value, Wanted, locate};

const BATCH_ROWS: usize = 8_192;

pub(super) struct ParquetSource {
    path: String,
    file: File,
    reader: ParquetRecordBatchReader,
    /// Slot → column of the batch.
    columns: Vec<Option<usize>>,
    batch: Vec<Column>,
    rows: usize,
    /// The current row of the batch; before its first row this is `usize::MAX`.
    row: usize,
    /// Rows of the file before this batch.
    first_row: usize,
    /// This batch with all its columns.
    whole: Option<RecordBatch>,
    max_record_bytes: usize,
    progress: Progress,
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

/// A column of one batch in one of the types that values are read from.
enum Column {
    Text(ArrayRef),
    Binary(ArrayRef),
    Int(ArrayRef),
    Float(ArrayRef),
    Bool(ArrayRef),
    /// Ticks since the epoch, and how many there are in a second.
    Instant(ArrayRef, i64),
    /// List elements are text.
    List(ArrayRef),
}

impl ParquetSource {
    pub(super) fn open(
        file: &InputFile,
        wanted: &[Wanted],
        max_record_bytes: usize,
        count: &ByteCount,
    ) -> Result<Self, IngestError> {
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
        let bytes = if file.packing == super::files::Packing::Plain { file.bytes } else { 0 };
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(fail)?;
        Ok(Self {
            path,
            file: handle,
            reader,
            columns,
            batch: Vec::new(),
            rows: 0,
            row: usize::MAX,
            first_row: 0,
            whole: None,
            max_record_bytes,
            progress: Progress { count: count.clone(), bytes, rows, counted: 0 },
        })
    }

    fn next_batch(&mut self) -> Result<bool, IngestError> {
        self.first_row += self.rows;
        self.whole = None;
        (self.rows, self.row) = (0, usize::MAX);
        self.progress.at_row(self.first_row);
        let Some(batch) = self.reader.next() else { return Ok(false) };
        let batch = batch.map_err(|e| IngestError::read(&self.path, e))?;
        self.rows = batch.num_rows();
        self.batch = batch
            .columns()
            .iter()
            .map(plain)
            .collect::<Result<_, _>>()
            .map_err(|e| IngestError::read(&self.path, e))?;
        Ok(true)
    }

    /// This batch with all columns of the file.
    fn read_whole(&self) -> Result<RecordBatch, IngestError> {
        let fail = |e: parquet::errors::ParquetError| IngestError::read(&self.path, e);
        let copy = self.file.try_clone().map_err(|e| IngestError::read(&self.path, e))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(copy)
            .and_then(|b| {
                b.with_offset(self.first_row).with_limit(self.rows).with_batch_size(self.rows).build()
            })
            .map_err(fail)?;
        let schema = arrow::array::RecordBatchReader::schema(&reader);
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(|e| IngestError::read(&self.path, e))?;
        arrow::compute::concat_batches(&schema, &batches).map_err(|e| IngestError::read(&self.path, e))
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
    Ok(match array.data_type() {
        DataType::Utf8 => Column::Text(array.clone()),
        DataType::LargeUtf8 | DataType::Utf8View | DataType::UInt64 => Column::Text(to(&DataType::Utf8)?),
        DataType::Dictionary(_, of) => plain(&to(of)?)?,
        DataType::Binary => Column::Binary(array.clone()),
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            Column::Binary(to(&DataType::Binary)?)
        }
        of if of.is_integer() => Column::Int(to(&DataType::Int64)?),
        DataType::Boolean => Column::Bool(array.clone()),
        DataType::Timestamp(unit, _) => {
            let per_second = match unit {
                TimeUnit::Second => 1,
                TimeUnit::Millisecond => 1_000,
                TimeUnit::Microsecond => 1_000_000,
                TimeUnit::Nanosecond => 1_000_000_000,
            };
            Column::Instant(to(&DataType::Int64)?, per_second)
        }
        DataType::Date32 | DataType::Date64 => {
            let ms = cast(array, &DataType::Timestamp(TimeUnit::Millisecond, None))?;
            Column::Instant(cast(&ms, &DataType::Int64)?, 1_000)
        }
        of if of.is_nested() => Column::List(to(&DataType::new_list(DataType::Utf8, true))?),
        DataType::Null => Column::Text(to(&DataType::Utf8)?),
        // Floats of every width, and decimals.
        _ => Column::Float(to(&DataType::Float64)?),
    })
}

impl RecordSource for ParquetSource {
    fn advance(&mut self) -> Result<Step, IngestError> {
        self.row = self.row.wrapping_add(1);
        while self.row >= self.rows {
            if !self.next_batch()? {
                return Ok(Step::End);
            }
            self.row = 0;
        }
        Ok(Step::Record)
    }

    fn value(&self, slot: usize) -> Value<'_> {
        let Some(at) = self.columns[slot] else { return Value::Absent };
        let row = self.row;
        let array = match &self.batch[at] {
            Column::Text(array)
            | Column::Binary(array)
            | Column::Int(array)
            | Column::Float(array)
            | Column::Bool(array)
            | Column::Instant(array, _)
            | Column::List(array) => array,
        };
        if array.is_null(row) {
            return Value::Null;
        }
        match &self.batch[at] {
            Column::Text(array) => text(array.as_string::<i32>().value(row)),
            Column::Binary(array) => match std::str::from_utf8(array.as_binary::<i32>().value(row)) {
                Ok(value) => text(value),
                Err(_) => Value::NotUtf8,
            },
            Column::Int(array) => Value::Int(array.as_primitive::<Int64Type>().value(row)),
            Column::Float(array) => Value::Float(array.as_primitive::<Float64Type>().value(row)),
            Column::Bool(array) => Value::Bool(array.as_boolean().value(row)),
            Column::Instant(array, per_second) => {
                let ticks = array.as_primitive::<Int64Type>().value(row);
                match *per_second {
                    1 => ticks.checked_mul(1_000).map_or(Value::Other("a time out of range"), Value::Instant),
                    per_second => Value::Instant(ticks.div_euclid(per_second / 1_000)),
                }
            }
            Column::List(array) => {
                let elements = array.as_list::<i32>().value(row);
                let elements = elements.as_string::<i32>();
                Value::List(elements.iter().flatten().map(|e| Cow::Owned(e.to_owned())).collect())
            }
        }
    }

    fn raw(&mut self) -> Result<Vec<u8>, IngestError> {
        if self.whole.is_none() {
            self.whole = Some(self.read_whole()?);
        }
        let Some(whole) = &self.whole else { return Ok(Vec::new()) };
        let fail = |e| IngestError::read(&self.path, e);
        let row = take_record_batch(whole, &UInt32Array::from(vec![self.row as u32])).map_err(fail)?;
        let mut json = Vec::new();
        let mut writer: LineDelimitedWriter<_> =
            WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut json);
        writer.write(&row).and_then(|()| writer.finish()).map_err(fail)?;
        drop(writer);
        while json.last() == Some(&b'\n') {
            json.pop();
        }
        json.truncate(self.max_record_bytes);
        Ok(json)
    }
}

fn text(value: &str) -> Value<'_> {
    if value.is_empty() { Value::Null } else { Value::Text(Cow::Borrowed(value)) }
}
