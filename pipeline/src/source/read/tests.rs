//! Whole columns and single rows give the same events and the same dead letters.

use std::fs::File;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow::array::{
    ArrayRef, BinaryArray, Date32Array, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
};
use proptest::prelude::*;
use schemas::config::{Dialect, Events, Format, TimeFormat, TimeUnit};
use schemas::memory::MemorySize;

use super::super::files::{Packing, Unpacking};
use super::*;

/// Looks at each row, whatever the columns are.
struct RowByRow<'a>(EventVisitor<'a>);

impl Visit for RowByRow<'_> {
    type Error = SourceError;

    fn record(&mut self, record: &impl Fields, at: At) -> Result<Result<Accepted, Rejection>, SourceError> {
        self.0.record(record, at)
    }

    fn user_unreadable(&self, record: &impl Fields) -> bool {
        self.0.user_unreadable(record)
    }
}

fn id() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[a-d]{1,6}".prop_map(String::into_bytes),
        1 => "[ \t\u{a0}]{0,2}".prop_map(String::into_bytes),
        1 => "[ é日]{0,3}x".prop_map(String::into_bytes),
        1 => "[a-z]{20,30}".prop_map(String::into_bytes),
    ]
}

fn optional<S: Strategy>(values: S, rows: usize) -> impl Strategy<Value = Vec<Option<S::Value>>>
where
    S::Value: Clone,
{
    prop::collection::vec(prop::option::weighted(0.9, values), rows)
}

