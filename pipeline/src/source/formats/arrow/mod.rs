//! Arrow IPC: the stream format, and files (Feather, version 2), which are a stream between a beginning and a footer.
//!
//! ```text
//!   bytes ─▶ messages ([`messages`]) ─▶ batches ─▶ physical values ([`physical`]) ─▶ cells ─▶ values
//! ```
//!
//! Both are read from their beginning to their end, so that they may be packed or standard input. Values mean the same as in
//! Parquet: both are read through the same cells.
//!
//! Memory: one batch as it was written, dictionaries, and the converted columns of the blocks in flight.

mod messages;
mod physical;

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};

use self::messages::ArrowMessages;
use self::physical::{physical, shape, unreadable};
use super::super::error::SourceError;
use super::super::files::{ByteCount, InputFile, ReadOptions};
use super::super::record::{Raw, Records, Step};
use super::columnar::{Cells, JsonWriter, Shape, SlotPath, cells, cut, locate_inside, refuse_short_times};
use crate::records::{Fields, Value, Vector, Wanted};

/// The positions and shapes of the wanted columns, and those of all.
pub(crate) struct ArrowLayout {
    path: String,
    names: Vec<String>,
    /// Which columns events are made of.
    wanted: Vec<bool>,
    /// Shapes of all columns; a column that cannot be read is text for people.
    all: Vec<Shape>,
    /// Shapes of the wanted columns.
    shapes: Vec<Shape>,
    /// Slot → wanted column, and the way to a field inside it.
    columns: Vec<Option<SlotPath>>,
    max_record_bytes: usize,
}

/// The batches of a file.
pub(crate) struct ArrowBlocks {
    layout: Arc<ArrowLayout>,
    messages: ArrowMessages,
    parts: VecDeque<ArrowRows>,
}

/// Consecutive rows of a file.
pub(crate) struct ArrowRows {
    /// All columns as they are stored.
    whole: RecordBatch,
    /// The wanted columns, as physical values.
    read: RecordBatch,
}

/// Opens `file` and finds the wanted columns.
pub(crate) fn open_arrow(
    file: &InputFile,
    wanted: &[Wanted],
    reading: &ReadOptions,
    count: &ByteCount,
) -> Result<(Arc<ArrowLayout>, ArrowBlocks), SourceError> {
    let mut messages = ArrowMessages::open(file, count)?;
    let schema = messages.schema()?;
    let layout = Arc::new(layout(file, wanted, reading, &schema)?);
    Ok((Arc::clone(&layout), ArrowBlocks { layout, messages, parts: VecDeque::new() }))
}

fn layout(
    file: &InputFile,
    wanted: &[Wanted],
    reading: &ReadOptions,
    schema: &SchemaRef,
) -> Result<ArrowLayout, SourceError> {
    let names: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    let all: Vec<Shape> = schema.fields().iter().map(|field| shape(field)).collect();
    let located = locate_inside(file, wanted, &names, &all)?;
    for (wanted, (at, path)) in wanted.iter().zip(&located).filter_map(|(w, at)| Some((w, at.as_ref()?))) {
        let of = schema.field(*at).data_type();
        if all[*at].inside(path).is_some_and(|shape| !shape.is_readable()) {
            return Err(SourceError::ColumnType {
                path: file.source.clone(),
                column: wanted.column.clone(),
                found: unreadable(of, &all[*at], path),
                key: wanted.key.clone(),
            });
        }
        let is_short = path.is_empty() && matches!(of, DataType::Float16 | DataType::Float32);
        refuse_short_times(file, wanted, is_short, reading.check_times)?;
    }
    let mut roots: Vec<usize> = located.iter().flatten().map(|(at, _)| *at).collect();
    roots.sort_unstable();
    roots.dedup();
    let columns = located.into_iter().map(|found| {
        let (at, path) = found?;
        Some((roots.binary_search(&at).ok()?, path))
    });
    Ok(ArrowLayout {
        path: file.source.clone(),
        columns: columns.collect(),
        wanted: (0..all.len()).map(|at| roots.binary_search(&at).is_ok()).collect(),
        shapes: roots.iter().map(|&at| all[at].clone()).collect(),
        names,
        all,
        max_record_bytes: reading.max_record_bytes,
    })
}

