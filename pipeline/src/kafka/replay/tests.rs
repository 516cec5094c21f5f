use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use schemas::config::Config;
use schemas::memory::MemorySize;
use schemas::tables::{DEAD_LETTERS, DEAD_LETTERS_SCHEMA, REPLAYS};
use store::Root;
use store::commit::{Change, CommitMode, ShardWriter, commit};
use terminal::Interrupt;

use super::*;
use crate::compact::compact;
use crate::engine::Resources;
use crate::kafka::producer::tests::{broker, receive};

type Letter = (&'static str, i64, Option<&'static [u8]>, &'static [u8], &'static str, i64);

const LETTERS: [Letter; 6] = [
    ("clicks-1", 7, Some(b"u1"), b"{\"a\": \xff", "malformed_json", 1_000),
    ("clicks-0", 3, Some(b"u\x00"), b"", "tombstone", 2_000),
    ("clicks-0", 2, None, b"", "missing_field", 3_000),
    ("log.csv", 1, None, b"u1,,3", "missing_field", 4_000),
    ("clicks-0", 9, Some(b""), b"[]", "malformed_json", 5_000),
    ("other-0", 0, Some(b"u2"), b"{", "malformed_json", 6_000),
];

async fn append(root: &Root, letters: &[Letter]) {
    let text = |of: fn(&Letter) -> &'static str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(letters.iter().map(of)))
    };
    let columns: Vec<ArrayRef> = vec![
        text(|l| l.0),
        Arc::new(Int64Array::from_iter_values(letters.iter().map(|l| l.1))),
        Arc::new(BinaryArray::from_iter(letters.iter().map(|l| l.2))),
        Arc::new(BinaryArray::from_iter_values(letters.iter().map(|l| l.3))),
        text(|l| l.4),
        text(|_| "what was wrong"),
        Arc::new(
            TimestampMillisecondArray::from_iter_values(letters.iter().map(|l| l.5)).with_timezone("UTC"),
        ),
    ];
    let mut writer = ShardWriter::create(root, DEAD_LETTERS, "part", &DEAD_LETTERS_SCHEMA, &[]).unwrap();
    writer.write(&RecordBatch::try_new(DEAD_LETTERS_SCHEMA.clone(), columns).unwrap()).unwrap();
    let shards = [writer.finish().unwrap()];
    let read_version = root.snapshot(DEAD_LETTERS).await.unwrap().map(|snapshot| snapshot.version());
    let change = Change {
        table: DEAD_LETTERS,
        schema: &DEAD_LETTERS_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Append,
        shards: &shards,
        properties: BTreeMap::new(),
        read_version,
        transactions: BTreeMap::new(),
    };
    commit(root, change).await.unwrap();
}

async fn new_root(letters: &[Letter]) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    append(&root, letters).await;
    (directory, root)
}

fn request(filter: Filter) -> ReplayRequest {
    ReplayRequest { filter, all: true, topic: "clicks".into(), dry_run: false, again: false }
}

async fn run(config: &Config, root: &Root, request: &ReplayRequest) -> ReplayReport {
    replay(config, root, request, &Interrupt::default()).await.unwrap()
}

fn totals(report: &ReplayReport) -> (u64, u64, u64) {
    (report.selected, report.sent_before, report.sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn records_go_back_as_they_came_and_once() {
    let (_cluster, kafka) = broker(1);
    let config = Config { kafka, ..Config::default() };
    let (_directory, root) = new_root(&LETTERS).await;
    let mut malformed = request(Filter { reasons: vec!["malformed_json".into()], ..Filter::default() });
    malformed.filter.source = Some(glob::Pattern::new("clicks-*").unwrap());

    let dry = run(&config, &root, &ReplayRequest { dry_run: true, ..malformed.clone() }).await;
    assert_eq!(totals(&dry), (2, 0, 2));
    assert!(root.snapshot(REPLAYS).await.unwrap().is_none());
    assert_eq!(totals(&run(&config, &root, &malformed).await), (2, 0, 2));
    assert_eq!(totals(&run(&config, &root, &malformed).await), (2, 2, 0));

    // Another filter, with the same records in other shards.
    append(&root, &[("clicks-2", 1, None, b"late", "malformed_json", 500)]).await;
    let target = MemorySize::bytes(1 << 20);
    compact(&root, &[], target, Resources::default(), &Interrupt::default()).await.unwrap();
    assert_eq!(root.require(DEAD_LETTERS, "").await.unwrap().shards().len(), 1);
    let all = request(Filter::default());
    let report = run(&config, &root, &all).await;
    assert_eq!(totals(&report), (6, 2, 4));
    assert_eq!(report.groups.iter().map(|group| group.sent).sum::<u64>(), 4);
    assert!(report.groups.iter().all(|group| group.source != "log.csv"), "{report}");

    let times = Filter { since_ms: Some(4_000), until_ms: Some(5_000), files: true, ..Filter::default() };
    assert_eq!(totals(&run(&config, &root, &request(times)).await), (1, 0, 1));
    let again = ReplayRequest { again: true, ..malformed };
    assert_eq!(totals(&run(&config, &root, &again).await), (3, 0, 3));

    let some = |bytes: &[u8]| Some(bytes.to_vec());
    let sent: Vec<_> =
        receive(&config.kafka, 1, 10).into_iter().map(|(_, key, value)| (key, value)).collect();
    let expected = [
        (some(b""), some(b"[]")),
        (some(b"u1"), some(b"{\"a\": \xff")),
        (None, some(b"")),
        (some(b"u\x00"), None),
        (None, some(b"late")),
        (some(b"u2"), some(b"{")),
        (None, some(b"u1,,3")),
        (some(b""), some(b"[]")),
        (some(b"u1"), some(b"{\"a\": \xff")),
        (None, some(b"late")),
    ];
    assert_eq!(sent, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_sent_when_the_command_is_repeated() {
    let (_cluster, kafka) = broker(1);
    let mut config = Config { kafka, ..Config::default() };
    config.kafka.properties.insert("message.max.bytes".into(), "1000".into());
    let large: Letter = ("clicks-0", 5, None, &[b'x'; 3_000], "too_long", 0);
    let (_directory, root) = new_root(&[LETTERS[0], large, LETTERS[4]]).await;
    let report = run(&config, &root, &request(Filter::default())).await;
    assert_eq!(totals(&report), (3, 0, 2));
    let problem = report.problem.unwrap();
    assert!(problem.contains("1 of 3") && problem.contains("repeat"), "{problem}");
    config.kafka.properties.clear();
    let report = run(&config, &root, &request(Filter::default())).await;
    assert_eq!((totals(&report), report.problem), ((3, 2, 1), None));
    assert_eq!(receive(&config.kafka, 1, 3)[2].2.as_deref(), Some(large.3));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_without_a_filter_or_a_broker() {
    let (_directory, root) = new_root(&LETTERS).await;
    let mut config = Config::default();
    config.kafka.brokers = "127.0.0.1:1".into();
    config.kafka.patience.ms = 300;
    let unfiltered = ReplayRequest { all: false, ..request(Filter::default()) };
    let error = replay(&config, &root, &unfiltered, &Interrupt::default()).await.unwrap_err();
    assert!(error.to_string().contains("--all"), "{error}");
    let error = replay(&config, &root, &request(Filter::default()), &Interrupt::default()).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(root.snapshot(REPLAYS).await.unwrap().is_none());
}
