//! Records as Parquet.
//!
//! Memory: one batch of rows and one row group as it is encoded.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufWriter;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Float64Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as Codec, GzipLevel, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use schemas::tables::{Reason, timestamp};

use crate::day::LogRecord;
use crate::{Compression, OUT_OF_RANGE_MS, OVER_LONG_BYTES};

const BATCH_ROWS: usize = 16_384;
const ROW_GROUP_ROWS: usize = 1 << 18;

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let field = |name: &str, of: DataType| Field::new(name, of, true);
    Arc::new(Schema::new(vec![
        field("event_id", DataType::Utf8),
        field("user_id", DataType::Utf8),
        field("item_id", DataType::Utf8),
        field("ts", timestamp()),
        field("request_id", DataType::Utf8),
        field("request_ts", timestamp()),
        field("action", DataType::Utf8),
        field("value", DataType::Float64),
    ]))
});

/// A Parquet file.
pub(crate) struct ParquetWriter {
    writer: ArrowWriter<BufWriter<File>>,
    rows: usize,
    event_id: StringBuilder,
    user_id: StringBuilder,
    item_id: StringBuilder,
    ts: TimestampMillisecondBuilder,
    request_id: StringBuilder,
    request_ts: TimestampMillisecondBuilder,
    action: StringBuilder,
    value: Float64Builder,
}

impl ParquetWriter {
    pub(crate) fn create(file: File, compression: Compression) -> Result<Self, ParquetError> {
        let codec = match compression {
            Compression::None => Codec::UNCOMPRESSED,
            Compression::Gzip => Codec::GZIP(GzipLevel::try_new(1)?),
            Compression::Zstd => Codec::ZSTD(ZstdLevel::try_new(1)?),
        };
        let properties = WriterProperties::builder()
            .set_compression(codec)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            // All values differ, so the writer would abandon a dictionary.
            .set_column_dictionary_enabled("event_id".into(), false)
            .build();
        let writer = ArrowWriter::try_new(BufWriter::new(file), SCHEMA.clone(), Some(properties))?;
        let time = || TimestampMillisecondBuilder::new().with_data_type(timestamp());
        Ok(Self {
            writer,
            rows: 0,
            event_id: StringBuilder::new(),
            user_id: StringBuilder::new(),
            item_id: StringBuilder::new(),
            ts: time(),
            request_id: StringBuilder::new(),
            request_ts: time(),
            action: StringBuilder::new(),
            value: Float64Builder::new(),
        })
    }
    pub(crate) fn write(&mut self, LogRecord { event, flaw, .. }: &LogRecord) -> Result<(), ParquetError> {
        text(&mut self.event_id, format_args!("{:016x}", event.id));
        match flaw {
            Some(Reason::MissingField) => self.user_id.append_null(),
            Some(Reason::TooLong) => {
                text(&mut self.user_id, format_args!("{:u>OVER_LONG_BYTES$}", event.user))
            }
            _ => text(&mut self.user_id, format_args!("u{}", event.user)),
        }
        text(&mut self.item_id, format_args!("t{}", event.item));
        let off = if *flaw == Some(Reason::TimeOutOfRange) { OUT_OF_RANGE_MS } else { 0 };
        self.ts.append_value(event.ts + off);
        match event.request {
            Some(request) => text(&mut self.request_id, format_args!("{:016x}", request.id)),
            None => self.request_id.append_null(),
        }
        self.request_ts.append_option(event.request.map(|request| request.ts));
        self.action.append_value(event.action.name());
        let listened = event.listened.map(|tenths| f64::from(tenths) / 10.0);
        self.value.append_option(if *flaw == Some(Reason::WrongType) {
            Some(f64::INFINITY)
        } else {
            listened
        });
        self.rows += 1;
        if self.rows >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), ParquetError> {
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.event_id.finish()),
            Arc::new(self.user_id.finish()),
            Arc::new(self.item_id.finish()),
            Arc::new(self.ts.finish()),
            Arc::new(self.request_id.finish()),
            Arc::new(self.request_ts.finish()),
            Arc::new(self.action.finish()),
            Arc::new(self.value.finish()),
        ];
        self.writer.write(&RecordBatch::try_new(SCHEMA.clone(), columns)?)
    }

    pub(crate) fn finish(mut self) -> Result<(), ParquetError> {
        self.flush()?;
        self.writer.close().map(drop)
    }
}

fn text(column: &mut StringBuilder, text: std::fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = column.write_fmt(text);
    column.append_value("");
}
