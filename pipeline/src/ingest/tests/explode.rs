//! Records that hold several events, and fields inside of fields.

use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow::array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use schemas::config::{Chosen, Dialect, Explode, TimeFormat};
use schemas::tables::EVENTS_SCHEMA;
use store::commit::{Change, CommitMode, ShardWriter, Uncommitted};

use super::*;

/// MIND's log of impressions.
const BEHAVIORS: &str = "1\tU1\t11/11/2019 2:14:46 AM\tN9 N8\tN1-0 N2-1 N3-0\n\
                         2\tU2\t11/11/2019 2:14:47 AM\t\tN2-1\n\
                         3\tU3\t11/11/2019 2:14:48 AM\tN9\t\n\
                         4\tU4\t11/11/2019 2:14:49 AM\tN9\tN1-1 N4\n";

fn mind() -> Place {
    let mut place = Place::new();
    let events = &mut place.config.events;
    let names = ["impression", "user", "time", "history", "impressions"];
    events.csv = Dialect {
        quote: Some(String::new()),
        names: names.map(str::to_owned).to_vec(),
        ..Dialect::default()
    };
    events.ts_format = TimeFormat::try_from("%m/%d/%Y %I:%M:%S %p".to_owned()).unwrap();
    events.columns.user_id = "user".into();
    events.columns.item_id = "impressions".into();
    events.columns.ts = "time".into();
    events.columns.request_id = Some("impression".into());
    events.columns.request_ts = Some("time".into());
    events.explode = Explode {
        columns: vec!["impressions".into()],
        separator: Some(" ".into()),
        action_after: Some("-".into()),
        chosen: None,
    };
    events.action_names = [("0", "impression"), ("1", "click")].map(|(a, b)| (a.into(), b.into())).into();
    events.max_dead_letter_rate = 0.5;
    place
}

#[tokio::test]
async fn a_log_of_requests_becomes_events() {
    let mut place = mind();
    let report = place.ingest_file("behaviors.tsv", BEHAVIORS).await.unwrap();
    assert_eq!(
        report.events,
        RecordCounts { read: 6, accepted: 5, duplicates: 0, dead_letters: 1, forgotten: 0 }
    );
    assert_eq!(report.files[0].records, Some(4));
    assert!(report.to_string().contains("records taken apart into events: 4"), "{report}");
    let line = |user: &str, item: &str, ms: i64, action: &str, request: &str, at: u64| {
        format!("{user} {item} {ms} {action} None Some({request:?}) Some({ms}) behaviors.tsv:{at}")
    };
    let expected = [
        line("U1", "N1", 1_573_438_486_000, "impression", "1", 0),
        line("U1", "N2", 1_573_438_486_000, "click", "1", 0),
        line("U1", "N3", 1_573_438_486_000, "impression", "1", 0),
        line("U2", "N2", 1_573_438_487_000, "click", "2", 1),
        line("U4", "N1", 1_573_438_489_000, "click", "4", 3),
    ];
    assert_eq!(place.lines().await, expected);
    let mut elements = Vec::new();
    for batch in place.table(EVENTS).await.read(&["item_id", "position", "element"]).await.unwrap() {
        for row in 0..batch.num_rows() {
            elements.push((
                batch.column(1).as_primitive::<Int64Type>().value(row),
                batch.column(2).as_primitive::<Int32Type>().value(row),
                batch.column(0).as_string::<i32>().value(row).to_owned(),
            ));
        }
    }
    let expected = [(0, 0, "N1"), (0, 1, "N2"), (0, 2, "N3"), (1, 0, "N2"), (3, 0, "N1")];
    assert_eq!(elements, expected.map(|(record, element, item)| (record, element, item.to_owned())));
    let dead = place.dead_letters().await;
    assert_eq!((dead[0].0, dead[0].1.as_str()), (3, "wrong_type"));
    assert_eq!(dead[0].2, BEHAVIORS.lines().last().unwrap().as_bytes());
    assert!(report.examples.contains("row 3: element 1: `N4` has no `-`"), "{}", report.examples);
    // Neither the blocks nor a second run make another event.
    let again = place.ingest().await.unwrap();
    assert_eq!((again.events.accepted, again.events.duplicates, again.events_stored), (0, 5, 5));
    for block_bytes in [1, 30, 70] {
        let mut other = mind();
        other.config.events.paths = vec![other.file("behaviors.tsv", BEHAVIORS)];
        let limits = Limits { block_bytes, ..Limits::default() };
        run_within(&other.config, &other.root, limits, &Interrupt::default()).await.unwrap();
        assert_eq!(other.events().await, place.events().await, "{block_bytes}");
        let bad: Vec<_> = other.dead_letters().await.into_iter().map(|(at, ..)| at).collect();
        assert_eq!(bad, [3], "{block_bytes}");
    }
}

