use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, ListArray, StringArray, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::PageIndexPolicy;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use proptest::prelude::*;

use super::ShardEncoder;

fn schema() -> SchemaRef {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let element = Arc::new(text("element", true));
    Arc::new(Schema::new(vec![
        text("user_id", false),
        Field::new("position", DataType::Int64, true),
        text("request_id", true),
        Field::new("genres", DataType::List(element), true),
        Field::new("pair", DataType::Struct(Fields::from(vec![text("a", true), text("b", true)])), false),
        text("event_id", true),
        text("source", false),
    ]))
}

type Row = (String, Option<i64>, Option<String>, Option<Vec<Option<String>>>, Option<String>);

fn batch(rows: &[Row]) -> RecordBatch {
    let texts = |get: fn(&Row) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(get).collect::<StringArray>())
    };
    let elements: StringArray =
        rows.iter().flat_map(|row| row.3.iter().flatten().map(Option::as_deref)).collect();
    let lengths = OffsetBuffer::from_lengths(rows.iter().map(|row| row.3.as_ref().map_or(0, Vec::len)));
    let nulls = rows.iter().map(|row| row.3.is_some()).collect::<Vec<bool>>().into();
    let element = Arc::new(Field::new("element", DataType::Utf8, true));
    let lists = ListArray::new(element, lengths, Arc::new(elements), Some(nulls));
    let schema = schema();
    let DataType::Struct(pair) = schema.field(4).data_type() else { unreachable!() };
    let pair =
        StructArray::new(pair.clone(), vec![texts(|row| Some(&row.0)), texts(|row| row.2.as_deref())], None);
    let columns: Vec<ArrayRef> = vec![
        texts(|row| Some(&row.0)),
        Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
        texts(|row| row.2.as_deref()),
        Arc::new(lists),
        Arc::new(pair),
        texts(|row| row.4.as_deref()),
        texts(|_| Some("a path that is much longer than fifteen bytes/2026-01-01.parquet")),
    ];
    RecordBatch::try_new(schema, columns).unwrap()
}

fn properties() -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap()))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_column_dictionary_enabled(ColumnPath::from("event_id"), false)
        .set_column_statistics_enabled(ColumnPath::from("request_id"), EnabledStatistics::None)
}

fn written(batches: &[RecordBatch], properties: WriterProperties) -> Bytes {
    let mut bytes = Vec::new();
    let mut writer = ShardEncoder::new(&mut bytes, schema(), properties).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    drop(writer);
    bytes.into()
}

fn metadata(file: &Bytes) -> ArrowReaderMetadata {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    ArrowReaderMetadata::load(file, options).unwrap()
}

fn read(file: &Bytes, selection: Option<RowSelection>) -> RecordBatch {
    let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file.clone(), metadata(file));
    let builder = match selection {
        Some(selection) => builder.with_row_selection(selection),
        None => builder,
    };
    let batches: Vec<RecordBatch> = builder.build().unwrap().map(Result::unwrap).collect();
    concat_batches(&schema(), &batches).unwrap()
}