fn ids(rows: usize) -> BoxedStrategy<ArrayRef> {
    let text = |values: Vec<Option<Vec<u8>>>| -> ArrayRef {
        let text =
            values.into_iter().map(|value| value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
        Arc::new(text.collect::<StringArray>())
    };
    let bytes = prop_oneof![20 => id(), 1 => Just(vec![b'a', 0xff])];
    prop_oneof![
        4 => optional(id(), rows).prop_map(text),
        1 => optional(bytes, rows).prop_map(|values| Arc::new(BinaryArray::from_iter(values)) as ArrayRef),
        1 => optional(any::<i64>(), rows).prop_map(|values| Arc::new(Int64Array::from(values)) as ArrayRef),
        1 => optional(-3..3i32, rows).prop_map(|values| Arc::new(Int32Array::from(values)) as ArrayRef),
        1 => optional(0..9u8, rows).prop_map(|values| {
            let values = values.into_iter().map(|value| value.map(|value| f64::from(value) / 2.0));
            Arc::new(values.collect::<Float64Array>()) as ArrayRef
        }),
    ]
    .boxed()
}

fn times(rows: usize) -> BoxedStrategy<ArrayRef> {
    /// The first instants of 2026 and the last ones of 2027, in milliseconds.
    const NEAR: std::ops::Range<i64> = 1_767_225_600_000..1_830_297_600_000;
    let ms = || prop_oneof![8 => NEAR, 1 => -5..5i64, 1 => Just(7_000_000_000_000)];
    let ticks = |per_ms: i64| optional(ms().prop_map(move |ms| ms * per_ms + per_ms / 2), rows);
    prop_oneof![
        ticks(1).prop_map(|t| Arc::new(TimestampMillisecondArray::from(t).with_timezone("UTC")) as ArrayRef),
        ticks(1_000).prop_map(|t| Arc::new(TimestampMicrosecondArray::from(t)) as ArrayRef),
        ticks(1_000_000).prop_map(|t| Arc::new(TimestampNanosecondArray::from(t)) as ArrayRef),
        optional(0..30_000i32, rows).prop_map(|days| Arc::new(Date32Array::from(days)) as ArrayRef),
        optional(ms(), rows).prop_map(|ms| Arc::new(Int64Array::from(ms)) as ArrayRef),
        optional(prop_oneof![ms(), ms().prop_map(|ms| ms / 1_000), any::<i64>()], rows)
            .prop_map(|numbers| Arc::new(Int64Array::from(numbers)) as ArrayRef),
        optional("2026-0[1-9]-11|1767225600|never", rows)
            .prop_map(|texts| Arc::new(texts.into_iter().collect::<StringArray>()) as ArrayRef),
    ]
    .boxed()
}

fn numbers(rows: usize) -> BoxedStrategy<ArrayRef> {
    let number = || prop_oneof![8 => -9.0..9.0f64, 1 => Just(f64::NAN), 1 => Just(f64::INFINITY)];
    prop_oneof![
        optional(number(), rows).prop_map(|values| Arc::new(Float64Array::from(values)) as ArrayRef),
        optional(number().prop_map(|number| number as f32), rows)
            .prop_map(|values| Arc::new(Float32Array::from(values)) as ArrayRef),
        optional(prop_oneof![-9..9i64, Just((1 << 53) + 1)], rows)
            .prop_map(|values| Arc::new(Int64Array::from(values)) as ArrayRef),
        optional("[0-9]{0,2}|x", rows)
            .prop_map(|texts| Arc::new(texts.into_iter().collect::<StringArray>()) as ArrayRef),
    ]
    .boxed()
}

/// The columns of a file; the optional ones are missing now and then.
fn columns() -> impl Strategy<Value = Vec<(&'static str, ArrayRef)>> {
    (1..60usize).prop_flat_map(|rows| {
        let required = (ids(rows), ids(rows), times(rows));
        let options = (
            prop::option::of(ids(rows)),
            prop::option::of(ids(rows)),
            prop::option::of(times(rows)),
            prop::option::of(ids(rows)),
            prop::option::of(numbers(rows)),
        );
        (required, options).prop_map(|((user, item, ts), (event, request, request_ts, action, value))| {
            let options = [
                ("event_id", event),
                ("request_id", request),
                ("request_ts", request_ts),
                ("action", action),
                ("value", value),
            ];
            let options = options.into_iter().filter_map(|(name, column)| Some((name, column?)));
            [("user_id", user), ("item_id", item), ("ts", ts)].into_iter().chain(options).collect()
        })
    })
}

/// What came of the records of a file: the events with their dates, the forms of their times, the counts, and the dead letters.
fn outcome(file: &InputFile, mapping: &Mapping, by_row: bool) -> (Vec<String>, Vec<RecordBatch>) {
    let reading = ReadOptions {
        max_record_bytes: 64,
        block_bytes: 1 << 20,
        unpacking: Unpacking { limit: MemorySize { bytes: 1 << 30 }, directory: std::env::temp_dir() },
        check_times: false,
    };
    let mut source = Source::open(file, &mapping.wanted, &reading, &ByteCount::default()).unwrap();
    let mut columns = Columns::new();
    let (mut said, mut batches) = (Vec::new(), Vec::new());
    while let Some(block) = source.next().unwrap() {
        let visitor = EventVisitor { mapping, columns: &mut columns, forms: Forms::default() };
        let (walked, forms) = if by_row {
            let mut visitor = RowByRow(visitor);
            (block.walk(None, &mut visitor).unwrap(), visitor.0.forms)
        } else {
            let mut visitor = visitor;
            (block.walk(None, &mut visitor).unwrap(), visitor.forms)
        };
        let batch = columns.finish(0).unwrap();
        said.push(format!("{:?} {:?}", walked.counted.counts, walked.counted.records));
        for letter in walked.counted.rejected {
            said.push(format!("{:?} {:?} {}", letter.at, letter.rejection, letter.user_unreadable));
        }
        said.push(format!("{forms:?} {:?}", batch.dates));
        batches.push(batch.rows);
    }
    (said, batches)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn columns_and_rows_give_the_same(
        columns in columns(),
        action in prop::option::of("[a-c]{1,3}"),
        value in prop::option::of(-9.0..9.0f64),
        named in any::<bool>(),
        long in 8..64usize,
        epoch in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.parquet");
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.iter().map(|(name, column)| (*name, Arc::clone(column), true)),
        ).unwrap();
        let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let mut events = Events { max_record_bytes: long, ..Events::default() };
        if columns.iter().any(|(name, _)| *name == "action") && named {
            events.columns.action = Some("action".into());
        }
        if let Some(action) = action {
            events.constants.insert("action".into(), action);
        }
        if epoch {
            events.ts_format = TimeFormat::Epoch(TimeUnit::Ms);
        }
        if let Some(value) = value {
            events.constants.insert("value".into(), value.to_string());
        }
        let mapping = Mapping::new(&events);
        let file = InputFile {
            source: path.display().to_string(),
            is_stdin: false,
            format: Format::Parquet,
            packing: Packing::Plain,
            dialect: Dialect::default(),
            partitions: Vec::new(),
            bytes: std::fs::metadata(&path).unwrap().len(),
        };
        prop_assert_eq!(outcome(&file, &mapping, false), outcome(&file, &mapping, true));
    }
}
