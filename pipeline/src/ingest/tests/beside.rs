//! A run beside another writer that commits to its tables.

use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{
    ArrayRef, Date32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use schemas::tables::EVENTS_SCHEMA;
use store::commit::{Change, CommitError, CommitMode, ShardWriter, Uncommitted};

use super::*;

const DAY: i64 = 86_400_000;

/// Appends events with these ids, whatever others commit meanwhile.
async fn append(root: &Root, ids: &[&str], ts: i64) {
    let n = ids.len();
    let date = crate::records::date_text(i32::try_from(ts.div_euclid(DAY)).unwrap());
    let texts = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text; n])) };
    let times = |ts: Option<i64>| -> ArrayRef {
        Arc::new(TimestampMillisecondArray::from(vec![ts; n]).with_timezone("UTC"))
    };
    let columns = EVENTS_SCHEMA.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "event_id" => Arc::new(StringArray::from(ids.to_vec())),
            "ts" => times(Some(ts)),
            "request_ts" => times(None),
            "request_id" => Arc::new(StringArray::from(vec![None::<&str>; n])),
            "value" => Arc::new(Float64Array::from(vec![None; n])),
            "position" => Arc::new(Int64Array::from_iter_values(0..n as i64)),
            "element" => Arc::new(Int32Array::new_null(n)),
            EVENT_DATE => Arc::new(Date32Array::from(vec![0; n])),
            "source" => texts("clicks-0"),
            _ => texts("x"),
        }
    });
    let rows = RecordBatch::try_new(EVENTS_SCHEMA.clone(), columns.collect()).unwrap();
    loop {
        let mut writer =
            ShardWriter::create(root, EVENTS, "part", &EVENTS_SCHEMA, &[(EVENT_DATE, &date)]).unwrap();
        writer.write(&rows).unwrap();
        let mut shards = Uncommitted::new(root, EVENTS);
        shards.push(writer.finish().unwrap());
        let change = Change {
            table: EVENTS,
            schema: &EVENTS_SCHEMA,
            partition_by: &[EVENT_DATE],
            mode: CommitMode::Append,
            shards: shards.shards(),
            properties: Default::default(),
            read_version: root.snapshot(EVENTS).await.unwrap().map(|snapshot| snapshot.version()),
            transactions: Default::default(),
        };
        match shards.commit(change).await {
            Err(CommitError::Conflict { .. }) => {}
            committed => {
                committed.unwrap();
                return;
            }
        }
    }
}

/// Files of a table's directory that the newest version does not name.
async fn strays(place: &Place, table: &str) -> Vec<String> {
    let snapshot = place.table(table).await;
    let known: Vec<&str> = snapshot.shards().iter().map(|shard| shard.path.as_str()).collect();
    let directory = place.root.table_path(table);
    let pattern = format!("{}/**/*.parquet", directory.display());
    let files = glob::glob(&pattern).unwrap().map(|file| {
        let file = file.unwrap();
        file.strip_prefix(&directory).unwrap().to_str().unwrap().to_owned()
    });
    files.filter(|file| !file.starts_with("_delta_log") && !known.contains(&file.as_str())).collect()
}

/// Two days of events with ids `e0` to `e9`, the even ones on the first day.
fn log() -> String {
    let line = |n: i64| format!("e{n},u{n},i{n},{}\n", 86_400 * (n % 2) + n);
    "event_id,user_id,item_id,ts\n".to_owned() + &(0..10).map(line).collect::<String>()
}

#[tokio::test]
async fn what_others_stored_meanwhile_is_a_duplicate() {
    let mut place = Place::new();
    place.config.events.paths = vec![place.file("log.csv", log())];
    append(&place.root, &["before"], 0).await;
    let (config, root) = (&place.config, &place.root);
    let interrupt = Interrupt::default();
    let run = Run::begin(config, root, Limits::default(), &interrupt).await.unwrap();
    // All events of the first day but one, an unrelated one, and one of the second day's ids under the first day's date.
    append(root, &["e0", "e2"], 5).await;
    append(root, &["e4", "e6", "else"], 6).await;
    append(root, &["e3"], 7).await;
    let report = run.finish().await.unwrap();
    assert_eq!((report.events.read, report.events.accepted, report.events.duplicates), (10, 5, 5));
    assert_eq!(report.versions.events, Some(4));
    assert_eq!(report.events_stored, 12);
    assert_eq!(place.events().await.len(), 12);
    assert_eq!(strays(&place, EVENTS).await, [""; 0]);
    // A second run has nothing to add.
    let again = place.ingest().await.unwrap();
    assert_eq!((again.events.accepted, again.events.duplicates), (0, 10));
}

