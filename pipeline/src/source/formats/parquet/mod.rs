//! Parquet files, batch by batch.
//!
//! ```text
//!   file ─▶ its physical values ([`meaning`]) ─▶ cells ─▶ values ─▶ accepted, or rejected
//!                                                                     └─▶ JSON of the whole row ([`JsonWriter`])
//! ```
//!
//! A rejected row is kept with all its columns. If all columns are wanted, the batch has them. Otherwise the
//! rejected rows of a row group are read again together after the row group has been read ([`WholeRows`]).
//!
//! Memory: for each block in flight, one batch of the wanted columns and the pages that it points into. A
//! batch with much text is cut into several blocks.

mod meaning;
mod stored;

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
    RowSelection,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaDataOptions, ParquetMetaDataReader, ParquetStatisticsPolicy};

use super::super::error::SourceError;
use super::super::files::{ByteCount, InputFile, ReadOptions, open_parquet};
use super::super::record::{Raw, Records, Step};
use super::columnar::{
    Cells, JsonWriter, Meaning, Shape, SlotPath, cells, cut, locate_inside, refuse_short_times,
};
use crate::records::{Fields, Value, Vector, Wanted};
use meaning::{meanings, shapes, with_views, without_annotations};
use stored::ParquetFile;

const BATCH_ROWS: usize = 8_192;

/// Rejected rows that are read again at a time.
const AGAIN_ROWS: usize = 256;

/// The positions and shapes of the wanted columns.
pub(crate) struct ParquetLayout {
    /// Slot → column of the batch, and the way to a field inside it.
    columns: Vec<Option<SlotPath>>,
    /// Shapes of the batch's columns.
    shapes: Vec<Shape>,
    /// Whether the batch has all columns of the file.
    complete: bool,
    pub(crate) whole: Arc<WholeRows>,
}

/// Reads rows of a file with all their columns.
pub(crate) struct WholeRows {
    path: String,
    file: ParquetFile,
    metadata: ArrowReaderMetadata,
    names: Vec<String>,
    /// Which columns events are made of.
    wanted: Vec<bool>,
    shapes: Vec<Shape>,
    max_record_bytes: usize,
    /// The row after each row group.
    ends: Vec<u64>,
}

/// The batches of a file.
pub(crate) struct ParquetBlocks {
    path: String,
    reader: ParquetRecordBatchReader,
    rows_read: usize,
    shapes: Vec<Shape>,
    /// Parts of the last batch.
    parts: VecDeque<ParquetRows>,
    progress: Progress,
}