#[tokio::test]
async fn lists_belong_together_and_chosen_items_are_among_them() {
    let mut place = Place::new();
    let events = &mut place.config.events;
    events.columns.item_id = "shown".into();
    events.columns.ts = "times".into();
    events.columns.event_id = Some("id".into());
    events.explode = Explode {
        columns: vec!["shown".into(), "times".into()],
        chosen: Some(Chosen { column: "clicked".into(), action: "click".into(), others: "view".into() }),
        ..Explode::default()
    };
    events.max_dead_letter_rate = 1.0;
    let log = concat!(
        r#"{"id": "r1", "user_id": 1, "shown": [7, "b", null], "times": [100, 101, 102], "clicked": ["b"]}"#,
        "\n",
        r#"{"id": "r2", "user_id": 1, "shown": [7, 8], "times": [100], "clicked": []}"#,
        "\n",
        r#"{"id": "r3", "user_id": 2, "shown": [], "times": null, "clicked": null}"#,
        "\n",
        r#"{"id": "r4", "user_id": 2, "shown": ["7"], "times": [103], "clicked": [9, 7]}"#,
        "\n",
        r#"{"id": "r5", "user_id": 2, "shown": 7, "times": [103]}"#,
    );
    let report = place.ingest_file("log.jsonl", log).await.unwrap();
    assert_eq!(
        report.events,
        RecordCounts { read: 7, accepted: 3, duplicates: 0, dead_letters: 4, forgotten: 0 }
    );
    let events: Vec<_> = place.events().await;
    let ids: Vec<_> = events.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["r1#0", "r1#1", "r4#0"]);
    let lines: Vec<_> = events.iter().map(|(_, line)| line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "1 7 100000 view None None None log.jsonl:0",
            "1 b 101000 click None None None log.jsonl:0",
            "2 7 103000 click None None None log.jsonl:3",
        ]
    );
    let dead: Vec<_> = place.dead_letters().await.into_iter().map(|(at, reason, _)| (at, reason)).collect();
    let expected = [(0, "missing_field"), (1, "wrong_type"), (3, "wrong_type"), (4, "wrong_type")];
    assert_eq!(dead, expected.map(|(at, reason)| (at, reason.to_owned())));
}

