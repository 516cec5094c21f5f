//! Whole runs on small files.

mod beside;
mod catalogue;
mod damage;
mod days;
mod dialects;
mod explode;
mod formats;
mod garbage;
mod inputs;
mod ipc;
mod limits;
mod parquet;

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMillisecondType, UInt32Type};
use schemas::config::TimeUnit;
use schemas::tables::EVENT_DATE;

use super::*;

/// A directory of inputs with a root beside them.
struct Place {
    dir: tempfile::TempDir,
    root: Root,
    config: Config,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().join("root").to_str().unwrap()).unwrap();
        let mut config = Config::default();
        config.events.ts_format = TimeUnit::S.into();
        // Most tests tell the time from 1970 on.
        config.events.check_times = false;
        Self { dir, root, config }
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    async fn ingest(&self) -> Result<IngestReport, IngestError> {
        run(&self.config, &self.root, &Interrupt::default()).await
    }

    /// Ingests a file of events without a catalogue.
    async fn ingest_file(
        &mut self,
        name: &str,
        bytes: impl AsRef<[u8]>,
    ) -> Result<IngestReport, IngestError> {
        self.config.events.paths = vec![self.file(name, bytes)];
        self.ingest().await
    }

    async fn table(&self, table: &str) -> Snapshot {
        self.root.snapshot(table).await.unwrap().unwrap()
    }

    /// `(event_id, "user item ts action value request_id request_ts source:position")`, by source and position.
    async fn events(&self) -> Vec<(String, String)> {
        let columns = [
            "event_id",
            "user_id",
            "item_id",
            "action",
            "request_id",
            "source",
            "ts",
            "request_ts",
            "value",
            "position",
            "element",
        ];
        let mut rows = Vec::new();
        for batch in self.table(EVENTS).await.read(&columns).await.unwrap() {
            for row in 0..batch.num_rows() {
                let text = |at: usize| {
                    batch.column(at).is_valid(row).then(|| batch.column(at).as_string::<i32>().value(row))
                };
                let time = |at: usize| {
                    let column = batch.column(at).as_primitive::<TimestampMillisecondType>();
                    column.is_valid(row).then(|| column.value(row))
                };
                let value = batch.column(8).as_primitive::<Float64Type>();
                let position = batch.column(9).as_primitive::<Int64Type>().value(row);
                let source = Path::new(text(5).unwrap()).file_name().unwrap().to_str().unwrap().to_owned();
                let line = format!(
                    "{} {} {} {} {:?} {:?} {:?}",
                    text(1).unwrap(),
                    text(2).unwrap(),
                    time(6).unwrap(),
                    text(3).unwrap(),
                    value.is_valid(row).then(|| value.value(row)),
                    text(4),
                    time(7),
                );
                let element = batch.column(10).as_primitive::<Int32Type>();
                let element = element.is_valid(row).then(|| element.value(row));
                rows.push((source, (position, element), text(0).unwrap().to_owned(), line));
            }
        }
        rows.sort();
        rows.into_iter()
            .map(|(source, (position, _), id, line)| (id, format!("{line} {source}:{position}")))
            .collect()
    }

    async fn lines(&self) -> Vec<String> {
        self.events().await.into_iter().map(|(_, line)| line).collect()
    }

    /// `(position, reason, value)`.
    async fn dead_letters(&self) -> Vec<(i64, String, Vec<u8>)> {
        let mut rows = Vec::new();
        for batch in self.table(DEAD_LETTERS).await.read(&["position", "reason", "value"]).await.unwrap() {
            for row in 0..batch.num_rows() {
                rows.push((
                    batch.column(0).as_primitive::<Int64Type>().value(row),
                    batch.column(1).as_string::<i32>().value(row).to_owned(),
                    batch.column(2).as_binary::<i32>().value(row).to_vec(),
                ));
            }
        }
        rows.sort();
        rows
    }

    /// `"index id title active attribute=values…"`, by index.
    async fn items(&self, attributes: &[&str]) -> Vec<String> {
        let mut columns = vec!["item_index", "item_id", "title", "active"];
        columns.extend(attributes);
        let mut rows = Vec::new();
        for batch in self.table(ITEMS).await.read(&columns).await.unwrap() {
            for row in 0..batch.num_rows() {
                let titles = batch.column(2).as_string::<i32>();
                let mut line = format!(
                    "{} {} {} {}",
                    batch.column(0).as_primitive::<UInt32Type>().value(row),
                    batch.column(1).as_string::<i32>().value(row),
                    if titles.is_valid(row) { titles.value(row) } else { "-" },
                    batch.column(3).as_boolean().value(row),
                );
                for (at, attribute) in attributes.iter().enumerate() {
                    let values = batch.column(4 + at).as_list::<i32>().value(row);
                    let values: Vec<_> = values.as_string::<i32>().iter().flatten().collect();
                    line.push_str(&format!(" {attribute}={}", values.join(",")));
                }
                rows.push(line);
            }
        }
        rows
    }

    /// Parquet files in the tables' directories, committed or not.
    fn files(&self) -> usize {
        glob::glob(&format!("{}/**/*.parquet", self.root.path().display())).unwrap().count()
    }
}

