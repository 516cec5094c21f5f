//! Whole files: nested columns, refusals before reading, long texts, and packed files.

use super::*;

fn written(batch: &RecordBatch, group_rows: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows)).build();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

/// Types that are recorded only in Arrow's schema in the file's metadata: dictionaries, views, large types, seconds.
#[tokio::test]
async fn types_that_only_arrow_knows() {
    let dictionary: DictionaryArray<Int8Type> = vec!["u1", "u2", "u1"].into_iter().collect();
    let numbers = DictionaryArray::<Int8Type>::new(
        vec![0, 1, 0].into(),
        Arc::new(UInt64Array::from(vec![u64::MAX, 1])),
    );
    let decimals = DictionaryArray::<Int8Type>::new(
        vec![0, 1, 0].into(),
        Arc::new(Decimal128Array::from(vec![(1 << 53) + 1, 5]).with_precision_and_scale(38, 0).unwrap()),
    );
    let users: Vec<(ArrayRef, &str)> = vec![
        (Arc::new(dictionary), "u1"),
        (Arc::new(numbers), "18446744073709551615"),
        (Arc::new(decimals), "9007199254740993"),
        (Arc::new(StringViewArray::from(vec!["a text of more than twelve bytes", "u", "u"])), "a"),
        (Arc::new(LargeStringArray::from(vec!["u1", "u2", "u3"])), "u1"),
        (Arc::new(BinaryViewArray::from(vec![&b"u1"[..], b"u2", b"u3"])), "u1"),
        (Arc::new(LargeBinaryArray::from(vec![&b"u1"[..], b"u2", b"u3"])), "u1"),
        (Arc::new(Float16Array::from_iter_values([1.0, 2.0, 3.0].map(half::f16::from_f32))), "1"),
        (
            Arc::new(
                Decimal256Array::from(vec![i256::from_i128(7); 3]).with_precision_and_scale(76, 0).unwrap(),
            ),
            "7",
        ),
    ];
    let times: Vec<(ArrayRef, &str)> = vec![
        (Arc::new(TimestampSecondArray::from(vec![5, 6, i64::MAX])), "5000"),
        (Arc::new(TimestampNanosecondArray::from(vec![5_999_999_999, 6, 7])), "5999"),
        (Arc::new(Date64Array::from(vec![86_400_000, 1, 2])), "86400000"),
        (Arc::new(Date32Array::from(vec![1, 2, 3])), "86400000"),
    ];
    let items: ArrayRef = Arc::new(StringArray::from(vec!["i", "j", "k"]));
    let first: (ArrayRef, &str) = (Arc::new(Int64Array::from(vec![1, 2, 3])), "1000");
    for (user, ts) in users.iter().map(|user| (user, &first)).chain(times.iter().map(|ts| (&users[0], ts))) {
        let batch = RecordBatch::try_from_iter([
            ("user_id", user.0.clone()),
            ("item_id", items.clone()),
            ("ts", ts.0.clone()),
        ]);
        let mut place = Place::new();
        place.config.events.max_dead_letter_rate = 1.0;
        let report = place.ingest_file("log.parquet", written(&batch.unwrap(), 1 << 20)).await.unwrap();
        let line = place.lines().await[0].clone();
        assert!(line.starts_with(user.1) && line.contains(&format!(" {} event", ts.1)), "{line}");
        let late = ts.0.data_type() == &DataType::Timestamp(TimeUnit::Second, None);
        assert_eq!(report.dead_letters, if late { [("time_out_of_range", 1)].into() } else { [].into() });
    }
}

