//! Every Parquet type is read exactly, becomes a dead letter with all its content, or is refused by name.

mod files;

use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::{ByteArray, Int96};
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use arrow::array::*;
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int8Type, TimeUnit, i256};

use super::*;

/// The values of a column as Parquet stores them.
enum Stored {
    Bool(Vec<bool>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    /// Days and nanoseconds.
    I96(Vec<(i32, i64)>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<Vec<u8>>),
}

impl Stored {
    fn texts(values: &[&str]) -> Self {
        Self::Bytes(values.iter().map(|value| value.as_bytes().to_vec()).collect())
    }

    fn len(&self) -> usize {
        match self {
            Self::Bool(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::I96(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }
}

/// A file of required columns, each as `type name annotation`.
fn file(columns: &[(&str, &Stored)]) -> Vec<u8> {
    file_with(columns, WriterProperties::builder().build())
}

fn file_with(columns: &[(&str, &Stored)], properties: WriterProperties) -> Vec<u8> {
    let fields: String = columns.iter().map(|(field, _)| format!("required {field};")).collect();
    let schema = Arc::new(parse_message_type(&format!("message log {{ {fields} }}")).unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for (_, stored) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let bytes = |values: &[Vec<u8>]| values.iter().cloned().map(ByteArray::from).collect::<Vec<_>>();
        match (column.untyped(), stored) {
            (ColumnWriter::BoolColumnWriter(w), Stored::Bool(v)) => w.write_batch(v, None, None).unwrap(),
            (ColumnWriter::Int32ColumnWriter(w), Stored::I32(v)) => w.write_batch(v, None, None).unwrap(),
            (ColumnWriter::Int64ColumnWriter(w), Stored::I64(v)) => w.write_batch(v, None, None).unwrap(),
            (ColumnWriter::FloatColumnWriter(w), Stored::F32(v)) => w.write_batch(v, None, None).unwrap(),
            (ColumnWriter::DoubleColumnWriter(w), Stored::F64(v)) => w.write_batch(v, None, None).unwrap(),
            (ColumnWriter::ByteArrayColumnWriter(w), Stored::Bytes(v)) => {
                w.write_batch(&bytes(v), None, None).unwrap()
            }
            (ColumnWriter::FixedLenByteArrayColumnWriter(w), Stored::Bytes(v)) => {
                let values: Vec<_> = bytes(v).into_iter().map(Into::into).collect();
                w.write_batch(&values, None, None).unwrap()
            }
            (ColumnWriter::Int96ColumnWriter(w), Stored::I96(v)) => {
                let values: Vec<_> = v
                    .iter()
                    .map(|(day, nanos)| Int96::from(vec![*nanos as u32, (*nanos >> 32) as u32, *day as u32]))
                    .collect();
                w.write_batch(&values, None, None).unwrap()
            }
            _ => panic!("the column has another type"),
        };
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    bytes
}

/// The outcome of a row: the event's field, or the reason of its rejection.
type Fate = Result<&'static str, &'static str>;

/// Ingests a file in which `field` has the values of `stored`; returns the outcome of each row, and the dead letters.
async fn fates(field: &str, stored: &Stored, shown: usize) -> (Vec<Result<String, String>>, Vec<String>) {
    let name = field.split(' ').nth(1).unwrap();
    let rows = stored.len();
    let ids: Vec<String> = (0..rows).map(|n| format!("i{n}")).collect();
    let texts = Stored::texts(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let times = Stored::I64((0..rows as i64).map(|n| 1_700_000_000_000 + n).collect());
    let mut columns: Vec<(&str, &Stored)> =
        vec![("binary user_id (STRING)", &texts), ("binary item_id (STRING)", &texts), ("int64 ts", &times)];
    columns.retain(|(other, _)| other.split(' ').nth(1) != Some(name));
    columns.push((field, stored));
    let mut place = Place::new();
    place.config.events.ts_format = schemas::config::TimeUnit::Ms.into();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.constants.insert("action".into(), "a".into());
    let report = place.ingest_file("log.parquet", file(&columns)).await.unwrap();
    assert_eq!(report.events.read as usize, rows);
    let mut fates = vec![Ok(String::new()); rows];
    if report.events.accepted > 0 {
        for line in place.lines().await {
            let (line, position) = line.rsplit_once(':').unwrap();
            let fields: Vec<&str> = line.split(' ').collect();
            fates[position.parse::<usize>().unwrap()] = Ok(fields[shown].to_owned());
        }
    }
    let mut letters = Vec::new();
    if report.events.dead_letters > 0 {
        for (position, reason, value) in place.dead_letters().await {
            fates[position as usize] = Err(reason);
            letters.push(String::from_utf8_lossy(&value).into_owned());
        }
    }
    (fates, letters)
}

async fn check(role: usize, cases: Vec<(&str, Stored, Vec<Fate>)>) {
    for (field, stored, expected) in cases {
        let (found, _) = fates(field, &stored, role).await;
        let expected: Vec<_> =
            expected.into_iter().map(|fate| fate.map(str::to_owned).map_err(str::to_owned)).collect();
        assert_eq!(found, expected, "{field}");
    }
}

const USER: usize = 0;
const TS: usize = 2;
const VALUE: usize = 4;

fn be(number: i128, bytes: usize) -> Vec<u8> {
    let all = i256::from_i128(number).to_be_bytes();
    all[32 - bytes..].to_vec()
}

#[tokio::test]
async fn an_id_of_every_type() {
    let big: i128 = (1 << 53) + 1;
    let wide = i256::from_string("12345678901234567890123456789012345678901234567890").unwrap();
    let wrong = Err("wrong_type");
    check(
        USER,
        vec![
            (
                "binary user_id (STRING)",
                Stored::Bytes(vec![b"ok".into(), b"\xffno".into(), b"".into()]),
                vec![Ok("ok"), Err("invalid_utf8"), Err("missing_field")],
            ),
            ("binary user_id (ENUM)", Stored::texts(&["e"]), vec![Ok("e")]),
            ("binary user_id (JSON)", Stored::texts(&["{}"]), vec![Ok("{}")]),
            ("binary user_id (BSON)", Stored::texts(&["b"]), vec![Ok("b")]),
            (
                "binary user_id",
                Stored::Bytes(vec![b"ok".into(), b"\xff\x00".into()]),
                vec![Ok("ok"), Err("invalid_utf8")],
            ),
            ("fixed_len_byte_array(2) user_id", Stored::texts(&["ab"]), vec![Ok("ab")]),
            (
                "fixed_len_byte_array(16) user_id (UUID)",
                Stored::Bytes(vec![(0..16).collect(), vec![0xff; 16]]),
                vec![Ok("00010203-0405-0607-0809-0a0b0c0d0e0f"), Ok("ffffffff-ffff-ffff-ffff-ffffffffffff")],
            ),
            ("int32 user_id", Stored::I32(vec![-1]), vec![Ok("-1")]),
            ("int32 user_id (INTEGER(8,true))", Stored::I32(vec![-1, 127]), vec![Ok("-1"), Ok("127")]),
            ("int32 user_id (INTEGER(16,false))", Stored::I32(vec![65_535]), vec![Ok("65535")]),
            ("int32 user_id (INTEGER(32,false))", Stored::I32(vec![-1]), vec![Ok("4294967295")]),
            (
                "int64 user_id",
                Stored::I64(vec![i64::MIN, big as i64]),
                vec![Ok("-9223372036854775808"), Ok("9007199254740993")],
            ),
            (
                "int64 user_id (INTEGER(64,false))",
                Stored::I64(vec![-1, 7]),
                vec![Ok("18446744073709551615"), Ok("7")],
            ),
            ("int32 user_id (DECIMAL(9,2))", Stored::I32(vec![500, 501]), vec![Ok("5"), wrong]),
            ("int64 user_id (DECIMAL(18,0))", Stored::I64(vec![big as i64]), vec![Ok("9007199254740993")]),
            (
                "fixed_len_byte_array(16) user_id (DECIMAL(38,0))",
                Stored::Bytes(vec![be(big, 16), be(big + 1, 16), be(-big, 16)]),
                vec![Ok("9007199254740993"), Ok("9007199254740994"), Ok("-9007199254740993")],
            ),
            (
                "fixed_len_byte_array(32) user_id (DECIMAL(76,0))",
                Stored::Bytes(vec![wide.to_be_bytes().to_vec()]),
                vec![Ok("12345678901234567890123456789012345678901234567890")],
            ),
            (
                "binary user_id (DECIMAL(38,1))",
                Stored::Bytes(vec![be(30, 1), be(31, 1), vec![0xff; 40], vec![0x7f; 40], vec![]]),
                vec![Ok("3"), wrong, wrong, wrong, Ok("0")],
            ),
            (
                "float user_id",
                Stored::F32(vec![7.0, 7.5, 16_777_216.0, f32::NAN, f32::INFINITY]),
                vec![Ok("7"), wrong, wrong, Err("missing_field"), wrong],
            ),
            (
                "double user_id",
                Stored::F64(vec![16_777_217.0, 9.1e15, -0.5]),
                vec![Ok("16777217"), wrong, wrong],
            ),
            (
                "fixed_len_byte_array(2) user_id (FLOAT16)",
                Stored::Bytes(vec![vec![0, 0x3c], vec![0, 0x7c]]),
                vec![Ok("1"), wrong],
            ),
            ("boolean user_id", Stored::Bool(vec![true]), vec![wrong]),
            ("int32 user_id (DATE)", Stored::I32(vec![1]), vec![wrong]),
            ("int64 user_id (TIMESTAMP(MILLIS,true))", Stored::I64(vec![1]), vec![wrong]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_time_of_every_type() {
    let range = Err("time_out_of_range");
    // 14 November 2023, 22:13:20.
    let s = 1_700_000_000i64;
    let (day, rest) = (s / 86_400, s % 86_400);
    let julian = 2_440_588 + day as i32;
    check(
        TS,
        vec![
            ("int64 ts", Stored::I64(vec![s * 1_000, -1, i64::MAX]), vec![Ok("1700000000000"), range, range]),
            (
                "int64 ts (TIMESTAMP(MILLIS,true))",
                Stored::I64(vec![s * 1_000, i64::MIN]),
                vec![Ok("1700000000000"), range],
            ),
            (
                "int64 ts (TIMESTAMP(MICROS,false))",
                Stored::I64(vec![s * 1_000_000 + 999]),
                vec![Ok("1700000000000")],
            ),
            (
                "int64 ts (TIMESTAMP(NANOS,true))",
                Stored::I64(vec![s * 1_000_000_000 + 1_999_999]),
                vec![Ok("1700000000001")],
            ),
            ("int64 ts (TIMESTAMP_MICROS)", Stored::I64(vec![s * 1_000_000]), vec![Ok("1700000000000")]),
            (
                "int96 ts",
                Stored::I96(vec![
                    (julian, rest * 1_000_000_000 + 1_999_999),
                    // The years 2608 and 1601, which nanoseconds of 64 bits do not reach.
                    (2_440_588 + 233_024, 0),
                    (2_440_588 - 134_774, 0),
                    (i32::MAX, i64::MAX),
                    (i32::MIN, 0),
                ]),
                vec![Ok("1700000000001"), range, range, range, range],
            ),
            (
                "int32 ts (DATE)",
                Stored::I32(vec![day as i32, i32::MAX, i32::MIN]),
                vec![Ok("1699920000000"), range, range],
            ),
            (
                "int64 ts (INTEGER(64,false))",
                Stored::I64(vec![s * 1_000, -1]),
                vec![Ok("1700000000000"), range],
            ),
            ("int64 ts (DECIMAL(18,3))", Stored::I64(vec![s * 1_000_000 + 999]), vec![Ok("1700000000000")]),
            (
                "fixed_len_byte_array(9) ts (DECIMAL(20,0))",
                Stored::Bytes(vec![be(i128::from(s) * 1_000, 9), be(i128::from(u64::MAX) * 7, 9)]),
                vec![Ok("1700000000000"), range],
            ),
            (
                "double ts",
                Stored::F64(vec![1.7e12, f64::INFINITY, f64::NAN, -1e300]),
                vec![Ok("1700000000000"), range, Err("missing_field"), range],
            ),
            ("float ts", Stored::F32(vec![1.7e12]), vec![Ok("1700000038912")]),
            (
                "binary ts (STRING)",
                Stored::Bytes(vec![b"1700000000000".into(), b"soon".into(), b"\xff".into()]),
                vec![Ok("1700000000000"), Err("invalid_time"), Err("invalid_utf8")],
            ),
            ("boolean ts", Stored::Bool(vec![true]), vec![Err("wrong_type")]),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_value_of_every_type() {
    let wrong = Err("wrong_type");
    check(
        VALUE,
        vec![
            (
                "double value",
                Stored::F64(vec![0.1, f64::NAN, f64::INFINITY]),
                vec![Ok("Some(0.1)"), Ok("None"), wrong],
            ),
            ("float value", Stored::F32(vec![4.5, f32::NEG_INFINITY]), vec![Ok("Some(4.5)"), wrong]),
            (
                "fixed_len_byte_array(2) value (FLOAT16)",
                Stored::Bytes(vec![vec![0, 0xc0]]),
                vec![Ok("Some(-2.0)")],
            ),
            (
                "int64 value",
                Stored::I64(vec![1 << 53, (1 << 53) + 1, i64::MIN]),
                vec![Ok("Some(9007199254740992.0)"), wrong, Ok("Some(-9.223372036854776e18)")],
            ),
            (
                "int64 value (INTEGER(64,false))",
                Stored::I64(vec![-1, i64::MIN]),
                vec![wrong, Ok("Some(9.223372036854776e18)")],
            ),
            (
                "int32 value (DECIMAL(9,2))",
                Stored::I32(vec![-450, 7]),
                vec![Ok("Some(-4.5)"), Ok("Some(0.07)")],
            ),
            (
                "fixed_len_byte_array(16) value (DECIMAL(38,0))",
                Stored::Bytes(vec![be((1 << 53) + 1, 16), be(1 << 60, 16), be(0, 16)]),
                vec![wrong, Ok("Some(1.152921504606847e18)"), Ok("Some(0.0)")],
            ),
            (
                "binary value (STRING)",
                Stored::texts(&["4.50", "9007199254740993", "much", "-0"]),
                vec![Ok("Some(4.5)"), wrong, wrong, Ok("Some(-0.0)")],
            ),
            ("boolean value", Stored::Bool(vec![false]), vec![wrong]),
            ("int64 value (TIMESTAMP(MILLIS,true))", Stored::I64(vec![1]), vec![wrong]),
        ],
    )
    .await;
}

/// A rejected row's other column, of every type, with all its digits.
#[tokio::test]
async fn a_rejected_row_has_all_its_content() {
    let cases: Vec<(&str, Stored, &str)> = vec![
        ("double x", Stored::F64(vec![f64::INFINITY]), "\"inf\""),
        ("double x", Stored::F64(vec![f64::NEG_INFINITY]), "\"-inf\""),
        ("float x", Stored::F32(vec![f32::NAN]), "\"NaN\""),
        ("float x", Stored::F32(vec![0.1]), "0.1"),
        ("double x", Stored::F64(vec![1e300]), "1e300"),
        ("fixed_len_byte_array(2) x (FLOAT16)", Stored::Bytes(vec![vec![0, 0x7e]]), "\"NaN\""),
        ("int64 x", Stored::I64(vec![i64::MIN]), "-9223372036854775808"),
        ("int64 x (INTEGER(64,false))", Stored::I64(vec![-1]), "18446744073709551615"),
        ("int64 x (DECIMAL(18,2))", Stored::I64(vec![-500]), "\"-5.00\""),
        ("binary x (DECIMAL(38,0))", Stored::Bytes(vec![vec![0xff; 2]]), "\"-1\""),
        ("binary x (STRING)", Stored::texts(&["a \"b\"\n\u{1}ü\\"]), r#""a \"b\"\n\u0001ü\\""#),
        ("binary x", Stored::texts(&["text"]), "\"text\""),
        ("binary x", Stored::Bytes(vec![vec![0, 0xff]]), "{\"hex\":\"00ff\"}"),
        (
            "fixed_len_byte_array(16) x (UUID)",
            Stored::Bytes(vec![vec![0xab; 16]]),
            "\"abababab-abab-abab-abab-abababababab\"",
        ),
        ("int32 x (DATE)", Stored::I32(vec![-1]), "\"1969-12-31\""),
        ("int32 x (DATE)", Stored::I32(vec![i32::MAX]), "\"2147483647 days since 1970-01-01\""),
        ("int32 x (TIME(MILLIS,true))", Stored::I32(vec![1_001]), "\"00:00:01.001\""),
        ("int64 x (TIME(NANOS,true))", Stored::I64(vec![-5]), "\"-5 ns since midnight\""),
        ("int64 x (TIMESTAMP(MICROS,true))", Stored::I64(vec![-1]), "\"1969-12-31T23:59:59.999999Z\""),
        ("int64 x (TIMESTAMP(MILLIS,false))", Stored::I64(vec![1_000]), "\"1970-01-01T00:00:01\""),
        (
            "int64 x (TIMESTAMP(MILLIS,true))",
            Stored::I64(vec![i64::MAX]),
            "\"9223372036854775807 ms since 1970-01-01\"",
        ),
        (
            "int96 x",
            Stored::I96(vec![(2_440_588 + 233_024, 123_456_789)]),
            "\"2608-01-01T00:00:00.123456789\"",
        ),
        (
            "fixed_len_byte_array(12) x (INTERVAL)",
            Stored::Bytes(vec![[1u32, 2, 3].iter().flat_map(|n| n.to_le_bytes()).collect()]),
            "{\"months\":1,\"days\":2,\"ms\":3}",
        ),
        ("boolean x", Stored::Bool(vec![true]), "true"),
    ];
    for (field, stored, expected) in cases {
        // The missing user makes the row a dead letter.
        let empty = Stored::texts(&[""]);
        let (item, ts) = (Stored::texts(&["i"]), Stored::I64(vec![5]));
        let columns: Vec<(&str, &Stored)> = vec![
            ("binary user_id (STRING)", &empty),
            (field, &stored),
            ("binary item_id (STRING)", &item),
            ("int64 ts", &ts),
        ];
        let mut place = Place::new();
        place.config.events.max_dead_letter_rate = 1.0;
        place.ingest_file("log.parquet", file(&columns)).await.unwrap();
        let letters = place.dead_letters().await;
        let expected = format!("{{\"user_id\":\"\",\"x\":{expected},\"item_id\":\"i\",\"ts\":5}}");
        assert_eq!(String::from_utf8_lossy(&letters[0].2), expected, "{field}");
    }
}

#[tokio::test]
async fn text_that_is_not_utf8_is_kept_as_it_came() {
    let stored = Stored::Bytes(vec![b"ok".into(), b"\xffno".into()]);
    let texts = Stored::texts(&["i", "j"]);
    let columns = [
        ("binary user_id (STRING)", &stored),
        ("binary item_id (STRING)", &texts),
        ("int64 ts", &Stored::I64(vec![1, 2])),
    ];
    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    let report = place.ingest_file("log.parquet", file(&columns)).await.unwrap();
    assert_eq!((report.events.accepted, report.events.dead_letters), (1, 1));
    let expected = b"{\"user_id\":\"\xffno\",\"item_id\":\"j\",\"ts\":2}".to_vec();
    assert_eq!(place.dead_letters().await, [(1, "invalid_utf8".to_owned(), expected)]);
}

/// An id has the same text in an event and in a rejected row, so that forgetting a user finds both, and a row that is sent again
/// has the same id.
#[tokio::test]
async fn decimals_as_ids_are_the_same_in_events_and_in_rejected_rows() {
    let mut place = Place::new();
    place.config.events.ts_format = schemas::config::TimeUnit::Ms.into();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.constants.insert("action".into(), "a".into());
    let columns: [(&str, &Stored); 3] = [
        ("int64 user_id (DECIMAL(18,2))", &Stored::I64(vec![700, 700, 750])),
        ("binary item_id (STRING)", &Stored::texts(&["i1", "", ""])),
        ("int64 ts", &Stored::I64(vec![1_700_000_000_000; 3])),
    ];
    place.ingest_file("log.parquet", file(&columns)).await.unwrap();
    assert!(place.lines().await[0].starts_with("7 "), "{:?}", place.lines().await);
    let letters: Vec<serde_json::Value> =
        place.dead_letters().await.iter().map(|(.., value)| serde_json::from_slice(value).unwrap()).collect();
    let users: Vec<&str> = letters.iter().map(|letter| letter["user_id"].as_str().unwrap()).collect();
    assert_eq!(users, ["7", "7.5"]);
}