/// Consecutive rows of a file.
pub(crate) struct ParquetRows {
    batch: RecordBatch,
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

/// An opened file with its schema, before a row is read.
struct Opened {
    file: ParquetFile,
    metadata: ArrowReaderMetadata,
    names: Vec<String>,
    shapes: Vec<Shape>,
    /// Slot → column of the file, and the way to a field inside it.
    located: Vec<Option<SlotPath>>,
}

fn examine(
    file: &InputFile,
    wanted: &[Wanted],
    handle: std::fs::File,
    check_times: bool,
) -> Result<Opened, SourceError> {
    let fail = |e: ParquetError| SourceError::read(&file.source, e);
    let stored = ParquetFile::new(handle).map_err(|e| SourceError::read(&file.source, e))?;
    let mut options = ParquetMetaDataOptions::new();
    options.set_column_stats_policy(ParquetStatisticsPolicy::SkipAll);
    let footer = ParquetMetaDataReader::new().with_metadata_options(Some(options));
    let footer = footer.parse_and_finish(&stored).map_err(fail)?;
    let footer = footer.file_metadata();
    let meanings = meanings(footer.schema_descr(), footer.key_value_metadata());
    let bare = without_annotations(footer.schema_descr()).map_err(fail)?;
    let options = ArrowReaderOptions::new()
        .with_skip_arrow_metadata(true)
        .with_column_stats_policy(ParquetStatisticsPolicy::SkipAll)
        .with_parquet_schema(Arc::new(bare));
    let metadata = ArrowReaderMetadata::load(&stored, options).map_err(fail)?;
    let options = ArrowReaderOptions::new().with_schema(Arc::new(with_views(metadata.schema())));
    let metadata = ArrowReaderMetadata::try_new(metadata.metadata().clone(), options).map_err(fail)?;
    let names: Vec<String> = metadata.schema().fields().iter().map(|f| f.name().clone()).collect();
    let shapes = shapes(metadata.schema(), meanings).ok_or_else(|| SourceError::NotTheFormat {
        path: file.source.clone(),
        problem: "has columns that cannot be told apart".into(),
    })?;
    let located = locate_inside(file, wanted, &names, &shapes)?;
    for (wanted, at) in wanted.iter().zip(&located) {
        if let Some(shape) = at.as_ref().and_then(|(at, path)| shapes[*at].inside(path))
            && !shape.is_readable()
        {
            return Err(SourceError::ColumnType {
                path: file.source.clone(),
                column: wanted.column.clone(),
                found: shape.describe(),
                key: wanted.key.clone(),
            });
        }
    }
    for (wanted, at) in wanted.iter().zip(&located) {
        let root = at.as_ref().filter(|(_, path)| path.is_empty()).map(|(at, _)| *at);
        let of = root.map(|at| (&shapes[at], metadata.schema().field(at).data_type()));
        let short = matches!(
            of,
            Some((Shape::Leaf(Meaning::Half), _) | (Shape::Leaf(Meaning::Float), DataType::Float32))
        );
        refuse_short_times(file, wanted, short, check_times)?;
    }
    Ok(Opened { file: stored, metadata, names, shapes, located })
}

/// Refuses a file whose wanted columns are missing or cannot be read, before any row of any file is read. A
/// packed file is checked when it is opened for reading.
pub(crate) fn check_parquet(
    file: &InputFile,
    wanted: &[Wanted],
    reading: &ReadOptions,
) -> Result<(), SourceError> {
    if !file.is_seekable() {
        return Ok(());
    }
    let handle = open_parquet(file, &reading.unpacking, &ByteCount::default())?;
    examine(file, wanted, handle, reading.check_times).map(drop)
}

/// A column of a Parquet file, or a field inside one by its path.
pub(crate) struct ParquetColumn {
    pub(crate) name: String,
    /// Whether values can be read from it.
    pub(crate) is_readable: bool,
}

/// Returns the columns of `file`, fields of structs apart, and the number of its rows.
pub(crate) fn parquet_columns(
    file: &InputFile,
    reading: &ReadOptions,
) -> Result<(Vec<ParquetColumn>, u64), SourceError> {
    fn add(name: String, shape: &Shape, columns: &mut Vec<ParquetColumn>) {
        match shape {
            Shape::Struct(fields) => {
                fields.iter().for_each(|(field, shape)| add(format!("{name}.{field}"), shape, columns));
            }
            shape => columns.push(ParquetColumn { name, is_readable: shape.is_readable() }),
        }
    }
    let handle = open_parquet(file, &reading.unpacking, &ByteCount::default())?;
    let opened = examine(file, &[], handle, false)?;
    let mut columns = Vec::new();
    opened.names.iter().zip(&opened.shapes).for_each(|(name, shape)| add(name.clone(), shape, &mut columns));
    let rows = opened.metadata.metadata().file_metadata().num_rows();
    Ok((columns, u64::try_from(rows).unwrap_or(0)))
}

/// Opens `file` and finds the wanted columns.
pub(crate) fn open_parquet_blocks(
    file: &InputFile,
    wanted: &[Wanted],
    reading: &ReadOptions,
    count: &ByteCount,
) -> Result<(ParquetLayout, ParquetBlocks), SourceError> {
    let fail = |e: ParquetError| SourceError::read(&file.source, e);
    let handle = open_parquet(file, &reading.unpacking, count)?;
    let Opened { file: stored, metadata, names, shapes, located } =
        examine(file, wanted, handle, reading.check_times)?;
    let mut roots: Vec<usize> = located.iter().flatten().map(|(at, _)| *at).collect();
    roots.sort_unstable();
    roots.dedup();
    let is_wanted = (0..shapes.len()).map(|at| roots.binary_search(&at).is_ok()).collect();
    let columns = located.into_iter().map(|found| {
        let (at, path) = found?;
        Some((roots.binary_search(&at).ok()?, path))
    });
    let columns = columns.collect();
    let read: Vec<Shape> = roots.iter().map(|&at| shapes[at].clone()).collect();
    let complete = roots.len() == shapes.len();
    let footer = metadata.metadata();
    let rows = u64::try_from(footer.file_metadata().num_rows()).unwrap_or(0);
    let ends = footer.row_groups().iter().scan(0, |end, group| {
        *end += u64::try_from(group.num_rows()).unwrap_or(0);
        Some(*end)
    });
    let ends = ends.collect();
    // The bytes of a packed file were counted while it was unpacked.
    let bytes = if file.is_seekable() { file.bytes } else { 0 };
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(stored.clone(), metadata.clone());
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().map_err(fail)?;
    let path = file.source.clone();
    let max_record_bytes = reading.max_record_bytes;
    let whole = WholeRows {
        path: path.clone(),
        file: stored,
        metadata,
        names,
        wanted: is_wanted,
        shapes,
        max_record_bytes,
        ends,
    };
    let layout = ParquetLayout { columns, shapes: read.clone(), complete, whole: Arc::new(whole) };
    let progress = Progress { count: count.clone(), bytes, rows, counted: 0 };
    let blocks = ParquetBlocks { path, reader, rows_read: 0, shapes: read, parts: VecDeque::new(), progress };
    Ok((layout, blocks))
}

impl ParquetBlocks {
    pub(crate) fn next(&mut self) -> Result<Option<ParquetRows>, SourceError> {
        if let Some(part) = self.parts.pop_front() {
            return Ok(Some(part));
        }
        let Some(batch) = self.reader.next() else { return Ok(None) };
        let batch = batch.map_err(|e| SourceError::read(&self.path, e))?;
        self.rows_read += batch.num_rows();
        self.progress.at_row(self.rows_read);
        self.parts =
            cut(&batch, &self.path, &self.shapes)?.into_iter().map(|batch| ParquetRows { batch }).collect();
        Ok(self.parts.pop_front())
    }
}

impl WholeRows {
    /// The number of rows in row groups that are read completely, when `read` rows of the file have been read.
    pub(crate) fn complete(&self, read: u64) -> u64 {
        let groups = self.ends.partition_point(|&end| end <= read);
        groups.checked_sub(1).map_or(0, |last| self.ends[last])
    }