fn row() -> impl Strategy<Value = Row> {
    let text = || "[a-c]{0,2}|[a-d]{14,17}|.{0,20}";
    (
        text(),
        prop::option::of(any::<i64>()),
        prop::option::of(text()),
        prop::option::of(prop::collection::vec(prop::option::of(text()), 0..3)),
        prop::option::of(text()),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(
        runs in prop::collection::vec((row(), 1..40usize), 0..60),
        batch_rows in 1..300usize,
        group_rows in 1..400usize,
        page_rows in 1..100usize,
        group_bytes in 1..20_000usize,
    ) {
        let rows: Vec<Row> =
            runs.into_iter().flat_map(|(row, times)| std::iter::repeat_n(row, times)).collect();
        let all = batch(&rows);
        let batches: Vec<RecordBatch> = rows.chunks(batch_rows).map(batch).collect();
        let properties = properties()
            .set_max_row_group_row_count(Some(group_rows))
            .set_max_row_group_bytes(Some(group_bytes))
            .set_data_page_row_count_limit(page_rows)
            .build();
        let file = written(&batches, properties);
        prop_assert_eq!(&read(&file, None), &all);
        // Rows in the middle are found by the offsets of pages.
        let (third, end) = (rows.len() / 3, rows.len() - rows.len() / 3);
        let selection = RowSelection::from_consecutive_ranges(std::iter::once(third..end), rows.len());
        prop_assert_eq!(read(&file, Some(selection)), all.slice(third, end - third));
        let groups = metadata(&file);
        for group in groups.metadata().row_groups() {
            prop_assert!(group.num_rows() as usize <= group_rows);
        }
    }
}

/// The figures of a file that this module and the library write alike.
#[test]
fn metadata_is_the_librarys() {
    let rows: Vec<Row> = (0..50_000)
        .map(|n| {
            let request = (n % 7 != 0).then(|| format!("request {}", n / 5));
            (format!("u{}", n * n % 997), Some(n), request, None, Some(format!("{n:x}")))
        })
        .collect();
    let all = batch(&rows);
    let ours = written(std::slice::from_ref(&all), properties().build());
    let mut library = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut library, schema(), Some(properties().build())).unwrap();
    writer.write(&all).unwrap();
    writer.close().unwrap();
    let library = Bytes::from(library);
    assert_eq!(read(&ours, None), all);
    let (ours_read, library_read) = (metadata(&ours), metadata(&library));
    let (one, other) = (ours_read.metadata(), library_read.metadata());
    assert_eq!(one.file_metadata().key_value_metadata(), other.file_metadata().key_value_metadata());
    assert_eq!(one.row_groups().len(), 1);
    for (column, expected) in one.row_group(0).columns().iter().zip(other.row_group(0).columns()) {
        let path = column.column_path().string();
        assert_eq!(column.num_values(), expected.num_values(), "{path}");
        assert_eq!(column.compression(), expected.compression(), "{path}");
        let of = |column: &parquet::file::metadata::ColumnChunkMetaData| {
            let statistics = column.statistics()?;
            Some((
                statistics.min_bytes_opt().map(<[u8]>::to_vec),
                statistics.max_bytes_opt().map(<[u8]>::to_vec),
                statistics.null_count_opt(),
            ))
        };
        if path != "source" {
            assert_eq!(of(column), of(expected), "{path}");
        }
        let (size, expected) = (column.compressed_size(), expected.compressed_size());
        assert!(size <= expected + expected / 20 + 200, "{path}: {size} bytes, {expected} of the library");
    }
    let pages = |metadata: &ArrowReaderMetadata| {
        let offsets = metadata.metadata().offset_index().unwrap();
        offsets[0].iter().map(|column| column.page_locations().len()).collect::<Vec<_>>()
    };
    assert_eq!(pages(&ours_read)[0], pages(&library_read)[0]);
}

#[test]
fn texts_that_do_not_repeat_end_a_row_group() {
    let rows: Vec<Row> = (0..60_000).map(|n| (format!("{n:>64}"), None, None, None, None)).collect();
    let file = written(&[batch(&rows)], properties().build());
    assert_eq!(read(&file, None), batch(&rows));
    let groups = metadata(&file).metadata().num_row_groups();
    assert!((3..=5).contains(&groups), "{groups} row groups");
}

#[test]
fn long_texts_end_a_row_group() {
    let rows: Vec<Row> = (0..40)
        .map(|n| (format!("{n}").repeat(300_000), None, Some("x".repeat(600_000)), None, None))
        .collect();
    let file = written(&[batch(&rows)], properties().build());
    assert_eq!(read(&file, None), batch(&rows));
    let groups = metadata(&file).metadata().num_row_groups();
    assert!((8..=20).contains(&groups), "{groups} row groups");
}