const LOG: &str = "user_id,item_id,ts,value\nu1,i1,100,1\nu1,i2,86400,2.5\nu2,i1,100,\nu1,i1,100,1\n";

#[tokio::test]
async fn reading_a_file_twice_adds_nothing_and_equal_purchases_stay_two() {
    let mut place = Place::new();
    let first = place.ingest_file("log.csv", LOG).await.unwrap();
    assert_eq!(
        first.events,
        RecordCounts { read: 4, accepted: 4, duplicates: 0, dead_letters: 0, forgotten: 0 }
    );
    let stored = place.events().await;
    let lines: Vec<_> = stored.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "u1 i1 100000 event Some(1.0) None None log.csv:0",
            "u1 i2 86400000 event Some(2.5) None None log.csv:1",
            "u2 i1 100000 event None None None log.csv:2",
            "u1 i1 100000 event Some(1.0) None None log.csv:3",
        ]
    );
    let snapshot = place.table(EVENTS).await;
    let dates: Vec<_> = snapshot.shards().iter().map(|s| s.partition[EVENT_DATE].clone().unwrap()).collect();
    assert_eq!(dates, ["1970-01-01", "1970-01-02"]);

    let second = place.ingest().await.unwrap();
    assert_eq!(
        second.events,
        RecordCounts { read: 4, accepted: 0, duplicates: 4, dead_letters: 0, forgotten: 0 }
    );
    assert_eq!((second.versions, second.events_stored), (first.versions, 4));
    // The same content under another file name is the same events; a further equal purchase is a further event.
    place.config.events.paths.push(place.file("copy.csv", format!("{LOG}u1,i1,100,1.0\n")));
    let third = place.ingest().await.unwrap();
    assert_eq!(
        third.events,
        RecordCounts { read: 9, accepted: 1, duplicates: 8, dead_letters: 0, forgotten: 0 }
    );
    assert_eq!(
        third.files[0].source,
        std::fs::canonicalize(place.dir.path().join("copy.csv")).unwrap().to_str().unwrap()
    );
    assert_eq!((third.files[0].counts.accepted, third.files[1].counts.accepted), (1, 0));
    assert_eq!(place.events().await.len(), 5);
}

#[tokio::test]
async fn a_producers_ids_are_kept_and_unique_within_the_days() {
    let mut place = Place::new();
    let log = "event_id,user_id,item_id,ts\na,u,first,1\na,u,second,2\na,u,days later,259200\n,u,no id,3\n";
    let report = place.ingest_file("log.csv", log).await.unwrap();
    assert_eq!(
        report.events,
        RecordCounts { read: 4, accepted: 3, duplicates: 1, dead_letters: 0, forgotten: 0 }
    );
    let events = place.events().await;
    assert_eq!((events[0].0.as_str(), events[1].0.as_str(), events[2].0.len()), ("a", "a", 32));
    assert!(events[0].1.contains("first"));
    // An item that only a duplicate names is no item.
    assert_eq!(place.items(&[]).await, ["1 first - true", "2 days later - true", "3 no id - true"]);
}

#[tokio::test]
async fn files_are_read_in_the_order_of_their_paths() {
    let mut place = Place::new();
    let b = place.file("b.csv", "event_id,user_id,item_id,ts\nx,u,from b,1\n");
    let a = place.file("a.csv", "event_id,user_id,item_id,ts\nx,u,from a,1\n");
    place.config.events.paths = vec![b, a, place.dir.path().join("*.csv").to_str().unwrap().into()];
    let report = place.ingest().await.unwrap();
    assert_eq!(
        report.events,
        RecordCounts { read: 2, accepted: 1, duplicates: 1, dead_letters: 0, forgotten: 0 }
    );
    assert!(place.lines().await[0].contains("from a"));
}

