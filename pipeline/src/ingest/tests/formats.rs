//! The same events from every format and packing, and files that are not what they say.

use std::io::Write as _;
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow::array::{
    ArrayRef, Float64Array, Int32Array, LargeStringArray, RecordBatch, TimestampMicrosecondArray,
};

use super::*;

const CSV: &str = "\u{feff}who,what,when,stars,extra\r\n7,\"a, \"\"b\"\"\",100,4.5,x\r\n8,ü,101,,\r\n7,\"two\nlines\",102,3,y\r\n";
const JSONL: &str = concat!(
    "{\"who\": 7, \"what\": \"a, \\\"b\\\"\", \"when\": 100, \"stars\": 4.5, \"extra\": {\"deep\": [1]}}\r\n\n",
    "{\"who\": \"8\", \"what\": \"ü\", \"when\": \"101\", \"stars\": null}\n",
    "{\"when\": 102.0, \"what\": \"two\\nlines\", \"who\": 7.0, \"stars\": 3}",
);

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn xz(bytes: &[u8], dictionary: u32) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.lzma_options.dict_size = dictionary;
    let mut out = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// `bytes` in two members, one after the other.
fn twice(pack: impl Fn(&[u8]) -> Vec<u8>, bytes: &str) -> Vec<u8> {
    let (first, second) = bytes.as_bytes().split_at(50);
    [pack(first), pack(second)].concat()
}

/// An xz file whose header says that it has a dictionary of 1 GiB.
fn demanding(mut xz: Vec<u8>) -> Vec<u8> {
    // Stream header: 12 bytes. Block header: its size, flags, the filter's id and number of properties, the property, padding
    // and a checksum of all before it.
    let end = 12 + 4 * (usize::from(xz[12]) + 1);
    let at = 12 + xz[12..end - 4].windows(2).position(|bytes| bytes == [0x21, 1]).unwrap() + 2;
    xz[at] = 36;
    let mut sum = flate2::Crc::new();
    sum.update(&xz[12..end - 4]);
    xz[end - 4..end].copy_from_slice(&sum.sum().to_le_bytes());
    xz
}

fn batch() -> RecordBatch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("extra", Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]))),
        ("stars", Arc::new(Float64Array::from(vec![Some(4.5), Some(f64::NAN), Some(3.0)]))),
        ("when", Arc::new(TimestampMicrosecondArray::from(vec![100_000_999, 101_000_000, 102_000_000]))),
        ("what", Arc::new(LargeStringArray::from(vec!["a, \"b\"", "ü", "two\nlines"]))),
        ("who", Arc::new(Int32Array::from(vec![7, 8, 7]))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn parquet() -> Vec<u8> {
    let batch = batch();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn place() -> Place {
    let mut place = Place::new();
    let columns = &mut place.config.events.columns;
    columns.user_id = "who".into();
    columns.item_id = "what".into();
    columns.ts = "when".into();
    columns.value = Some("stars".into());
    place.config.events.constants.insert("action".into(), "rate".into());
    place
}

#[tokio::test]
async fn every_format_and_packing_gives_the_same_events() {
    let mut expected: Option<Vec<(String, String)>> = None;
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("log.csv", CSV.into()),
        ("log.csv.gz", gzip(CSV.as_bytes())),
        ("log.csv.zst", zstd(CSV.as_bytes())),
        ("log.jsonl", JSONL.into()),
        ("log.ndjson.gz", twice(gzip, JSONL)),
        ("log.jsonl.zst", twice(zstd, JSONL)),
        ("log.csv.bz2", bzip2(CSV.as_bytes())),
        ("log.jsonl.bz2", twice(bzip2, JSONL)),
        ("log.csv.xz", xz(CSV.as_bytes(), 1 << 16)),
        ("log.jsonl.xz", twice(|bytes| xz(bytes, 1 << 16), JSONL)),
        ("log.parquet", parquet()),
        ("log.parquet.gz", gzip(&parquet())),
        ("log.parquet.xz", xz(&parquet(), 1 << 16)),
        ("log.parquet.bz2", bzip2(&parquet())),
        ("log.arrow", ipc::file(&batch())),
        ("log.feather", ipc::packed(&batch())),
        ("log.ipc", ipc::stream(&batch())),
        ("log.arrows.zst", zstd(&ipc::stream(&batch()))),
    ];
    for (name, bytes) in files {
        let mut place = place();
        let report = place.ingest_file(name, bytes).await.unwrap();
        assert_eq!(
            report.events,
            RecordCounts { read: 3, accepted: 3, duplicates: 0, dead_letters: 0, forgotten: 0 },
            "{name}"
        );
        let events: Vec<_> =
            place.events().await.into_iter().map(|(id, line)| (id, line.replace(name, "log"))).collect();
        assert_eq!(events[1].1, "8 ü 101000 rate None None None log:1", "{name}");
        assert_eq!(*expected.get_or_insert(events.clone()), events, "{name}");
    }
}

#[tokio::test]
async fn the_format_can_be_configured() {
    let mut place = place();
    let error = place.ingest_file("log.txt", CSV).await.unwrap_err().to_string();
    assert!(error.contains("log.txt") && error.contains("format"), "{error}");
    place.config.events.format = Some(schemas::config::Format::Csv);
    assert_eq!(place.ingest().await.unwrap().events.accepted, 3);
}

#[tokio::test]
async fn a_file_that_is_not_what_its_name_says_is_an_error() {
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a.csv.gz", CSV.into(), "not gzip"),
        ("a.csv.zst", gzip(CSV.as_bytes()), "not zstd"),
        ("a.csv.bz2", gzip(CSV.as_bytes()), "not bzip2"),
        ("a.csv.xz", CSV.into(), "not xz"),
        ("a.csv", bzip2(CSV.as_bytes()), "bzip2; name it .bz2"),
        ("a.csv", bzip2(b""), "bzip2; name it .bz2"),
        ("a.jsonl", xz(CSV.as_bytes(), 1 << 16), "xz; name it .xz"),
        ("a.csv.bz2", bzip2(CSV.as_bytes())[..60].to_vec(), "cannot read"),
        ("a.csv.xz", xz(CSV.as_bytes(), 1 << 16)[..60].to_vec(), "cannot read"),
        ("a.csv.xz", [xz(CSV.as_bytes(), 1 << 16), b"more".to_vec()].concat(), "cannot read"),
        // It demands 1 GiB to be unpacked.
        ("a.csv.xz", demanding(xz(CSV.as_bytes(), 1 << 16)), "cannot read"),
        ("a.csv", gzip(CSV.as_bytes()), "gzip"),
        ("a.csv", parquet(), "Parquet"),
        ("a.jsonl", zstd(JSONL.as_bytes()), "zstd"),
        ("a.parquet", CSV.into(), "not Parquet"),
        ("a.parquet", parquet()[..200].to_vec(), "not Parquet"),
        ("a.csv", ipc::file(&batch()), "is not CSV but Arrow"),
        ("a.parquet", ipc::file(&batch()), "is not Parquet but Arrow"),
        ("a.arrow", CSV.into(), "not Arrow"),
        ("a.arrow", b"FEA1 and more".to_vec(), "version 1"),
        ("a.arrow", parquet(), "is not Arrow but Parquet"),
        ("a.jsonl", "[\n{\"who\": 1}\n]".into(), "JSON array"),
        ("a.csv", vec![0xff, 0xfe, b'w', 0], "UTF-16"),
        ("a.csv.gz", gzip(CSV.as_bytes())[..40].to_vec(), "cannot read"),
    ];
    for (name, bytes, says) in cases {
        let mut place = place();
        let error = place.ingest_file(name, bytes).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(says), "{name} {says}: {error}");
        assert_eq!(place.files(), 0);
    }
}

