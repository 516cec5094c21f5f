//! Tables that another engine has written to: they are read correctly, or refused first of all, by the feature's name.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Schema, TimeUnit, TimestampMillisecondType};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type, Int96, Int96Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use pipeline::compact::{TARGET, compact};
use pipeline::engine::Resources;
use pipeline::inspect::inspect;
use pipeline::privacy::forget;
use pipeline::sequences::{build, build_with};
use pipeline::verify::verify;
use schemas::config::{Config, Forget};
use schemas::tables::{EVENTS, ITEMS, SEQUENCES};
use serde_json::{Value, json};
use store::{Root, Snapshot};
use terminal::Interrupt;

use crate::common::{DAY_MS, Event, append, batch, rows};

const RESOURCES: Resources = Resources { threads: 2, memory_bytes: 64 << 20 };
const DATE: &str = "2024-10-04";

fn event(n: usize, user: &str) -> Event {
    Event {
        event_id: format!("e{n}"),
        user: user.into(),
        item: format!("i{}", n % 5),
        ts: 20_000 * DAY_MS + n as i64 * 61_007,
        request: n.is_multiple_of(3).then(|| format!("r{n}")),
        request_ts: n.is_multiple_of(3).then(|| 20_000 * DAY_MS + n as i64 * 61_000),
        action: "play".into(),
        value: n.is_multiple_of(2).then_some(n as f64),
        source: "clicks-0".into(),
        position: n as i64,
    }
}

fn events() -> Vec<Event> {
    (0..40).map(|n| event(n, ["anna", "bert", "carla"][n % 3])).collect()
}

struct Place {
    _directory: tempfile::TempDir,
    root: Root,
}

/// A root whose `events` have two commits.
async fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    let events = events();
    append(&root, &events[..25]).await;
    append(&root, &events[25..]).await;
    Place { _directory: directory, root }
}

fn entry(root: &Root, table: &str, version: u64) -> PathBuf {
    root.table_path(table).join(format!("_delta_log/{version:020}.json"))
}

/// Adds an entry to a table's log, as another engine would.
fn commit(root: &Root, table: &str, version: u64, actions: &[Value]) {
    let info =
        json!({ "commitInfo": { "timestamp": chrono::Utc::now().timestamp_millis(), "operation": "WRITE" } });
    let lines: Vec<String> = std::iter::once(&info).chain(actions).map(Value::to_string).collect();
    std::fs::write(entry(root, table, version), lines.join("\n") + "\n").unwrap();
}

fn protocol(reader: u8, writer: u8, features: &[&str]) -> Value {
    let mut protocol = json!({ "minReaderVersion": reader, "minWriterVersion": writer });
    if reader == 3 {
        protocol["readerFeatures"] = json!(features);
    }
    if writer == 7 {
        protocol["writerFeatures"] = json!(features);
    }
    json!({ "protocol": protocol })
}

/// An action of the table's log, the newest of its kind.
fn action(root: &Root, table: &str, kind: &str) -> Value {
    let mut found = None;
    for version in 0.. {
        let Ok(text) = std::fs::read_to_string(entry(root, table, version)) else { break };
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        found = lines.filter_map(|line| line.get(kind).cloned()).next_back().or(found);
    }
    found.unwrap()
}

async fn newest(root: &Root, table: &str) -> Snapshot {
    root.require(table, "").await.unwrap()
}

fn config(root: &Root) -> Config {
    let forget = Forget { key_file: Some(root.path().join("a.key").display().to_string()) };
    Config { root: root.path().display().to_string(), forget, ..Config::default() }
}

/// Asserts that every command that opens `events` refuses it, names the feature and leaves the log unchanged.
async fn refused(root: &Root, feature: &str, reads: bool) {
    let log = |root: &Root| std::fs::read_dir(root.table_path(EVENTS).join("_delta_log")).unwrap().count();
    let before = log(root);
    let config = config(root);
    let mut errors = Vec::new();
    if !reads {
        errors.push(("inspect", inspect(root, None).await.err().map(|e| e.to_string())));
        errors.push(("verify", verify(&config, root, None).await.err().map(|e| e.to_string())));
        let built = build_with(&config, root, RESOURCES).await;
        errors.push(("build", built.err().map(|e| e.to_string())));
    } else {
        assert_eq!(newest(root, EVENTS).await.rows(), 40);
        verify(&config, root, Some(EVENTS)).await.unwrap();
    }
    let compacted = compact(root, &[], TARGET, RESOURCES, &Interrupt::default()).await;
    errors.push(("compact", compacted.err().map(|e| e.to_string())));
    let forgotten = forget(&config, root, &["anna".into()], &Interrupt::default()).await;
    errors.push(("forget", forgotten.err().map(|e| e.to_string())));
    for (command, error) in errors {
        let error = error.unwrap_or_else(|| panic!("{command} does not refuse {feature}"));
        assert!(error.contains(feature) && error.contains("events"), "{command}: {error}");
    }
    assert_eq!(log(root), before);
    assert!(!root.table_path("forgotten").exists() && !root.path().join("a.key").exists());
}