#[tokio::test]
async fn rejected_records_are_kept_as_they_came_and_only_once() {
    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.max_record_bytes = 60;
    let mut log =
        b"user_id,item_id,ts,value\r\n,i,1,\r\nu,i,soon,\r\nu,i,99999999999,\r\nu,i,1,many\r\nu,i\r\n"
            .to_vec();
    log.extend(b"u,\xff,1,\r\nu,i,1,\"with, a \"\"quote\"\"\"\r\nu,i,2,3\r\n");
    log.extend([b'x'; 100]);
    log.extend(b"\r\nu,i,5,\r\n");
    let report = place.ingest_file("log.csv", &log).await.unwrap();
    assert_eq!(
        report.events,
        RecordCounts { read: 10, accepted: 2, duplicates: 0, dead_letters: 8, forgotten: 0 }
    );
    let expected: [(i64, &str, &[u8]); 8] = [
        (0, "missing_field", b",i,1,"),
        (1, "invalid_time", b"u,i,soon,"),
        (2, "time_out_of_range", b"u,i,99999999999,"),
        (3, "wrong_type", b"u,i,1,many"),
        (4, "wrong_type", b"u,i"),
        (5, "invalid_utf8", b"u,\xff,1,"),
        (6, "wrong_type", b"u,i,1,\"with, a \"\"quote\"\"\""),
        (8, "too_long", &[b'x'; 60]),
    ];
    let expected: Vec<_> = expected.iter().map(|(p, r, v)| (*p, r.to_string(), v.to_vec())).collect();
    assert_eq!(place.dead_letters().await, expected);
    assert!(place.lines().await[1].ends_with("log.csv:9"));
    let again = place.ingest().await.unwrap();
    assert_eq!(
        again.events,
        RecordCounts { read: 10, accepted: 0, duplicates: 2, dead_letters: 8, forgotten: 0 }
    );
    assert_eq!(again.versions, report.versions);
}

#[tokio::test]
async fn a_file_replaced_under_its_name_has_dead_letters_of_its_own() {
    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    let monday = "user_id,item_id,ts\nu,i,soon\nu,,1\nu,i,1\n";
    let tuesday = "user_id,item_id,ts\nu,i,later\nu,,1\nu,i,2\n";
    place.ingest_file("today.csv", monday).await.unwrap();
    let second = place.ingest_file("today.csv", tuesday).await.unwrap();
    assert_eq!(second.events.dead_letters, 2);
    let letters = |rows: &[(i64, &str)]| -> Vec<(i64, Vec<u8>)> {
        rows.iter().map(|(position, value)| (*position, value.as_bytes().to_vec())).collect()
    };
    let stored = |rows: Vec<(i64, String, Vec<u8>)>| -> Vec<(i64, Vec<u8>)> {
        rows.into_iter().map(|(position, _, value)| (position, value)).collect()
    };
    let both = letters(&[(0, "u,i,later"), (0, "u,i,soon"), (1, "u,,1")]);
    assert_eq!(stored(place.dead_letters().await), both);
    // Ingesting either file again adds nothing.
    for log in [monday, tuesday] {
        let again = place.ingest_file("today.csv", log).await.unwrap();
        assert_eq!(
            (again.events.dead_letters, again.versions.dead_letters),
            (2, second.versions.dead_letters)
        );
    }
    assert_eq!(stored(place.dead_letters().await), both);
    let proof = crate::verify::verify(&place.config, &place.root, Some(DEAD_LETTERS)).await.unwrap();
    assert!(proof.violation.is_none(), "{:?}", proof.violation);
}