#[tokio::test]
async fn a_column_that_is_not_there_is_an_error_that_lists_those_that_are() {
    let cases: Vec<(&str, Vec<u8>)> =
        vec![("a.csv", CSV.into()), ("a.jsonl", JSONL.into()), ("a.parquet", parquet())];
    for (name, bytes) in cases {
        let mut place = place();
        place.config.events.columns.item_id = "movie".into();
        let error = place.ingest_file(name, bytes).await.unwrap_err().to_string();
        for part in [name, "`movie`", "events.columns.item_id", "stars", "who"] {
            assert!(error.contains(part), "{name}: {error}");
        }
    }
    let mut place = place();
    place.config.events.columns.request_id = Some("request".into());
    let error = place.ingest_file("a.csv", CSV).await.unwrap_err().to_string();
    assert!(error.contains("`request`"), "{error}");
    // Objects need not have every field, so here it is a warning.
    let report = place.ingest_file("a.jsonl", JSONL).await.unwrap();
    assert!(report.warnings[0].contains("`request`"), "{:?}", report.warnings);
}

#[tokio::test]
async fn rejected_rows_of_parquet_are_kept_as_json() {
    let mut place = place();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.latest = "1970-01-01T00:01:41Z".parse().unwrap();
    place.ingest_file("a.parquet", parquet()).await.unwrap();
    let dead = place.dead_letters().await;
    assert_eq!(dead.len(), 2);
    assert_eq!((dead[0].0, dead[0].1.as_str()), (1, "time_out_of_range"));
    let row: serde_json::Value = serde_json::from_slice(&dead[1].2).unwrap();
    assert_eq!((&row["what"], &row["extra"]), (&"two\nlines".into(), &3.0.into()));
}

#[tokio::test]
async fn json_lines_that_are_not_objects_are_rejected() {
    let mut place = place();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.max_record_bytes = 80;
    let mut log = JSONL.as_bytes()[..].to_vec();
    log.extend(b"\n{\"who\": 1, \"what\"\n[1]\n\"text\"\n{\"who\": \"\xff\"}\n{} {}\n{\"who\": true, \"what\": 1, \"when\": 1}\n");
    log.extend(b"{\"who\": 1, \"what\": 1, \"when\": {}}\n{\"who\": 1, \"when\": 1}\n");
    log.extend([b' ', b'{'].iter().chain([b'x'; 600_000].iter()));
    log.extend(b"\n{\"who\": 1, \"what\": 1, \"when\": 1}");
    let report = place.ingest_file("a.jsonl", log).await.unwrap();
    let reasons: Vec<_> =
        place.dead_letters().await.into_iter().map(|(p, r, _)| format!("{p} {r}")).collect();
    assert_eq!(
        reasons,
        [
            "0 too_long",
            "3 malformed_json",
            "4 malformed_json",
            "5 malformed_json",
            "6 invalid_utf8",
            "7 malformed_json",
            "8 wrong_type",
            "9 wrong_type",
            "10 missing_field",
            "11 too_long",
        ]
    );
    assert_eq!(report.events.accepted, 3);
    assert_eq!(place.dead_letters().await[9].2.len(), 80);
}