/// Lists of numbers and of structs, as other engines write them; one element is bad.
fn parquet() -> Vec<u8> {
    let shown = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(7), Some(8)]),
        Some(vec![Some(9), None]),
        None,
    ]);
    let user = Field::new("id", DataType::Utf8, true);
    let user = StructArray::from(vec![(
        Arc::new(user),
        Arc::new(StringArray::from(vec![Some("u1"), Some("u2"), None])) as ArrayRef,
    )]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("other", Arc::new(Int32Array::from(vec![1, 2, 3]))),
        ("shown", Arc::new(shown)),
        ("user", Arc::new(user)),
        ("when", Arc::new(TimestampMicrosecondArray::from(vec![100_000_000, 101_000_000, 102_000_000]))),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[tokio::test]
async fn a_path_leads_into_structs_and_objects() {
    let jsonl = concat!(
        r#"{"other": 1, "shown": [{"id": 7}, {"id": 8}], "user": {"id": "u1", "x": {}}, "when": 100}"#,
        "\n",
        r#"{"user": {"id": "u2"}, "shown": [{"id": 9}, {"id": null}], "when": 101}"#,
        "\n",
        r#"{"user": null, "shown": null, "when": 102}"#,
    );
    for (name, bytes, items) in [("log.parquet", parquet(), "shown"), ("log.jsonl", jsonl.into(), "shown.id")]
    {
        let mut place = Place::new();
        let events = &mut place.config.events;
        events.columns.user_id = "user.id".into();
        events.columns.item_id = items.into();
        events.columns.ts = "when".into();
        events.explode.columns = vec![items.into()];
        events.max_dead_letter_rate = 1.0;
        let report = place.ingest_file(name, bytes).await.unwrap();
        assert_eq!(
            (report.events.read, report.events.accepted, report.files[0].records),
            (4, 3, Some(3)),
            "{name}"
        );
        assert_eq!(
            place.lines().await,
            [
                format!("u1 7 100000 event None None None {name}:0"),
                format!("u1 8 100000 event None None None {name}:0"),
                format!("u2 9 101000 event None None None {name}:1"),
            ]
        );
        let dead = place.dead_letters().await;
        assert_eq!((dead.len(), dead[0].0, dead[0].1.as_str()), (1, 1, "missing_field"), "{name}");
        let value: serde_json::Value = serde_json::from_slice(&dead[0].2).unwrap();
        assert_eq!(value["user"]["id"], "u2", "{name}");
    }
}

/// Tables of version 0.1 have no column for elements.
#[tokio::test]
async fn a_table_without_elements_gets_them() {
    let mut place = Place::new();
    let earlier = EVENTS_SCHEMA.fields().iter().filter(|field| field.name() != "element").cloned();
    let earlier: Arc<Schema> = Arc::new(Schema::new(earlier.collect::<Vec<_>>()));
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let time = |ms| Arc::new(TimestampMillisecondArray::from(ms).with_timezone("UTC")) as ArrayRef;
    let columns = vec![
        text("given"),
        text("u1"),
        text("i1"),
        time(vec![Some(100_000)]),
        Arc::new(StringArray::new_null(1)),
        time(vec![None]),
        text("event"),
        Arc::new(Float64Array::new_null(1)),
        text("old.csv"),
        Arc::new(Int64Array::from(vec![7])),
    ];
    let without_date = earlier.project(&(0..columns.len()).collect::<Vec<_>>()).unwrap();
    let rows = RecordBatch::try_new(Arc::new(without_date), columns).unwrap();
    let partition = [(EVENT_DATE, "1970-01-01")];
    let mut writer = ShardWriter::create(&place.root, EVENTS, "part", &earlier, &partition).unwrap();
    writer.write(&rows).unwrap();
    let mut shards = Uncommitted::new(&place.root, EVENTS);
    shards.push(writer.finish().unwrap());
    let change = Change {
        table: EVENTS,
        schema: &earlier,
        partition_by: &[EVENT_DATE],
        mode: CommitMode::Append,
        shards: shards.shards(),
        properties: Default::default(),
        read_version: None,
        transactions: Default::default(),
    };
    shards.commit(change).await.unwrap();

    let report = place.ingest_file("log.csv", "user_id,item_id,ts\nu2,i2,101\n").await.unwrap();
    assert_eq!((report.events.accepted, report.events_stored), (1, 2));
    let stored: Vec<usize> = place
        .table(EVENTS)
        .await
        .read(&["element"])
        .await
        .unwrap()
        .iter()
        .map(|batch| batch.column(0).null_count())
        .collect();
    assert_eq!(stored.iter().sum::<usize>(), 2);
    assert_eq!(
        place.lines().await,
        ["u2 i2 101000 event None None None log.csv:0", "u1 i1 100000 event None None None old.csv:7",]
    );
}

#[tokio::test]
async fn a_path_to_nothing_is_an_error_that_names_it() {
    for (name, bytes) in [("a.parquet", parquet()), ("a.jsonl", "{\"user\": {\"id\": 1}}\n".into())] {
        let mut place = Place::new();
        place.config.events.columns.user_id = "user.name".into();
        let error = place.ingest_file(name, bytes).await.unwrap_err().to_string();
        assert!(error.contains("user.name"), "{error}");
    }
}