#[tokio::test]
async fn times_that_cannot_be_meant_stop_the_run_with_a_question() {
    let mut place = Place::new();
    place.config.events.check_times = true;
    place.config.events.ts_format = TimeUnit::Ms.into();
    let log = "user_id,item_id,ts\nu,a,1700000000\nu,b,1700086400\nu,c,1700172800\n";
    let other = place.file("other.csv", "user_id,item_id,ts\nu,a,1700000000000\n");
    place.config.events.paths = vec![place.file("log.csv", log), other];
    let error = place.ingest().await.unwrap_err().to_string();
    for part in ["log.csv: all 3 times", "are these seconds?", "events.check_times", "nothing was committed"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(place.root.snapshot(EVENTS).await.unwrap().is_none() && place.files() == 0);
    place.config.events.ts_format = TimeUnit::S.into();
    let report = place.ingest_file("log.csv", log).await.unwrap();
    assert_eq!((report.events.accepted, report.warnings.len()), (3, 0));
    place.config.events.ts_format = TimeUnit::Ms.into();
    place.config.events.check_times = false;
    assert_eq!(place.ingest().await.unwrap().events.accepted, 3);
}

#[tokio::test]
async fn a_run_that_is_mostly_garbage_commits_nothing() {
    let mut place = Place::new();
    let log = "user_id,item_id,ts\nu,i,1\nu,i,x\nu,,1\nu,i,y\n";
    let message = place.ingest_file("log.csv", log).await.unwrap_err().to_string();
    assert!(message.starts_with("3 of 4 event records (75.00 %)"), "{message}");
    assert!(message.contains("2  invalid_time") && message.contains("log.csv row 1: ts: `x`"), "{message}");
    assert!(place.root.snapshot(EVENTS).await.unwrap().is_none() && place.files() == 0);
    place.config.events.max_dead_letter_rate = 0.75;
    assert_eq!(place.ingest().await.unwrap().events.accepted, 1);
}

#[tokio::test]
async fn a_torn_quote_costs_one_line() {
    let mut place = Place::new();
    place.config.events.max_dead_letter_rate = 1.0;
    place.config.events.max_record_bytes = 64;
    let mut log = String::from("user_id,item_id,ts\n\"two\nlines\",i,1\nu,\"torn,2\n");
    (0..50).for_each(|n| log.push_str(&format!("u,i,{n}\n")));
    log.push_str("\"u,i,3\n");
    log.push_str("u,i,1000\nu,\"i,4");
    let report = place.ingest_file("log.csv", &log).await.unwrap();
    assert_eq!(
        report.events,
        RecordCounts { read: 55, accepted: 52, duplicates: 0, dead_letters: 3, forgotten: 0 },
        "{}",
        report.examples
    );
    let values: Vec<_> =
        place.dead_letters().await.into_iter().map(|(_, _, v)| String::from_utf8(v).unwrap()).collect();
    assert_eq!(values, ["u,\"torn,2", "\"u,i,3", "u,\"i,4"]);
}

#[tokio::test]
async fn no_records_and_no_files_are_errors() {
    let mut place = Place::new();
    let message = place.ingest().await.unwrap_err().to_string();
    assert!(message.contains("nothing to read"), "{message}");
    for (name, text) in [("a.csv", "user_id,item_id,ts\n"), ("b.csv", ""), ("c.jsonl", "\n\n")] {
        let error = place.ingest_file(name, text).await.unwrap_err();
        assert!(matches!(error, IngestError::Empty { .. }) && error.to_string().contains(name), "{error}");
    }
    for (path, says) in [("/nowhere/x.csv", "no such file"), ("/nowhere/*.csv", "no file matches")] {
        place.config.events.paths = vec![path.into()];
        let message = place.ingest().await.unwrap_err().to_string();
        assert!(message.contains(says) && message.contains(path), "{message}");
    }
    assert_eq!(place.files(), 0);
}

#[tokio::test]
async fn an_interrupted_run_leaves_the_tables_and_no_files() {
    let mut place = Place::new();
    place.ingest_file("log.csv", LOG).await.unwrap();
    let files = place.files();
    place.config.events.paths = vec![place.file("more.csv", "user_id,item_id,ts\nu,i,5\n")];
    let interrupt = Interrupt::default();
    interrupt.request();
    let error = run(&place.config, &place.root, &interrupt).await.unwrap_err();
    assert!(matches!(error, IngestError::Interrupted), "{error}");
    assert_eq!((place.files(), place.table(EVENTS).await.version()), (files, 0));
}

#[tokio::test]
async fn a_run_that_died_between_two_commits_is_completed_by_the_next() {
    let mut place = Place::new();
    place.ingest_file("log.csv", LOG).await.unwrap();
    let (events, items) = (place.events().await, place.items(&[]).await);
    // As if the process had died after the commit of `items`.
    std::fs::remove_dir_all(place.root.table_path(EVENTS)).unwrap();
    let report = place.ingest().await.unwrap();
    assert_eq!((report.events.accepted, report.catalogue.from_events, report.versions.items), (4, 0, 0));
    assert_eq!((place.events().await, place.items(&[]).await), (events, items));
}