#[tokio::test]
async fn features_that_change_what_shards_mean_are_refused_by_name() {
    let Place { _directory, root } = place().await;
    let mut add = action(&root, EVENTS, "add");
    let remove = json!({ "path": add["path"], "deletionTimestamp": 1, "dataChange": true, "partitionValues": add["partitionValues"], "size": add["size"] });
    add["deletionVector"] = json!({ "storageType": "i", "pathOrInlineDv": "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L", "sizeInBytes": 40, "cardinality": 6 });
    let features = protocol(3, 7, &["deletionVectors"]);
    commit(&root, EVENTS, 2, &[features, json!({ "remove": remove }), json!({ "add": add })]);
    refused(&root, "deletionVectors", false).await;

    let Place { _directory, root } = place().await;
    let mut metadata = action(&root, EVENTS, "metaData");
    metadata["configuration"] =
        json!({ "delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": "11" });
    commit(&root, EVENTS, 2, &[protocol(2, 5, &[]), json!({ "metaData": metadata })]);
    refused(&root, "columnMapping", false).await;

    let Place { _directory, root } = place().await;
    commit(&root, EVENTS, 2, &[protocol(3, 7, &["timeMachine"])]);
    refused(&root, "timeMachine", false).await;

    // A shard of another directory.
    let Place { _directory, root } = place().await;
    let mut add = action(&root, EVENTS, "add");
    add["path"] = format!("file:///elsewhere/{}", add["path"].as_str().unwrap()).into();
    commit(&root, EVENTS, 2, &[json!({ "add": add })]);
    refused(&root, "/elsewhere/", false).await;
}