/// Polars writes integers of 128 bits as bytes, and records it in a form that Arrow cannot read.
#[tokio::test]
async fn a_type_that_arrow_does_not_know_is_refused_by_name() {
    const ARROW: &str = "/////9wAAAAEAAAA8v///xQAAAAEAAEAAAAKAAsACAAKAAQA+P///wwAAAAIAAgAAAAEAAMAAABkAAAANAAAAAQAAACU////IAAAABAAAAAIAAAAAQIAAAAAAACM////QAAAAAEAAAACAAAAdHMAAMD///8cAAAAEAAAAAgAAAABFAAAAAAAAPz///8EAAQABwAAAGl0ZW1faWQA7P///zgAAAAgAAAAGAAAAAECAAAQABIABAAQABEACAAAAAwAAAAAAPT///+AAAAAAQAAAAgACQAEAAgABwAAAHVzZXJfaWQA";
    let metadata = vec![KeyValue::new("ARROW:schema".to_owned(), Some(ARROW.to_owned()))];
    let properties = WriterProperties::builder().set_key_value_metadata(Some(metadata)).build();
    let users = Stored::Bytes(vec![5i128.to_le_bytes().to_vec()]);
    let columns = [
        ("fixed_len_byte_array(16) user_id", &users),
        ("binary item_id (STRING)", &Stored::texts(&["i"])),
        ("int64 ts", &Stored::I64(vec![5])),
    ];
    let mut place = Place::new();
    let bytes = file_with(&columns, properties);
    let error = place.ingest_file("log.parquet", &bytes).await.unwrap_err().to_string();
    for part in ["log.parquet", "`user_id`", "does not know"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

/// Nested columns beside the wanted ones; rows are rejected in several row groups.
#[tokio::test]
async fn nested_columns_of_rejected_rows_are_read_again() {
    let rows = 40_000;
    let mut maps = MapBuilder::new(None, StringBuilder::new(), Float64Builder::new());
    let mut numbered = MapBuilder::new(None, Int32Builder::new(), StringBuilder::new());
    let mut nested = ListBuilder::new(ListBuilder::new(Int32Builder::new()));
    for n in 0..rows {
        maps.keys().append_value("k");
        maps.values().append_value(f64::INFINITY);
        maps.append(true).unwrap();
        numbered.keys().append_value(n);
        numbered.values().append_null();
        numbered.append(true).unwrap();
        nested.values().values().append_value(n);
        nested.values().append(true);
        nested.values().append(false);
        nested.append(true);
    }
    let structs = StructArray::from(vec![(
        Arc::new(Field::new("a", DataType::Int32, true)),
        Arc::new(Int32Array::from_iter_values(0..rows)) as ArrayRef,
    )]);
    let bad = |n: &i32| n % 9_999 == 7;
    let batch = RecordBatch::try_from_iter([
        ("m", Arc::new(maps.finish()) as ArrayRef),
        (
            "user_id",
            Arc::new((0..rows).map(|n| (!bad(&n)).then(|| format!("u{n}"))).collect::<StringArray>()),
        ),
        ("n", Arc::new(numbered.finish())),
        ("item_id", Arc::new(Int32Array::from_iter_values(0..rows))),
        ("l", Arc::new(nested.finish())),
        ("ts", Arc::new(Int64Array::from_iter_values((0..rows).map(i64::from)))),
        ("s", Arc::new(structs)),
    ])
    .unwrap();
    for group_rows in [15_000, 100_000] {
        let mut place = Place::new();
        let report = place.ingest_file("log.parquet", written(&batch, group_rows)).await.unwrap();
        assert_eq!((report.events.accepted, report.events.dead_letters), (39_996, 4));
        let letters = place.dead_letters().await;
        let expected: Vec<_> = (0..rows)
            .filter(bad)
            .map(|n| {
                let json = format!(
                    r#"{{"m":{{"k":"inf"}},"user_id":null,"n":[{{"key":{n},"value":null}}],"item_id":{n},"l":[[{n}],null],"ts":{n},"s":{{"a":{n}}}}}"#
                );
                (i64::from(n), "missing_field".to_owned(), json.into_bytes())
            })
            .collect();
        assert_eq!(letters, expected);
    }
}

#[tokio::test]
async fn a_column_that_cannot_be_read_is_refused_before_any_file_is() {
    let item = |array: ArrayRef| {
        let user: ArrayRef = Arc::new(StringArray::from(vec!["u"]));
        let ts: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        written(&RecordBatch::try_from_iter([("user_id", user), ("item_id", array), ("ts", ts)]).unwrap(), 10)
    };
    let list = |values: ArrayRef| {
        let field = Arc::new(Field::new("element", values.data_type().clone(), true));
        ListArray::new(field, OffsetBuffer::from_lengths([1]), values, None)
    };
    let structs = StructArray::from(vec![(
        Arc::new(Field::new("a", DataType::Int32, true)),
        Arc::new(Int32Array::from(vec![1])) as ArrayRef,
    )]);
    let cases: Vec<(ArrayRef, &str)> = vec![
        (Arc::new(structs.clone()), "a struct"),
        (Arc::new(Time32SecondArray::from(vec![1])), "a time of day"),
        (Arc::new(Time64NanosecondArray::from(vec![1])), "a time of day"),
        (Arc::new(DurationMillisecondArray::from(vec![1])), "a duration"),
        (Arc::new(IntervalDayTimeArray::new_null(1)), "an interval"),
        (Arc::new(list(Arc::new(list(Arc::new(Int32Array::from(vec![1])))))), "a list of a list of signed"),
        (Arc::new(list(Arc::new(structs))), "a list of a struct"),
    ];
    for (array, says) in cases {
        let mut place = Place::new();
        let other = place.file("a.csv", "user_id,item_id,ts\n\"torn");
        let path = place.file("b.parquet", item(array));
        place.config.events.paths = vec![other, path];
        let error = place.ingest().await.unwrap_err().to_string();
        for part in ["b.parquet", "`item_id`", says, "events.columns.item_id"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

/// Attributes of a catalogue as lists of every type.
#[tokio::test]
async fn lists_of_every_type() {
    let field = |of: DataType| Arc::new(Field::new("element", of, true));
    let lists = |values: ArrayRef| -> ArrayRef {
        Arc::new(ListArray::new(
            field(values.data_type().clone()),
            OffsetBuffer::from_lengths([2]),
            values,
            None,
        ))
    };
    let dictionary: DictionaryArray<Int8Type> = vec!["x", "y"].into_iter().collect();
    let cases: Vec<(ArrayRef, Fate)> = vec![
        (lists(Arc::new(StringArray::from(vec![Some("x"), None]))), Ok("x")),
        (lists(Arc::new(StringViewArray::from(vec!["x", "y"]))), Ok("x,y")),
        (lists(Arc::new(dictionary)), Ok("x,y")),
        (lists(Arc::new(Int64Array::from(vec![1, 2]))), Ok("1,2")),
        (lists(Arc::new(UInt64Array::from(vec![u64::MAX, 2]))), Ok("18446744073709551615,2")),
        (lists(Arc::new(BooleanArray::from(vec![true, false]))), Ok("true,false")),
        (lists(Arc::new(Float64Array::from(vec![4.5, f64::NAN]))), Ok("4.5")),
        (
            lists(Arc::new(Decimal128Array::from(vec![500, 501]).with_precision_and_scale(9, 2).unwrap())),
            Ok("5,5.01"),
        ),
        (lists(Arc::new(BinaryArray::from(vec![&b"x"[..], b"\xff"]))), Err("invalid_utf8")),
        (lists(Arc::new(Date32Array::from(vec![1, 2]))), Err("wrong_type")),
        (lists(Arc::new(NullArray::new(2))), Ok("")),
    ];
    for (array, expected) in cases {
        let mut place = Place::new();
        place.config.items.attributes.insert("tag".into(), Default::default());
        place.config.events.max_dead_letter_rate = 1.0;
        let of = array.data_type().to_string();
        let id: ArrayRef = Arc::new(StringArray::from(vec!["i"]));
        let batch = RecordBatch::try_from_iter([("item_id", id), ("tag", array)]).unwrap();
        place.config.items.paths = vec![place.file("items.parquet", written(&batch, 10))];
        let report = place.ingest().await.unwrap();
        let found = match report.dead_letters.keys().next() {
            Some(reason) => Err(*reason),
            None => Ok(place.items(&["tag"]).await[0].rsplit_once("tag=").unwrap().1.to_owned()),
        };
        assert_eq!(found, expected.map(str::to_owned), "{of}");
    }
}

/// A short page may hold one long text many times.
#[tokio::test]
async fn long_texts_are_cut_into_blocks_and_too_long_ones_are_rejected() {
    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    let long = "x".repeat(1 << 20);
    let rows = 200;
    let users = StringArray::from_iter_values(
        (0..rows).map(|n| if n % 2 == 0 { &long[..long.len() - 1_000] } else { &long }),
    );
    let batch = RecordBatch::try_from_iter([
        ("user_id", Arc::new(users) as ArrayRef),
        ("item_id", Arc::new(Int32Array::from_iter_values(0..rows))),
        ("ts", Arc::new(Int64Array::from_iter_values((0..rows).map(i64::from)))),
    ])
    .unwrap();
    let report = place.ingest_file("log.parquet", written(&batch, 1 << 20)).await.unwrap();
    assert_eq!((report.events.accepted, report.dead_letters.get("too_long")), (100, Some(&100)));
    assert!(place.dead_letters().await.iter().all(|(_, _, raw)| raw.len() == 1 << 20));

    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.max_record_bytes = 50;
    let items = RecordBatch::try_from_iter([
        ("item_id", Arc::new(Int32Array::from_iter_values(0..2)) as ArrayRef),
        ("title", Arc::new(StringArray::from(vec!["t".repeat(49), "t".repeat(50)]))),
    ]);
    place.config.items.paths = vec![place.file("items.parquet", written(&items.unwrap(), 10))];
    let report = place.ingest().await.unwrap();
    assert_eq!((report.items.accepted, report.dead_letters.get("too_long")), (1, Some(&1)));
}

#[tokio::test]
async fn what_is_packed_is_unpacked_to_a_limit() {
    let mut place = Place::new();
    let batch = RecordBatch::try_from_iter([
        ("user_id", Arc::new(StringArray::from(vec!["u"; 50])) as ArrayRef),
        ("item_id", Arc::new(Int32Array::from_iter_values(0..50))),
        ("ts", Arc::new(Int64Array::from_iter_values(0..50))),
    ])
    .unwrap();
    let bytes = written(&batch, 1 << 20);
    let packed = zstd::encode_all(&bytes[..], 1).unwrap();
    place.config.events.max_unpacked_bytes = MemorySize::bytes(bytes.len() as u64 - 1);
    let error = place.ingest_file("log.parquet.zst", &packed).await.unwrap_err().to_string();
    assert!(error.contains("log.parquet.zst") && error.contains("events.max_unpacked_bytes"), "{error}");
    place.config.events.max_unpacked_bytes = MemorySize::bytes(bytes.len() as u64);
    assert_eq!(place.ingest().await.unwrap().events.accepted, 50);
}

#[test]
fn counts_that_do_not_add_up_are_an_error_with_the_numbers() {
    let counts = RecordCounts { read: 3, accepted: 1, duplicates: 1, dead_letters: 0, forgotten: 0 };
    let error = error::check_counts(counts, "a.csv").unwrap_err().to_string();
    assert!(error.contains("a.csv: 3 records were read, and 1 accepted + 1 duplicates"), "{error}");
}

#[tokio::test]
async fn times_as_32_bit_floats_stop_the_run_with_a_question() {
    let times = Stored::F32(vec![1.7e9, 1.700_086_4e9]);
    let ids = Stored::texts(&["a", "b"]);
    let bytes =
        file(&[("binary user_id (STRING)", &ids), ("binary item_id (STRING)", &ids), ("float ts", &times)]);
    let mut place = Place::new();
    place.config.events.check_times = true;
    let error = place.ingest_file("log.parquet", &bytes).await.unwrap_err().to_string();
    for part in ["log.parquet: column `ts`", "32 bits", "events.check_times = false"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    place.config.events.check_times = false;
    assert_eq!(place.ingest().await.unwrap().events.accepted, 2);
}
