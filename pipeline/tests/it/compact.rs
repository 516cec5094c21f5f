//! `pipeline compact`: the same rows in fewer shards, also beside other writers.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow::util::display::array_value_to_string;
use pipeline::compact::{TARGET, compact};
use pipeline::engine::Resources;
use pipeline::verify::verify;
use proptest::prelude::*;
use schemas::config::Config;
use schemas::memory::MemorySize;
use schemas::tables::{EVENT_DATE, EVENTS, EVENTS_SCHEMA};
use store::commit::{Change, CommitError, CommitMode, ShardWriter, Uncommitted};
use store::{Root, Snapshot};
use terminal::Interrupt;

use crate::common::{DAY_MS, Event, append, batch};

const RESOURCES: Resources = Resources { threads: 2, memory_bytes: 64 << 20 };

fn event(n: usize, user: u8, day: i64, source: u8) -> Event {
    Event {
        event_id: format!("e{n}"),
        user: format!("u{user}"),
        item: format!("i{}", n % 7),
        ts: (20_000 + day) * DAY_MS + n as i64,
        request: n.is_multiple_of(3).then(|| format!("r{n}")),
        request_ts: None,
        action: "play".into(),
        value: n.is_multiple_of(2).then_some(n as f64),
        source: format!("clicks-{source}"),
        // Positions are not in the order of arrival.
        position: (n as i64 * 7_919) % 1_000,
    }
}

/// Every row as text, sorted; and whether each shard is in the order (source, position).
async fn rows(events: &Snapshot) -> (Vec<String>, BTreeMap<String, bool>) {
    let (mut rows, mut sorted) = (Vec::new(), BTreeMap::new());
    let columns: Vec<&str> = EVENTS_SCHEMA.fields().iter().map(|field| field.name().as_str()).collect();
    let columns = &columns[..columns.len() - 1];
    for shard in events.shards() {
        let mut places = Vec::new();
        for batch in events.read_shard(shard, columns).await.unwrap() {
            let sources = batch.column_by_name("source").unwrap().as_string::<i32>().iter();
            let positions = batch.column_by_name("position").unwrap().as_primitive::<Int64Type>().values();
            places.extend(sources.zip(positions).map(|(s, &p)| (s.unwrap().to_owned(), p)));
            for row in 0..batch.num_rows() {
                let values = batch.columns().iter().map(|c| array_value_to_string(c, row).unwrap());
                rows.push(format!("{:?} {}", shard.partition, values.collect::<Vec<_>>().join("|")));
            }
        }
        sorted.insert(shard.path.clone(), places.is_sorted());
    }
    rows.sort();
    (rows, sorted)
}

fn new_root() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    (directory, root)
}