#[tokio::test]
async fn features_that_ask_something_of_writers_are_read_and_refused_by_name() {
    for (feature, properties) in [
        ("checkConstraints", json!({ "delta.constraints.c": "position > 0" })),
        ("rowTracking", json!({ "delta.enableRowTracking": "true" })),
        ("inCommitTimestamp", json!({ "delta.enableInCommitTimestamps": "true" })),
        ("appendOnly", json!({ "delta.appendOnly": "true" })),
    ] {
        let Place { _directory, root } = place().await;
        let mut metadata = action(&root, EVENTS, "metaData");
        metadata["configuration"] = properties;
        let protocol = json!({ "protocol": { "minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": [feature] } });
        commit(&root, EVENTS, 2, &[protocol, json!({ "metaData": metadata })]);
        refused(&root, feature, true).await;
    }
    // Features that have no effect are accepted.
    let Place { _directory, root } = place().await;
    let mut metadata = action(&root, EVENTS, "metaData");
    metadata["configuration"] = json!({ "delta.enableDeletionVectors": "true" });
    commit(&root, EVENTS, 2, &[protocol(3, 7, &["deletionVectors"]), json!({ "metaData": metadata })]);
    compact(&root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
    assert_eq!((newest(&root, EVENTS).await.rows(), newest(&root, EVENTS).await.shards().len()), (40, 1));
}

#[tokio::test]
async fn other_columns_and_partitions_are_read_and_not_written_to() {
    let Place { _directory, root } = place().await;
    let mut metadata = action(&root, EVENTS, "metaData");
    let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    let more = json!({ "name": "device", "type": "string", "nullable": true, "metadata": {} });
    schema["fields"].as_array_mut().unwrap().push(more);
    metadata["schemaString"] = schema.to_string().into();
    commit(&root, EVENTS, 2, &[json!({ "metaData": metadata })]);
    refused(&root, "`device`", true).await;

    // Comments and nullable columns are no reason to refuse.
    let Place { _directory, root } = place().await;
    let mut metadata = action(&root, EVENTS, "metaData");
    let mut schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap()).unwrap();
    for field in schema["fields"].as_array_mut().unwrap() {
        field["nullable"] = true.into();
        field["metadata"] = json!({ "comment": "as the source has it" });
    }
    metadata["schemaString"] = schema.to_string().into();
    commit(&root, EVENTS, 2, &[json!({ "metaData": metadata })]);
    append(&root, &[event(40, "dora")]).await;
    compact(&root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
    assert_eq!(newest(&root, EVENTS).await.rows(), 41);

    // Written again by action, not by date: the values of a partition are in the log alone.
    let Place { _directory, root } = place().await;
    let mut metadata = action(&root, EVENTS, "metaData");
    metadata["partitionColumns"] = json!(["action"]);
    let all = batch(&events());
    let kept: Vec<usize> =
        (0..all.num_columns()).filter(|&c| all.schema().field(c).name() != "action").collect();
    write_parquet(&root.table_path(EVENTS).join("action=play/x.parquet"), &all.project(&kept).unwrap());
    let mut actions = removals(&root, EVENTS).await;
    actions.push(json!({ "metaData": metadata }));
    actions.push(added(
        &root,
        EVENTS,
        "action=play/x.parquet",
        "action=play/x.parquet",
        json!({ "action": "play" }),
    ));
    commit(&root, EVENTS, 2, &actions);
    let batches = newest(&root, EVENTS).await.read(&["action", "event_date", "event_id"]).await.unwrap();
    assert!(batches[0].column(0).as_string::<i32>().iter().all(|action| action == Some("play")));
    refused(&root, "partitioned by [action], not by [event_date]", true).await;
    built_from(&root, &place().await.root).await;
}

/// Both roots make the same rows.
async fn built_from(root: &Root, other: &Root) {
    let config = Config::default();
    build(&config, root).await.unwrap();
    build(&config, other).await.unwrap();
    assert_eq!(rows(root).await, rows(other).await);
}

async fn removals(root: &Root, table: &str) -> Vec<Value> {
    let snapshot = newest(root, table).await;
    let remove = |shard: &store::Shard| json!({ "remove": { "path": shard.path, "deletionTimestamp": 1, "dataChange": true, "partitionValues": shard.partition } });
    snapshot.shards().iter().map(remove).collect()
}

/// The add action of a file, without any statistics.
fn added(root: &Root, table: &str, file: &str, path: &str, partition: Value) -> Value {
    let bytes = std::fs::metadata(root.table_path(table).join(file)).unwrap().len();
    json!({ "add": { "path": path, "partitionValues": partition, "size": bytes, "modificationTime": 1, "dataChange": true } })
}

fn write_parquet(path: &Path, batch: &RecordBatch) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// The other Arrow types that a writer may use for the same type of Delta.
fn otherwise(of: &DataType, way: usize) -> DataType {
    match (of, way) {
        (DataType::Utf8, 0) => DataType::LargeUtf8,
        (DataType::Utf8, 1) => DataType::Utf8View,
        (DataType::Utf8, _) => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        (DataType::Timestamp(..), 0) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        (DataType::Timestamp(..), 1) => {
            DataType::Timestamp(TimeUnit::Nanosecond, Some("Europe/Berlin".into()))
        }
        (DataType::Timestamp(..), _) => DataType::Timestamp(TimeUnit::Microsecond, None),
        (DataType::UInt32, _) => DataType::Int32,
        (DataType::UInt8, _) => DataType::Int8,
        (DataType::List(element), way) => {
            // A dictionary inside of a list is stored as any text is.
            let inner = otherwise(element.data_type(), way % 2);
            DataType::LargeList(Arc::new(Field::new("item", inner, true)))
        }
        (other, _) => other.clone(),
    }
}

fn as_others_write(batch: &RecordBatch, way: usize) -> RecordBatch {
    let fields: Fields = batch
        .schema()
        .fields()
        .iter()
        .map(|field| Field::new(field.name(), otherwise(field.data_type(), way), true))
        .collect();
    let columns: Vec<ArrayRef> = batch
        .columns()
        .iter()
        .zip(&fields)
        .map(|(column, field)| cast(column, field.data_type()).unwrap())
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Writes all shards of a table again, in other types and without statistics, under names that need escapes.
async fn rewrite(root: &Root, table: &str, way: usize) {
    let snapshot = newest(root, table).await;
    let schema = snapshot.delta().snapshot().unwrap().snapshot().arrow_schema();
    let mut actions = removals(root, table).await;
    for (n, shard) in snapshot.shards().iter().enumerate() {
        let names = schema.fields().iter().map(|field| field.name().as_str());
        let columns: Vec<&str> = names.filter(|name| !shard.partition.contains_key(*name)).collect();
        let batches = snapshot.read_shard(shard, &columns).await.unwrap();
        let batch = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
        let directory =
            shard.path.rsplit_once('/').map_or(String::new(), |(directory, _)| format!("{directory}/"));
        let file = format!("{directory}w {way}%3A{n} é.parquet");
        write_parquet(&root.table_path(table).join(&file), &as_others_write(&batch, way));
        let path = format!("{directory}w%20{way}%253A{n}%20%C3%A9.parquet");
        actions.push(added(root, table, &file, &path, json!(shard.partition)));
    }
    commit(root, table, snapshot.version() + 1, &actions);
    let after = newest(root, table).await;
    assert_eq!((after.rows(), after.shards().len()), (snapshot.rows(), snapshot.shards().len()), "{table}");
}

#[tokio::test]
async fn any_arrow_type_of_the_same_delta_type_is_read_as_the_contract_has_it() {
    for way in 0..3 {
        let (ours, theirs) = (place().await, place().await);
        let mut config = config(&theirs.root);
        config.items.attributes.insert("genre".into(), Default::default());
        rewrite(&theirs.root, EVENTS, way).await;
        build(&config, &ours.root).await.unwrap();
        build(&config, &theirs.root).await.unwrap();
        assert_eq!(rows(&ours.root).await, rows(&theirs.root).await);
        let built = rows(&theirs.root).await;
        for table in [ITEMS, SEQUENCES] {
            rewrite(&theirs.root, table, way).await;
        }
        let items =
            newest(&theirs.root, ITEMS).await.read(&["item_id", "item_index", "genre"]).await.unwrap();
        let expected =
            newest(&ours.root, ITEMS).await.read(&["item_id", "item_index", "genre"]).await.unwrap();
        assert_eq!(items, expected);
        let found: Vec<_> = rows_in_any_shard(&theirs.root).await;
        assert_eq!(found, built.into_values().flatten().collect::<Vec<_>>());
        inspect(&theirs.root, None).await.unwrap();
        for table in [EVENTS, ITEMS] {
            let found = verify(&config, &theirs.root, Some(table)).await.unwrap();
            assert_eq!(found.doubt(), None, "{found}");
        }
        // Builds go on from there, and rows are found.
        append(&theirs.root, &[event(40, "anna")]).await;
        build(&config, &theirs.root).await.unwrap();
        let report = forget(&config, &theirs.root, &["anna".into()], &Interrupt::default()).await.unwrap();
        let of = |table: &str| report.tables.iter().find(|t| t.table == table).unwrap().rows;
        assert_eq!((of(EVENTS), of(SEQUENCES)), (15, 1), "{report}");
        compact(&theirs.root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
        assert_eq!(newest(&theirs.root, EVENTS).await.rows(), 26);
    }
}

async fn rows_in_any_shard(root: &Root) -> Vec<crate::common::Row> {
    // Every shard has a name of its own here.
    crate::common::rows_of(root, SEQUENCES).await.into_values().flatten().collect()
}

#[tokio::test]
async fn times_of_96_bits_are_read_far_beyond_nanoseconds() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    append(&root, &[event(0, "anna")]).await;
    let file = root.table_path(EVENTS).join(format!("event_date={DATE}/spark.parquet"));
    let message = "message spark_schema {
        OPTIONAL BYTE_ARRAY event_id (UTF8); OPTIONAL BYTE_ARRAY user_id (UTF8); OPTIONAL BYTE_ARRAY item_id (UTF8);
        OPTIONAL INT96 ts; OPTIONAL BYTE_ARRAY request_id (UTF8); OPTIONAL INT96 request_ts;
        OPTIONAL BYTE_ARRAY action (UTF8); OPTIONAL DOUBLE value; OPTIONAL BYTE_ARRAY source (UTF8);
        OPTIONAL INT64 position; }";
    let schema = Arc::new(parse_message_type(message).unwrap());
    // 2024-10-04, and the year 2608: days since 4713 BC, and nanoseconds of the day.
    let times = [(2_460_588u32, 3_600_000_000_007u64), (2_673_776, 1_000_000)];
    let int96 = |(day, nanos): (u32, u64)| {
        let mut value = Int96::new();
        value.set_data(nanos as u32, (nanos >> 32) as u32, day);
        value
    };
    let mut writer = SerializedFileWriter::new(
        File::create(&file).unwrap(),
        schema,
        Arc::new(WriterProperties::default()),
    )
    .unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = 0;
    while let Some(mut next) = group.next_column().unwrap() {
        let texts = ["f0", "f1"].map(|text| ByteArray::from(format!("{text}-{column}").into_bytes()));
        match column {
            3 | 5 => {
                _ = next.typed::<Int96Type>().write_batch(&times.map(int96), Some(&[1, 1]), None).unwrap()
            }
            7 => _ = next.typed::<DoubleType>().write_batch(&[], Some(&[0, 0]), None).unwrap(),
            9 => _ = next.typed::<Int64Type>().write_batch(&[1, 2], Some(&[1, 1]), None).unwrap(),
            _ => _ = next.typed::<ByteArrayType>().write_batch(&texts, Some(&[1, 1]), None).unwrap(),
        }
        next.close().unwrap();
        column += 1;
    }
    group.close().unwrap();
    writer.close().unwrap();
    let path = format!("event_date={DATE}/spark.parquet");
    commit(&root, EVENTS, 1, &[added(&root, EVENTS, &path, &path, json!({ "event_date": DATE }))]);

    let events = newest(&root, EVENTS).await;
    assert_eq!(events.rows(), 3);
    let shard = events.shards().iter().find(|shard| shard.path == path).unwrap();
    let batches = events.read_shard(shard, &["ts", "event_date"]).await.unwrap();
    let found = batches[0].column(0).as_primitive::<TimestampMillisecondType>().values().to_vec();
    let in_2608 = (2_673_776 - 2_440_588) * DAY_MS + 1;
    assert_eq!(found, [20_000 * DAY_MS + 3_600_000, in_2608]);
    // The scans of DataFusion read the same.
    compact(&root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
    let events = newest(&root, EVENTS).await;
    assert_eq!(events.shards().len(), 1);
    let merged = events.read(&["ts"]).await.unwrap();
    let merged = merged[0].column(0).as_primitive::<TimestampMillisecondType>().values().to_vec();
    assert_eq!(merged.iter().max(), Some(&in_2608));
}

#[tokio::test]
async fn what_cannot_be_read_as_the_contract_has_it_names_shard_and_column() {
    let Place { _directory, root } = place().await;
    build(&Config::default(), &root).await.unwrap();
    let items = newest(&root, ITEMS).await;
    let shard = items.shards()[0].path.clone();
    let columns = ["item_id", "item_index", "title", "release_ts", "active"];
    let right = items.read(&columns).await.unwrap();
    let with = |column: ArrayRef, nullable: bool| {
        let mut columns = right[0].columns().to_vec();
        columns[1] = column.clone();
        let mut fields: Vec<Field> = right[0].schema().fields().iter().map(|f| f.as_ref().clone()).collect();
        fields[1] = Field::new("item_index", column.data_type().clone(), nullable);
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    };
    let rows = right[0].num_rows();
    let negative: ArrayRef = Arc::new(arrow::array::Int32Array::from_value(-1, rows));
    let text: ArrayRef =
        Arc::new(arrow::array::StringArray::from_iter_values((0..rows).map(|n| n.to_string())));
    let missing: ArrayRef = Arc::new(arrow::array::UInt32Array::from(vec![None; rows]));
    for (column, said) in
        [(negative, "cannot be read"), (text, "cannot be read"), (missing, "no value in row 0")]
    {
        let batch = with(column, true);
        write_parquet(&root.table_path(ITEMS).join(&shard), &batch);
        without_hashes(&root, ITEMS);
        let bytes = std::fs::metadata(root.table_path(ITEMS).join(&shard)).unwrap().len();
        assert!(bytes > 0);
        let error = newest(&root, ITEMS).await.read(&["item_index"]).await.unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("item_index") && error.contains(&shard), "{error}");
        let found = verify(&Config::default(), &root, Some(ITEMS)).await.unwrap();
        assert_eq!(found.violation.unwrap().column.as_deref(), Some("item_index"));
    }
}

/// Removes the hashes from a table's log, like a program that writes none.
fn without_hashes(root: &Root, table: &str) {
    for entry in std::fs::read_dir(root.table_path(table).join("_delta_log")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace("climberPilotHash", "x").replace("climberPilotActions", "y"))
                .unwrap();
        }
    }
}