/// One id on days 2 and 4: the second event is a duplicate of the first. Another writer then stores the id on day 0: now the
/// first is the duplicate, and the second is an event.
#[tokio::test]
async fn what_stood_for_another_day_is_decided_again() {
    let mut place = Place::new();
    let log = format!("event_id,user_id,item_id,ts\na,u,i,{}\na,u,i,{}\n", 2 * 86_400, 4 * 86_400);
    place.config.events.paths = vec![place.file("log.csv", log)];
    place.config.events.dedup_days = 2;
    append(&place.root, &["before"], 0).await;
    let interrupt = Interrupt::default();
    let run = Run::begin(&place.config, &place.root, Limits::default(), &interrupt).await.unwrap();
    append(&place.root, &["a"], 5).await;
    let error = run.finish().await.unwrap_err();
    assert!(matches!(error, IngestError::DecidedOtherwise), "{error}");
    assert_eq!(strays(&place, EVENTS).await, [""; 0]);
    let again = place.ingest().await.unwrap();
    assert_eq!((again.events.accepted, again.events.duplicates), (1, 1));
    assert_eq!(place.events().await.len(), 3);
}

#[tokio::test]
async fn everything_stored_meanwhile_leaves_nothing_to_add() {
    let mut place = Place::new();
    place.config.events.paths = vec![place.file("log.csv", log())];
    let interrupt = Interrupt::default();
    let run = Run::begin(&place.config, &place.root, Limits::default(), &interrupt).await.unwrap();
    let ids: Vec<String> = (0..10).map(|n| format!("e{n}")).collect();
    append(&place.root, &ids.iter().map(String::as_str).collect::<Vec<_>>(), 5).await;
    let report = run.finish().await.unwrap();
    assert_eq!((report.events.accepted, report.events.duplicates), (0, 10));
    assert_eq!(place.events().await.len(), 10);
    assert_eq!(strays(&place, EVENTS).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_commits_again_and_again_does_not_stop_a_run() {
    let mut place = Place::new();
    place.config.events.paths = vec![place.file("log.csv", log())];
    let (config, root, interrupt) = (&place.config, &place.root, Interrupt::default());
    let run = Run::begin(config, root, Limits::default(), &interrupt).await.unwrap();
    let stop = AtomicBool::new(false);
    let others = async {
        let mut n = 0;
        while !stop.load(Ordering::Relaxed) && n < 40 {
            append(root, &[&format!("other{n}")], 5).await;
            n += 1;
        }
        n
    };
    let finish = async {
        let report = run.finish().await;
        stop.store(true, Ordering::Relaxed);
        report
    };
    let (n, report) = tokio::join!(others, finish);
    let report = report.unwrap();
    assert_eq!((report.events.accepted, report.events.duplicates), (10, 0));
    assert_eq!(place.events().await.len(), 10 + n);
    assert_eq!(strays(&place, EVENTS).await, [""; 0]);
}

#[tokio::test]
async fn two_runs_on_the_same_files_at_once_store_everything_once() {
    let mut place = Place::new();
    let bad = log() + "torn\n,,,\n";
    place.config.events.paths = vec![place.file("log.csv", bad)];
    place.config.events.max_dead_letter_rate = 1.0;
    let catalogue = |title: &str| format!("item_id,title\ni1,{title}\nnew,New\n");
    place.config.items.paths = vec![place.file("items.csv", catalogue("One"))];
    place.config.items.columns.title = Some("title".into());
    let interrupt = Interrupt::default();
    let mut other = place.config.clone();
    other.items.paths = vec![place.file("other.csv", catalogue("Two").replace("new", "newer"))];
    let first = Run::begin(&place.config, &place.root, Limits::default(), &interrupt).await.unwrap();
    run(&other, &place.root, &interrupt).await.unwrap();
    let report = first.finish().await.unwrap();
    assert_eq!((report.events.accepted, report.events.duplicates, report.events.dead_letters), (0, 10, 2));
    assert_eq!(place.events().await.len(), 10);
    assert_eq!(place.dead_letters().await.len(), 2);
    for table in [EVENTS, ITEMS, DEAD_LETTERS] {
        let strays = strays(&place, table).await;
        // `items` keeps the file of its older version.
        assert_eq!(strays.len(), usize::from(table == ITEMS), "{strays:?}");
    }
    // Indexes stay, and the values of this run's catalogue win.
    let items = place.items(&[]).await;
    assert_eq!(
        (items.len(), items[0].as_str(), items[1].as_str()),
        (12, "1 i1 One true", "2 newer New true")
    );
    assert_eq!(items[11], "12 new New true");
}

#[tokio::test]
async fn nobody_who_was_forgotten_meanwhile_is_stored() {
    let mut place = Place::new();
    place.config.events.paths = vec![place.file("log.csv", log())];
    place.ingest().await.unwrap();
    place.config.events.paths = vec![place.file("more.csv", "user_id,item_id,ts\nu1,i1,77\n")];
    let interrupt = Interrupt::default();
    let run = Run::begin(&place.config, &place.root, Limits::default(), &interrupt).await.unwrap();
    crate::privacy::forget(&place.config, &place.root, &["u1".to_owned()], &interrupt).await.unwrap();
    let error = run.finish().await.unwrap_err();
    assert!(matches!(error, IngestError::ForgottenMeanwhile), "{error}");
    assert_eq!(place.events().await.len(), 9);
    assert_eq!(strays(&place, EVENTS).await.len(), 1, "that of the version before");
    assert_eq!(place.ingest().await.unwrap().events.forgotten, 1);
}