    /// Reads `rows`, in order, with all their columns, as JSON.
    pub(crate) fn read<E: From<SourceError>>(
        &self,
        mut rows: &[u64],
        mut take: impl FnMut(Vec<u8>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(&first) = rows.first() {
            let group = self.ends.partition_point(|&end| end <= first);
            let end = self.ends.get(group).copied().unwrap_or(u64::MAX);
            let start = group.checked_sub(1).map_or(0, |before| self.ends[before]);
            let here;
            (here, rows) = rows.split_at(rows.partition_point(|&row| row < end));
            let ranges = here.iter().map(|row| (row - start) as usize..(row - start) as usize + 1);
            let selection = RowSelection::from_consecutive_ranges(ranges, (end - start) as usize);
            let fail = |e: ParquetError| SourceError::read(&self.path, e);
            let reader =
                ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.clone(), self.metadata.clone())
                    .with_row_groups(vec![group])
                    .with_row_selection(selection)
                    .with_batch_size(AGAIN_ROWS)
                    .build()
                    .map_err(fail)?;
            let mut read = 0;
            for batch in reader {
                let batch = batch.map_err(|e| SourceError::read(&self.path, e))?;
                let columns = cells(&batch, &self.path, &self.shapes)?;
                for row in 0..batch.num_rows() {
                    take(JsonWriter::row(&self.names, &self.wanted, &columns, row, self.max_record_bytes))?;
                    read += 1;
                }
            }
            if read != here.len() {
                let text = format!("{read} rows were found again where {} were before", here.len());
                return Err(SourceError::read(&self.path, text).into());
            }
        }
        Ok(())
    }
}

/// The rows of a batch.
pub(crate) struct ParquetRecords<'a> {
    layout: &'a ParquetLayout,
    rows: usize,
    columns: Vec<Cells>,
    /// The row after the current one.
    next: usize,
}

impl<'a> ParquetRecords<'a> {
    pub(crate) fn new(layout: &'a ParquetLayout, rows: &ParquetRows) -> Result<Self, SourceError> {
        let columns = cells(&rows.batch, &layout.whole.path, &layout.shapes)?;
        Ok(Self { layout, rows: rows.batch.num_rows(), columns, next: 0 })
    }

    fn row(&self) -> usize {
        self.next.saturating_sub(1)
    }
}

impl Fields for ParquetRecords<'_> {
    fn value(&self, slot: usize) -> Value<'_> {
        match &self.layout.columns[slot] {
            Some((at, path)) => self.columns[*at].value_at(path, self.row()),
            None => Value::Absent,
        }
    }
}

impl Records for ParquetRecords<'_> {
    fn advance(&mut self) -> Step {
        if self.next == self.rows {
            return Step::End;
        }
        self.next += 1;
        Step::Record
    }

    fn rows(&self) -> Option<usize> {
        Some(self.rows)
    }

    fn vector(&self, slot: usize) -> Option<Vector> {
        match &self.layout.columns[slot] {
            Some((at, path)) if path.is_empty() => self.columns[*at].vector(),
            Some(_) => None,
            None => Some(Vector::Absent),
        }
    }

    fn raw(&mut self) -> Raw {
        let whole = &self.layout.whole;
        match self.layout.complete {
            true => Raw::Bytes(JsonWriter::row(
                &whole.names,
                &whole.wanted,
                &self.columns,
                self.row(),
                whole.max_record_bytes,
            )),
            false => Raw::Again,
        }
    }

    fn done(&self) -> usize {
        0
    }
}