/// Puts the rows of a checkpoint of one part into other files.
fn split_checkpoint(root: &Root, version: u64) -> (PathBuf, Vec<RecordBatch>) {
    let path = root.table_path(EVENTS).join(format!("_delta_log/{version:020}.checkpoint.parquet"));
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    let all = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
    let half = all.num_rows() / 2;
    let parts = vec![all.slice(0, half), all.slice(half, all.num_rows() - half)];
    std::fs::remove_file(&path).unwrap();
    (path.parent().unwrap().to_owned(), parts)
}

#[tokio::test]
async fn checkpoints_of_every_kind_are_read() {
    for kind in ["whole", "parts", "v2"] {
        let Place { _directory, root } = place().await;
        if kind == "v2" {
            commit(&root, EVENTS, 2, &[protocol(3, 7, &["v2Checkpoint"])]);
        }
        let before = newest(&root, EVENTS).await;
        let version = before.version();
        let expected = before.shards().to_vec();
        let protocol = action(&root, EVENTS, "protocol");
        let metadata = action(&root, EVENTS, "metaData");
        deltalake::checkpoints::create_checkpoint(before.delta(), None).await.unwrap();
        let last = root.table_path(EVENTS).join("_delta_log/_last_checkpoint");
        if kind == "parts" {
            let (log, parts) = split_checkpoint(&root, version);
            for (n, part) in (1..).zip(&parts) {
                let name = format!("{version:020}.checkpoint.{n:010}.{:010}.parquet", parts.len());
                write_parquet(&log.join(name), part);
            }
            std::fs::write(&last, json!({ "version": version, "size": 4, "parts": parts.len() }).to_string())
                .unwrap();
        }
        if kind == "v2" {
            let (log, parts) = split_checkpoint(&root, version);
            let mut lines = vec![
                json!({ "checkpointMetadata": { "version": version } }),
                json!({ "protocol": protocol }),
                json!({ "metaData": metadata }),
            ];
            for (n, part) in (1..).zip(&parts) {
                let shards: Vec<usize> = (0..part.num_columns())
                    .filter(|&c| ["add", "remove"].contains(&part.schema().field(c).name().as_str()))
                    .collect();
                let name = format!("part-{n}.parquet");
                let path = log.join("_sidecars").join(&name);
                write_parquet(&path, &part.project(&shards).unwrap());
                let bytes = std::fs::metadata(path).unwrap().len();
                lines.push(
                    json!({ "sidecar": { "path": name, "sizeInBytes": bytes, "modificationTime": 1 } }),
                );
            }
            let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
            let name = format!("{version:020}.checkpoint.67e55044-10b1-426f-9247-bb680e5fe0c8.json");
            std::fs::write(log.join(name), lines.join("\n")).unwrap();
            std::fs::remove_file(&last).unwrap();
        }
        for cleaned in 0..version {
            std::fs::remove_file(entry(&root, EVENTS, cleaned)).unwrap();
        }
        let events = newest(&root, EVENTS).await;
        assert_eq!((events.shards(), events.rows()), (&expected[..], 40), "{kind}");
        append(&root, &[event(40, "dora")]).await;
        compact(&root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
        assert_eq!(newest(&root, EVENTS).await.rows(), 41, "{kind}");
        built_from(&root, &with_one_more().await.root).await;
    }
}

async fn with_one_more() -> Place {
    let place = place().await;
    append(&place.root, &[event(40, "dora")]).await;
    place
}

#[tokio::test]
async fn a_name_that_could_not_be_taken_out_again_is_refused_before_a_rewrite() {
    let Place { _directory, root } = place().await;
    let shard = newest(&root, EVENTS).await.shards()[0].clone();
    let mut actions = removals(&root, EVENTS).await;
    // The log names the shard with an unnecessary escape.
    let path = shard.path.replace('=', "%3D");
    actions.push(added(&root, EVENTS, &shard.path, &path, json!(shard.partition)));
    commit(&root, EVENTS, 2, &actions);
    let events = newest(&root, EVENTS).await;
    assert_eq!(events.rows(), shard.rows.unwrap());
    assert!(!events.read(&["event_id"]).await.unwrap().is_empty());
    let error = compact(&root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap_err().to_string();
    assert!(error.contains("another spelling"), "{error}");
}