async fn check(commits: Vec<Vec<(u8, i64, u8)>>, target: u64, memory_bytes: usize) {
    let (_directory, root) = new_root();
    let mut n = 0;
    for commit in &commits {
        let numbered = commit.iter().map(|&(user, day, source)| {
            n += 1;
            event(n, user, day, source)
        });
        append(&root, &numbered.collect::<Vec<_>>()).await;
    }
    let before = root.require(EVENTS, "").await.unwrap();
    let target = MemorySize::bytes(target);
    let resources = Resources { memory_bytes, ..RESOURCES };
    let report = compact(&root, &[], target, resources, &Interrupt::default()).await.unwrap();
    let after = root.require(EVENTS, "").await.unwrap();

    let ((old, _), (new, sorted)) = (rows(&before).await, rows(&after).await);
    assert_eq!(old, new);
    let was_there = |path: &str| before.shards().iter().any(|shard| shard.path == path);
    assert!(sorted.iter().all(|(path, sorted)| was_there(path) || *sorted), "{sorted:?}");
    let table = &report.tables[0];
    assert_eq!((table.shards_before, table.shards_after), (before.shards().len(), after.shards().len()));
    assert_eq!(table.bytes_after, after.shards().iter().map(|shard| shard.bytes).sum::<u64>());
    assert_eq!(table.version, after.version());
    assert_eq!(after.version(), before.version() + table.rewritten.len() as u64, "a commit for each date");
    for date in &table.rewritten {
        let shards = |of: &Snapshot| {
            of.shards().iter().filter(|s| s.partition[EVENT_DATE].as_ref() == Some(date)).count()
        };
        assert!(shards(&after) < shards(&before));
    }
    // Incremental readers see no new rows, and none are lost.
    assert_eq!(after.appended_since(0).await.unwrap(), before.appended_since(0).await.unwrap());
    assert!(after.appended_since(before.version()).await.unwrap().is_empty());
    assert_eq!(rows(&root.snapshot_at(EVENTS, before.version()).await.unwrap().unwrap()).await.0, old);
    assert!(verify(&Config::default(), &root, Some(EVENTS)).await.unwrap().violation.is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn the_rows_stay_what_they_are(
        commits in prop::collection::vec(
            prop::collection::vec((0u8..4, 0i64..3, 0u8..3), 1..60), 1..8,
        ),
        target in prop_oneof![Just(TARGET.bytes), 3_000u64..20_000],
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(check(commits, target, 64 << 20));
    }
}

#[tokio::test]
async fn more_rows_than_memory_holds() {
    let commits = (0..4).map(|c| (0..20_000).map(|n| (n as u8, 0, (n * c % 5) as u8)).collect());
    check(commits.collect(), TARGET.bytes, 16 << 20).await;
}

#[tokio::test]
async fn nothing_to_do_makes_no_commit() {
    let (_directory, root) = new_root();
    append(&root, &[event(1, 0, 0, 0), event(2, 0, 1, 0)]).await;
    let report = compact(&root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
    assert_eq!(root.require(EVENTS, "").await.unwrap().version(), 0);
    assert!(report.to_string().contains("nothing to do"), "{report}");
    for (table, said) in [("sequences", "written as a whole"), ("dead_letters", "no table `dead_letters`")] {
        let error = compact(&root, &[table.into()], TARGET, RESOURCES, &Interrupt::default()).await;
        assert!(error.unwrap_err().to_string().contains(said));
    }
}

/// Appends one event; retries after each conflict with another writer.
async fn append_beside(root: &Root, event: &Event) {
    loop {
        let read_version = root.snapshot(EVENTS).await.unwrap().map(|snapshot| snapshot.version());
        let partition = [(EVENT_DATE, "2024-10-04")];
        let mut writer = ShardWriter::create(root, EVENTS, "part", &EVENTS_SCHEMA, &partition).unwrap();
        writer.write(&batch(std::slice::from_ref(event))).unwrap();
        let mut shards = Uncommitted::new(root, EVENTS);
        shards.push(writer.finish().unwrap());
        let change = Change {
            table: EVENTS,
            schema: &EVENTS_SCHEMA,
            partition_by: &[EVENT_DATE],
            mode: CommitMode::Append,
            shards: shards.shards(),
            properties: BTreeMap::new(),
            read_version,
            transactions: [("clicks/0".to_owned(), event.position)].into(),
        };
        match shards.commit(change).await {
            Err(CommitError::Conflict { .. }) => {}
            done => return assert!(done.unwrap().changed),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_may_run_beside_it() {
    let (_directory, root) = new_root();
    let events: Vec<Event> = (0..40).map(|n| event(n, 0, 0, 0)).collect();
    append_beside(&root, &events[0]).await;
    let consumer = {
        let (root, events) = (root.clone(), events.clone());
        tokio::spawn(async move {
            for event in &events[1..] {
                append_beside(&root, event).await;
            }
        })
    };
    let (mut rewritten, mut lost) = (0, 0);
    while !consumer.is_finished() {
        // Two compactions at once conflict, and one of them gives up.
        let stop = Interrupt::default();
        let (one, two) = tokio::join!(
            compact(&root, &[], TARGET, RESOURCES, &stop),
            compact(&root, &[], TARGET, RESOURCES, &stop),
        );
        for report in [one.unwrap(), two.unwrap()] {
            rewritten += report.tables[0].rewritten.len();
            lost += report.tables[0].lost.len();
        }
    }
    consumer.await.unwrap();
    let after = root.require(EVENTS, "").await.unwrap();
    assert_eq!(after.version(), (39 + rewritten) as u64, "{lost} were lost");
    let (rows, _) = rows(&after).await;
    assert_eq!(rows.len(), 40);
    assert_eq!(after.transaction("clicks/0").await.unwrap(), Some(events[39].position));
    assert!(verify(&Config::default(), &root, Some(EVENTS)).await.unwrap().violation.is_none());
    // Abandoned shards were deleted: a version names every file of the directory.
    let named: std::collections::BTreeSet<String> = after.appended_since(0).await.unwrap();
    let first = root.snapshot_at(EVENTS, 0).await.unwrap().unwrap();
    let files = std::fs::read_dir(root.table_path(EVENTS).join("event_date=2024-10-04")).unwrap().count();
    assert_eq!(files, named.len() + first.shards().len() + rewritten);
}