impl ArrowLayout {
    /// The columns of `batch` that `keep` names, as physical values.
    fn physical(
        &self,
        batch: &RecordBatch,
        keep: impl Fn(usize) -> bool,
    ) -> Result<RecordBatch, SourceError> {
        let fail = |e| SourceError::read(&self.path, e);
        let kept = batch.columns().iter().enumerate().filter(|(at, _)| keep(*at));
        let columns = kept.map(|(at, column)| Ok((at.to_string(), physical(column)?)));
        let columns = columns.collect::<Result<Vec<_>, _>>().map_err(fail)?;
        let fields = columns
            .iter()
            .map(|(name, array)| arrow::datatypes::Field::new(name, array.data_type().clone(), true));
        let schema = Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()));
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        RecordBatch::try_new_with_options(schema, arrays, &options).map_err(fail)
    }
}

impl ArrowBlocks {
    pub(crate) fn next(&mut self) -> Result<Option<ArrowRows>, SourceError> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Ok(Some(part));
            }
            let Some(whole) = self.messages.next()? else { return Ok(None) };
            let layout = &self.layout;
            let read = layout.physical(&whole, |at| layout.wanted[at])?;
            let mut start = 0;
            for part in cut(&read, &layout.path, &layout.shapes)? {
                let rows = part.num_rows();
                self.parts.push_back(ArrowRows { whole: whole.slice(start, rows), read: part });
                start += rows;
            }
        }
    }
}

/// The rows of a part of a batch.
pub(crate) struct ArrowRecords<'a> {
    layout: &'a ArrowLayout,
    rows: &'a ArrowRows,
    columns: Vec<Cells>,
    /// The row after the current one.
    next: usize,
    /// All columns, after the first rejection.
    whole: OnceCell<Vec<Cells>>,
}

impl<'a> ArrowRecords<'a> {
    pub(crate) fn new(layout: &'a ArrowLayout, rows: &'a ArrowRows) -> Result<Self, SourceError> {
        let columns = cells(&rows.read, &layout.path, &layout.shapes)?;
        Ok(Self { layout, rows, columns, next: 0, whole: OnceCell::new() })
    }

    fn row(&self) -> usize {
        self.next.saturating_sub(1)
    }

    /// All columns; none if they cannot be converted.
    fn whole(&self) -> &[Cells] {
        self.whole.get_or_init(|| {
            let converted = self.layout.physical(&self.rows.whole, |_| true);
            converted.and_then(|batch| cells(&batch, &self.layout.path, &self.layout.all)).unwrap_or_default()
        })
    }
}

impl Fields for ArrowRecords<'_> {
    fn value(&self, slot: usize) -> Value<'_> {
        match &self.layout.columns[slot] {
            Some((at, path)) => self.columns[*at].value_at(path, self.row()),
            None => Value::Absent,
        }
    }
}

impl Records for ArrowRecords<'_> {
    fn advance(&mut self) -> Step {
        if self.next == self.rows.read.num_rows() {
            return Step::End;
        }
        self.next += 1;
        Step::Record
    }

    fn rows(&self) -> Option<usize> {
        Some(self.rows.read.num_rows())
    }

    fn vector(&self, slot: usize) -> Option<Vector> {
        match &self.layout.columns[slot] {
            Some((at, path)) if path.is_empty() => self.columns[*at].vector(),
            Some(_) => None,
            None => Some(Vector::Absent),
        }
    }

    fn raw(&mut self) -> Raw {
        let ArrowLayout { names, wanted, max_record_bytes, .. } = self.layout;
        Raw::Bytes(JsonWriter::row(names, wanted, self.whole(), self.row(), *max_record_bytes))
    }

    fn done(&self) -> usize {
        0
    }
}
