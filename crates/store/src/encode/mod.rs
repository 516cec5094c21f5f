//! Encodes record batches as Parquet.
//!
//! ```text
//!   batch ─┬─ texts ──▶ codes ─▶ TextChunk ──┐
//!          └─ others ─▶ the Parquet library ─┴─▶ row group ─▶ file
//! ```
//!
//! Most of a table is texts that repeat: users, items, requests. [`TextChunk`] gives them codes in a fraction of the time that the
//! library takes, and writes pages like the library's: a dictionary, and codes in hybrid encoding. Where the library would give up
//! a dictionary that has grown large, a row group ends.

mod codes;
mod hybrid;
mod text;

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{AsArray, StringArray};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves};
use parquet::arrow::{ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata};
use parquet::errors::{ParquetError, Result};
use parquet::file::properties::{WriterProperties, WriterPropertiesPtr};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use text::{TEXTS_MAX, TextChunk};

/// Writes one Parquet file, row group by row group.
///
/// Memory: one row group of at most the properties' `max_row_group_bytes` as encoded, some 50 bytes for each different text in it,
/// and one batch.
pub(crate) struct ShardEncoder<W: Write + Send> {
    file: SerializedFileWriter<W>,
    columns: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    properties: WriterPropertiesPtr,
    /// The row group under construction.
    group: Option<RowGroup>,
}

impl<W: Write + Send> fmt::Debug for ShardEncoder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardEncoder").field("schema", &self.schema).finish_non_exhaustive()
    }
}

struct RowGroup {
    rows: usize,
    columns: Vec<Column>,
}

/// A column of a row group: the library's writers of its leaves, or a chunk of texts.
enum Column {
    Leaves(Vec<ArrowColumnWriter>),
    Text(Box<TextChunk>),
}

impl Column {
    fn bytes(&self) -> usize {
        match self {
            Self::Leaves(leaves) => leaves.iter().map(ArrowColumnWriter::get_estimated_total_bytes).sum(),
            Self::Text(texts) => texts.bytes(),
        }
    }

    fn is_full(&self) -> bool {
        matches!(self, Self::Text(texts) if texts.is_full())
    }
}

impl<W: Write + Send> ShardEncoder<W> {
    /// Writes batches of `schema` to `out`.
    pub(crate) fn new(out: W, schema: SchemaRef, mut properties: WriterProperties) -> Result<Self> {
        let columns = ArrowSchemaConverter::new().convert(&schema)?;
        add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
        let properties = Arc::new(properties);
        let file = SerializedFileWriter::new(out, columns.root_schema_ptr(), Arc::clone(&properties))?;
        let columns = ArrowRowGroupWriterFactory::new(&file, Arc::clone(&schema));
        Ok(Self { file, columns, schema, properties, group: None })
    }

    /// Appends a batch.
    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let mut rest = batch.clone();
        while rest.num_rows() > 0 {
            if self.group.is_none() {
                self.group = Some(self.begin_group()?);
            }
            let Some(group) = &mut self.group else { break };
            let rows = group.room(&self.properties).min(together(&rest));
            if rows == 0 {
                self.end_group()?;
                continue;
            }
            group.write(&self.schema, &rest.slice(0, rows))?;
            rest = rest.slice(rows, rest.num_rows() - rows);
        }
        Ok(())
    }

    /// Writes what is left, and the file's footer.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.end_group()?;
        self.file.finish().map(drop)
    }

    pub(crate) fn inner_mut(&mut self) -> &mut W {
        self.file.inner_mut()
    }

    fn begin_group(&self) -> Result<RowGroup> {
        let writers = self.columns.create_column_writers(self.file.flushed_row_groups().len())?;
        let parquet = self.file.schema_descr();
        let mut leaf = 0;
        let mut writers = writers.into_iter();
        let columns = self.schema.fields().iter().map(|field| {
            let first = leaf;
            leaf += leaves(field.data_type());
            let writers: Vec<_> = writers.by_ref().take(leaf - first).collect();
            let path = ColumnPath::from(field.name().as_str());
            let is_text = *field.data_type() == DataType::Utf8 && self.properties.dictionary_enabled(&path);
            match is_text {
                true => Column::Text(Box::new(TextChunk::new(parquet.column(first), &self.properties))),
                false => Column::Leaves(writers),
            }
        });
        Ok(RowGroup { rows: 0, columns: columns.collect() })
    }

    fn end_group(&mut self) -> Result<()> {
        let Some(group) = self.group.take() else { return Ok(()) };
        let mut to = self.file.next_row_group()?;
        for column in group.columns {
            match column {
                Column::Leaves(leaves) => {
                    for leaf in leaves {
                        leaf.close()?.append_to_row_group(&mut to)?;
                    }
                }
                Column::Text(texts) => texts.append_to(&mut to)?,
            }
        }
        to.close().map(drop)
    }
}

/// The number of leading rows, at least one, whose texts have at most [`TEXTS_MAX`] bytes in each column: a row group ends
/// between two writes.
fn together(batch: &RecordBatch) -> usize {
    let fit = |texts: &StringArray| {
        let ends = texts.value_offsets();
        ends[1..].partition_point(|end| (end - ends[0]) as usize <= TEXTS_MAX).max(1)
    };
    let columns = batch.columns().iter().filter_map(|column| column.as_string_opt::<i32>());
    columns.map(fit).fold(batch.num_rows(), usize::min)
}

/// The number of columns that a field has in a file.
fn leaves(of: &DataType) -> usize {
    let all = |fields: &[Arc<Field>]| fields.iter().map(|field| leaves(field.data_type())).sum();
    match of {
        DataType::List(element) | DataType::LargeList(element) | DataType::Map(element, _) => {
            leaves(element.data_type())
        }
        DataType::FixedSizeList(element, _) => leaves(element.data_type()),
        DataType::Struct(fields) => all(fields),
        _ => 1,
    }
}

impl RowGroup {
    /// The number of rows that may still be written.
    fn room(&self, properties: &WriterProperties) -> usize {
        /// Rows after which bytes are counted again.
        const STEP: usize = 1 << 14;
        let rows_max = properties.max_row_group_row_count().unwrap_or(usize::MAX);
        if self.rows == 0 {
            return rows_max.min(STEP);
        }
        if self.columns.iter().any(Column::is_full) {
            return 0;
        }
        let bytes: usize = self.columns.iter().map(Column::bytes).sum();
        let bytes_max = properties.max_row_group_bytes().unwrap_or(usize::MAX);
        let more = (bytes_max.saturating_sub(bytes)) / (bytes / self.rows).max(1);
        more.min(rows_max - self.rows).min(STEP)
    }

    fn write(&mut self, schema: &SchemaRef, batch: &RecordBatch) -> Result<()> {
        for ((column, field), array) in self.columns.iter_mut().zip(schema.fields()).zip(batch.columns()) {
            match column {
                Column::Leaves(writers) => {
                    for (writer, leaf) in writers.iter_mut().zip(compute_leaves(field, array)?) {
                        writer.write(&leaf)?;
                    }
                }
                Column::Text(texts) => {
                    let array = array.as_string_opt::<i32>();
                    texts.write(
                        array.ok_or_else(|| {
                            ParquetError::General(format!("`{}` is not text", field.name()))
                        })?,
                    )?;
                }
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
