//! Arrow files mean the same as Parquet files with the same columns, or are refused by name.

use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow::array::*;
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::*;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{FileWriter, IpcWriteOptions, StreamWriter};
use schemas::config::Format;

use super::*;

pub(super) fn file(batch: &RecordBatch) -> Vec<u8> {
    file_with(batch, IpcWriteOptions::default())
}

/// A file as Feather writes it, with packed buffers.
pub(super) fn packed(batch: &RecordBatch) -> Vec<u8> {
    file_with(
        batch,
        IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap(),
    )
}

fn file_with(batch: &RecordBatch, options: IpcWriteOptions) -> Vec<u8> {
    let mut writer = FileWriter::try_new_with_options(Vec::new(), &batch.schema(), options).unwrap();
    writer.write(batch).unwrap();
    // Arrow writes an empty run as one that it does not read.
    if !batch.schema().fields().iter().any(|field| matches!(field.data_type(), DataType::RunEndEncoded(..))) {
        writer.write(&batch.slice(0, 0)).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

pub(super) fn stream(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    for row in 0..batch.num_rows() {
        writer.write(&batch.slice(row, 1)).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn parquet(batch: &RecordBatch) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn nulls(array: impl Array + 'static) -> ArrayRef {
    Arc::new(array)
}

/// Columns of three rows.
fn columns() -> Vec<(&'static str, ArrayRef)> {
    let times = || vec![Some(1_700_000_000_123), None, Some(-1)];
    let texts = || vec![Some("a"), None, Some("\"ü\"")];
    let decimals = || vec![Some(1_234_500), None, Some(-700)];
    let list = |values: ArrayRef| -> ArrayRef {
        let field = Arc::new(Field::new("item", values.data_type().clone(), true));
        let nulls = NullBuffer::from(vec![true, false, true]);
        Arc::new(ListArray::new(field, OffsetBuffer::new(vec![0, 2, 2, 3].into()), values, Some(nulls)))
    };
    let of_three = || Arc::new(StringArray::from(texts())) as ArrayRef;
    vec![
        ("bool", nulls(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("i8", nulls(Int8Array::from(vec![Some(-128), None, Some(127)]))),
        ("i64", nulls(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)]))),
        ("u16", nulls(UInt16Array::from(vec![Some(u16::MAX), None, Some(0)]))),
        ("u32", nulls(UInt32Array::from(vec![Some(u32::MAX), None, Some(1_700_000_000)]))),
        ("u64", nulls(UInt64Array::from(vec![Some(u64::MAX), None, Some(1)]))),
        (
            "f16",
            nulls(Float16Array::from(vec![
                Some(half::f16::from_f32(1.5)),
                None,
                Some(half::f16::from_f32(7.0)),
            ])),
        ),
        ("f32", nulls(Float32Array::from(vec![Some(1.5), Some(f32::NAN), Some(7.0)]))),
        ("f64", nulls(Float64Array::from(vec![Some(0.1), None, Some(1_700_000_000.5)]))),
        ("decimal 128", nulls(Decimal128Array::from(decimals()).with_precision_and_scale(20, 2).unwrap())),
        (
            "decimal 128 whole",
            nulls(Decimal128Array::from(decimals()).with_precision_and_scale(38, 0).unwrap()),
        ),
        (
            "decimal 256",
            nulls(
                Decimal256Array::from(vec![Some(i256::MAX), None, Some(i256::from_i128(-5))])
                    .with_precision_and_scale(76, 3)
                    .unwrap_or_else(|_| panic!("scale")),
            ),
        ),
        ("text", of_three()),
        ("large text", nulls(LargeStringArray::from(texts()))),
        ("text views", nulls(StringViewArray::from(texts()))),
        ("bytes", nulls(BinaryArray::from(vec![Some(&b"a"[..]), None, Some(b"\xff\xfe")]))),
        ("fixed bytes", nulls(FixedSizeBinaryArray::try_from_iter([b"ab", b"cd", b"\xffe"].iter()).unwrap())),
        ("dictionary", nulls(DictionaryArray::<Int8Type>::from_iter(texts()))),
        ("date 32", nulls(Date32Array::from(vec![Some(19_000), None, Some(-1)]))),
        ("date 64", nulls(Date64Array::from(vec![Some(86_400_000), None, Some(0)]))),
        ("s", nulls(TimestampSecondArray::from(vec![Some(1_700_000_000), None, Some(i64::MAX)]))),
        ("ms", nulls(TimestampMillisecondArray::from(times()).with_timezone("UTC"))),
        ("us", nulls(TimestampMicrosecondArray::from(times()))),
        ("ns", nulls(TimestampNanosecondArray::from(times()).with_timezone("Europe/Berlin"))),
        ("time of day", nulls(Time64MicrosecondArray::from(times()))),
        ("duration", nulls(DurationMillisecondArray::from(times()))),
        ("null", nulls(NullArray::new(3))),
        ("list", list(of_three())),
        ("list of numbers", list(nulls(UInt8Array::from(vec![1, 2, 3])))),
        ("list of lists", list(list(of_three()))),
        (
            "struct",
            nulls(StructArray::from(vec![
                (Arc::new(Field::new("id", DataType::Utf8, true)), of_three()),
                (Arc::new(Field::new("at", DataType::Int32, true)), nulls(Int32Array::from(vec![1, 2, 3]))),
            ])),
        ),
    ]
}

/// What came of a file whose `field` is read from `column`.
async fn outcome(
    name: &str,
    bytes: &[u8],
    field: &str,
    column: &str,
) -> Result<(Vec<String>, Vec<String>), String> {
    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    let columns = &mut place.config.events.columns;
    match field {
        "item_id" => columns.item_id = column.into(),
        "ts" => columns.ts = column.into(),
        _ => columns.value = Some(column.into()),
    }
    match place.ingest_file(name, bytes).await {
        Ok(report) => {
            assert_eq!(report.events.read, 3);
            let lines = if report.events.accepted > 0 { place.lines().await } else { Vec::new() };
            let dead = if report.events.dead_letters > 0 { place.dead_letters().await } else { Vec::new() };
            let dead = dead
                .into_iter()
                .map(|(at, reason, value)| format!("{at} {reason} {}", String::from_utf8_lossy(&value)));
            Ok((lines.into_iter().map(|line| line.replace(name, "log")).collect(), dead.collect()))
        }
        Err(error) => {
            Err(error.to_string().replace(name, "log").split(&['/', ' '][..]).next_back().unwrap().into())
        }
    }
}

#[tokio::test]
async fn every_type_means_the_same_as_in_parquet() {
    let (mut read, mut rejected, mut refused) = (0, 0, 0);
    for (name, column) in columns() {
        let batch = RecordBatch::try_from_iter_with_nullable(vec![
            ("user_id", nulls(StringArray::from(vec!["u", "v", "w"])), false),
            ("item_id", nulls(StringArray::from(vec!["i", "j", "k"])), false),
            ("ts", nulls(Int64Array::from(vec![1, 2, 3])), false),
            (name, column.clone(), true),
        ])
        .unwrap();
        let column = if name == "struct" { "struct.id" } else { name };
        for field in ["item_id", "ts", "value"] {
            let expected = outcome("log.parquet", &parquet(&batch), field, column).await;
            for bytes in [file(&batch), packed(&batch), stream(&batch)] {
                assert_eq!(outcome("log.arrow", &bytes, field, column).await, expected, "{name} as {field}");
            }
            match expected {
                Ok((lines, dead)) => {
                    read += lines.len();
                    rejected += dead.len();
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read > 80 && rejected > 40 && refused > 3, "{read} {rejected} {refused}");
}

#[tokio::test]
async fn layouts_that_parquet_does_not_have_are_read_too() {
    let texts = || Arc::new(StringArray::from(vec!["a", "b", "c"])) as ArrayRef;
    let field = || Arc::new(Field::new("item", DataType::Utf8, true));
    let runs =
        RunArray::<Int32Type>::try_new(&Int32Array::from(vec![2, 3]), &StringArray::from(vec!["a", "b"]))
            .unwrap();
    let lists: Vec<(ArrayRef, [&str; 3])> = vec![
        (Arc::new(runs), ["a", "a", "b"]),
        (
            Arc::new(DictionaryArray::new(
                Int16Array::from(vec![2, 0, 2]),
                Arc::new(Decimal64Array::from(vec![70, 0, 300]).with_precision_and_scale(10, 1).unwrap()),
            )),
            ["30", "7", "30"],
        ),
        (Arc::new(FixedSizeListArray::new(field(), 1, texts(), None)), ["a", "b", "c"]),
        (
            Arc::new(LargeListArray::new(
                field(),
                OffsetBuffer::new(vec![0i64, 1, 2, 3].into()),
                texts(),
                None,
            )),
            ["a", "b", "c"],
        ),
        (
            Arc::new(ListViewArray::new(
                field(),
                ScalarBuffer::from(vec![2, 0, 1]),
                ScalarBuffer::from(vec![1, 1, 1]),
                texts(),
                None,
            )),
            ["c", "a", "b"],
        ),
    ];
    for (array, expected) in lists {
        let of = array.data_type().clone();
        let batch = RecordBatch::try_from_iter(vec![
            ("user_id", nulls(StringArray::from(vec!["u", "v", "w"]))),
            ("item_id", array),
            ("ts", nulls(Int64Array::from(vec![1, 2, 3]))),
        ])
        .unwrap();
        let mut place = Place::new();
        if of.is_nested() && !matches!(of, DataType::RunEndEncoded(..) | DataType::Dictionary(..)) {
            place.config.events.explode.columns = vec!["item_id".into()];
        }
        place.ingest_file("log.arrow", file(&batch)).await.unwrap();
        let lines = place.lines().await;
        let items: Vec<_> = lines.iter().map(|line| line.split(' ').nth(1).unwrap()).collect();
        assert_eq!(items, expected, "{of}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_refused_by_name_and_kept_beside_what_can() {
    let mut union = UnionBuilder::new_dense();
    union.append::<Int32Type>("a", 1).unwrap();
    union.append::<Float64Type>("b", 2.5).unwrap();
    let batch = RecordBatch::try_from_iter(vec![
        ("user_id", nulls(StringArray::from(vec!["u", "v"]))),
        ("item_id", nulls(StringArray::from(vec![Some("i"), None]))),
        ("ts", nulls(Int64Array::from(vec![1, 2]))),
        ("both", Arc::new(union.build().unwrap()) as ArrayRef),
        ("months", nulls(IntervalYearMonthArray::from(vec![1, 14]))),
    ])
    .unwrap();
    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    for (column, says) in [("both", "a union"), ("months", "an interval")] {
        place.config.events.columns.value = Some(column.into());
        let error = place.ingest_file("log.arrow", file(&batch)).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("`{column}` is {says}")) && error.contains("columns.value"),
            "{error}"
        );
    }
    place.config.events.columns.value = None;
    let report = place.ingest_file("log.arrow", file(&batch)).await.unwrap();
    assert_eq!((report.events.accepted, report.events.dead_letters), (1, 1));
    let (_, _, value) = &place.dead_letters().await[0];
    let value: serde_json::Value = serde_json::from_slice(value).unwrap();
    assert_eq!((&value["item_id"], &value["user_id"]), (&serde_json::Value::Null, &"v".into()));
    assert!(value["both"].as_str().is_some_and(|text| text.contains("2.5")), "{value}");
    assert!(value["months"].as_str().is_some_and(|text| text.contains("1 year")), "{value}");
}

#[tokio::test]
async fn times_as_short_floats_stop_the_run() {
    let batch = RecordBatch::try_from_iter(vec![
        ("user_id", nulls(StringArray::from(vec!["u"]))),
        ("item_id", nulls(StringArray::from(vec!["i"]))),
        ("ts", nulls(Float32Array::from(vec![1.7e9]))),
    ])
    .unwrap();
    let mut place = Place::new();
    place.config.events.check_times = true;
    let error = place.ingest_file("log.arrow", file(&batch)).await.unwrap_err().to_string();
    assert!(error.contains("floats of 32 bits"), "{error}");
}

/// Damage is an error or a dead letter: nothing panics, and no length that a file only claims is allocated.
#[test]
fn damaged_files_are_errors() {
    let batch = RecordBatch::try_from_iter(vec![
        ("user_id", nulls(StringArray::from(vec!["u", "v"]))),
        ("item_id", nulls(DictionaryArray::<Int8Type>::from_iter(["i", "j"]))),
        ("ts", nulls(Int64Array::from(vec![1, 2]))),
    ])
    .unwrap();
    for bytes in [file(&batch), packed(&batch), stream(&batch)] {
        for at in 0..bytes.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= flip;
                crate::source::fuzzing::file(Format::Arrow, &damaged);
            }
            if at % 7 == 0 {
                crate::source::fuzzing::file(Format::Arrow, &bytes[..at]);
            }
        }
    }
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_an_error() {
    let batch = RecordBatch::try_from_iter(vec![
        ("user_id", nulls(StringArray::from(vec!["u", "v"]))),
        ("item_id", nulls(StringArray::from(vec!["i", "j"]))),
        ("ts", nulls(Int64Array::from(vec![1, 2]))),
    ])
    .unwrap();
    let whole = file(&batch);
    // The footer is not read.
    let end = whole.windows(8).rposition(|bytes| bytes == b"\xff\xff\xff\xff\0\0\0\0").unwrap();
    for at in (0..=end).step_by(8).chain([end - 1, end + 3]) {
        let mut place = Place::new();
        let error = place.ingest_file("log.arrow", &whole[..at]).await.unwrap_err().to_string();
        assert!(error.contains("cannot read") || error.contains("not Arrow"), "{at}: {error}");
        assert_eq!(place.files(), 0);
    }
}
