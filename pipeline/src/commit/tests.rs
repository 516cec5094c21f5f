use std::sync::Arc;

use arrow::array::{AsArray, Date32Array, Int64Array, StringArray, UInt8Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use arrow::record_batch::RecordBatch;
use schemas::tables::timestamp;

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("index", DataType::UInt32, false),
        Field::new("role", DataType::UInt8, false),
        Field::new("ts", timestamp(), true),
    ]))
}

fn rows(names: &[&str]) -> RecordBatch {
    let n = names.len();
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(StringArray::from(names.to_vec())),
            Arc::new(UInt32Array::from_iter_values((0..n as u32).map(|i| u32::MAX - i))),
            Arc::new(UInt8Array::from_iter_values((0..n).map(|i| i as u8))),
            Arc::new(arrow::compute::cast(&Int64Array::from(vec![1_000; n]), &timestamp()).unwrap()),
        ],
    )
    .unwrap()
}

fn shard(root: &Root, names: &[&str]) -> NewShard {
    let mut writer = ShardWriter::create(root, "t", "part-00003", &schema(), &[]).unwrap();
    writer.write(&rows(names)).unwrap();
    writer.finish().unwrap()
}

fn change<'a>(
    schema: &'a SchemaRef,
    mode: CommitMode<'a>,
    shards: &'a [NewShard],
    read_version: Option<u64>,
) -> Change<'a> {
    Change {
        table: "t",
        schema,
        partition_by: &[],
        mode,
        shards,
        properties: BTreeMap::new(),
        read_version,
        transactions: BTreeMap::new(),
    }
}

async fn names(root: &Root) -> Vec<String> {
    let snapshot = root.snapshot("t").await.unwrap().unwrap();
    let batches = snapshot.read(&["name"]).await.unwrap();
    let mut names: Vec<_> = batches
        .iter()
        .flat_map(|b| {
            b.column(0).as_string::<i32>().iter().map(|n| n.unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    names.sort();
    names
}

fn new_root() -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path().to_str().unwrap()).unwrap();
    (dir, root)
}

#[tokio::test]
async fn create_append_replace_and_read_back() {
    let (_dir, root) = new_root();
    let schema = schema();
    let first = [shard(&root, &["a", "b"])];
    assert!(first[0].path.starts_with("part-00003-") && first[0].rows == 2);
    let mut creation = change(&schema, CommitMode::Append, &first, None);
    creation.properties.insert("delta_tau_ms".into(), "900000".into());
    creation.properties.insert("gone".into(), "soon".into());
    assert_eq!(commit(&root, creation).await.unwrap(), Committed { version: 0, changed: true });

    let second = [shard(&root, &["c"])];
    let done = commit(&root, change(&schema, CommitMode::Append, &second, Some(0))).await.unwrap();
    assert_eq!(done, Committed { version: 1, changed: true });
    assert_eq!(names(&root).await, ["a", "b", "c"]);
    let snapshot = root.snapshot("t").await.unwrap().unwrap();
    assert_eq!((snapshot.rows(), snapshot.shards().len()), (3, 2));
    assert_eq!(
        snapshot.shards()[0].bytes,
        std::fs::metadata(root.table_path("t").join(&snapshot.shards()[0].path)).unwrap().len()
    );
    assert_eq!(snapshot.properties()["delta_tau_ms"], "900000");
    let batch = &snapshot.read(&["index", "role", "ts"]).await.unwrap()[0];
    assert_eq!(*batch.schema().field(0).data_type(), DataType::UInt32);
    assert_eq!(*batch.schema().field(1).data_type(), DataType::UInt8);
    assert_eq!(*batch.schema().field(2).data_type(), timestamp());
    assert_eq!(batch.column(0).as_primitive::<UInt32Type>().value(0), u32::MAX);

    let third = [shard(&root, &["d"])];
    let mut replacement = change(&schema, CommitMode::Replace, &third, Some(1));
    replacement.properties.insert("delta_tau_ms".into(), "off".into());
    commit(&root, replacement).await.unwrap();
    assert_eq!(names(&root).await, ["d"]);
    let snapshot = root.snapshot("t").await.unwrap().unwrap();
    assert_eq!(snapshot.properties().get("delta_tau_ms").map(String::as_str), Some("off"));
    assert_eq!(snapshot.properties().get("gone"), None);
    let before = root.snapshot_at("t", 1).await.unwrap().unwrap();
    assert_eq!((before.rows(), before.properties()["gone"].as_str()), (3, "soon"));
}

#[tokio::test]
async fn a_commit_that_would_change_nothing_is_not_made() {
    let (_dir, root) = new_root();
    let schema = schema();
    let made = commit(&root, change(&schema, CommitMode::Replace, &[], None)).await.unwrap();
    assert_eq!(made, Committed { version: 0, changed: true });
    for mode in [CommitMode::Append, CommitMode::Replace] {
        let done = commit(&root, change(&schema, mode, &[], Some(0))).await.unwrap();
        assert_eq!(done, Committed { version: 0, changed: false });
    }
    assert_eq!(root.snapshot("t").await.unwrap().unwrap().rows(), 0);
}

#[tokio::test]
async fn a_change_by_another_writer_is_a_conflict_and_leaves_no_files() {
    let (_dir, root) = new_root();
    let schema = schema();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["b"])], Some(0))).await.unwrap();
    for stale in [None, Some(0)] {
        let late = [shard(&root, &["c"])];
        let error = commit(&root, change(&schema, CommitMode::Append, &late, stale)).await.unwrap_err();
        assert!(matches!(error, CommitError::Conflict { .. }), "{error}");
        assert!(!root.table_path("t").join(&late[0].path).exists());
    }
    assert_eq!(names(&root).await, ["a", "b"]);
}

#[tokio::test]
async fn two_writers_at_once_cannot_both_win() {
    let (_dir, root) = new_root();
    let schema = schema();
    let (one, two) = ([shard(&root, &["1"])], [shard(&root, &["2"])]);
    let (first, second) = tokio::join!(
        commit(&root, change(&schema, CommitMode::Append, &one, None)),
        commit(&root, change(&schema, CommitMode::Append, &two, None)),
    );
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1, "{first:?} {second:?}");
    let error = first.err().or(second.err()).unwrap();
    assert!(matches!(error, CommitError::Conflict { .. }), "{error:?}");
    assert_eq!(names(&root).await.len(), 1);
}

#[tokio::test]
async fn partition_columns_are_in_the_path_and_not_in_the_file() {
    let (_dir, root) = new_root();
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("name", DataType::Utf8, false),
        Field::new("day", DataType::Date32, false),
    ]));
    let batch = RecordBatch::try_new(
        schema.clone(),
        vec![Arc::new(StringArray::from(vec!["a"])), Arc::new(Date32Array::from(vec![18_262]))],
    )
    .unwrap();
    let mut writer = ShardWriter::create(&root, "t", "part", &schema, &[("day", "2020-01-01")]).unwrap();
    writer.write(&batch).unwrap();
    let shards = [writer.finish().unwrap()];
    assert!(shards[0].path.starts_with("day=2020-01-01/part-"));
    let mut creation = change(&schema, CommitMode::Append, &shards, None);
    creation.partition_by = &["day"];
    commit(&root, creation).await.unwrap();
    let snapshot = root.snapshot("t").await.unwrap().unwrap();
    assert_eq!(snapshot.shards()[0].partition["day"].as_deref(), Some("2020-01-01"));
    assert_eq!(snapshot.read(&["name"]).await.unwrap()[0].num_rows(), 1);
    assert!(snapshot.read(&["day"]).await.is_err());
}

#[tokio::test]
async fn other_columns_need_a_replacement() {
    let (_dir, root) = new_root();
    let narrow = schema();
    commit(&root, change(&narrow, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    let mut fields = narrow.fields().to_vec();
    fields.push(Arc::new(Field::new("extra", DataType::Utf8, true)));
    let wide: SchemaRef = Arc::new(Schema::new(fields));
    let error = commit(&root, change(&wide, CommitMode::Append, &[], Some(0))).await.unwrap_err();
    assert!(matches!(error, CommitError::Columns { .. }) && error.to_string().contains("extra"), "{error}");
    let done = commit(&root, change(&wide, CommitMode::Replace, &[], Some(0))).await.unwrap();
    assert_eq!(done.version, 1);
}

#[tokio::test]
async fn many_commits_are_read_back_from_a_checkpoint() {
    let (_dir, root) = new_root();
    let schema = schema();
    let mut version = None;
    for _ in 0..102 {
        let shards = [shard(&root, &["x"])];
        version =
            Some(commit(&root, change(&schema, CommitMode::Append, &shards, version)).await.unwrap().version);
    }
    assert!(root.table_path("t").join("_delta_log/_last_checkpoint").exists());
    assert_eq!(root.snapshot("t").await.unwrap().unwrap().rows(), 102);
    assert_eq!(root.snapshot_at("t", 50).await.unwrap().unwrap().rows(), 51);
}

#[test]
fn an_unfinished_shard_leaves_no_file() {
    let (_dir, root) = new_root();
    let mut writer = ShardWriter::create(&root, "t", "part", &schema(), &[]).unwrap();
    writer.write(&rows(&["a"])).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(root.table_path("t")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_commit_says_how_far_its_writer_has_come() {
    let (_dir, root) = new_root();
    let schema = schema();
    let mut creation = change(&schema, CommitMode::Append, &[], None);
    creation.transactions = BTreeMap::from([("topic/0".into(), 5), ("topic/1".into(), 9)]);
    commit(&root, creation).await.unwrap();
    // A commit of nothing else is one all the same.
    let mut next = change(&schema, CommitMode::Append, &[], Some(0));
    next.transactions = BTreeMap::from([("topic/0".into(), 8)]);
    assert!(commit(&root, next).await.unwrap().changed);
    let before = root.snapshot_at("t", 0).await.unwrap().unwrap();
    let after = root.snapshot("t").await.unwrap().unwrap();
    assert_eq!(before.transaction("topic/0").await.unwrap(), Some(5));
    assert_eq!(after.transaction("topic/0").await.unwrap(), Some(8));
    assert_eq!(after.transaction("topic/1").await.unwrap(), Some(9));
    assert_eq!(after.transaction("topic/2").await.unwrap(), None);
}

#[tokio::test]
async fn a_rewrite_goes_on_top_of_what_came_meanwhile() {
    let (_dir, root) = new_root();
    let schema = schema();
    for (version, name) in [(None, "a"), (Some(0), "b")] {
        let mut change = change(&schema, CommitMode::Append, &[], version);
        let new = [shard(&root, &[name])];
        change.shards = &new;
        change.properties.insert("kept".into(), name.into());
        change.transactions.insert("topic/0".into(), 7);
        commit(&root, change).await.unwrap();
    }
    let read = root.snapshot("t").await.unwrap().unwrap();
    let merged = [shard(&root, &["a", "b"])];
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["c"])], Some(1))).await.unwrap();
    let mode = CommitMode::Rewrite { replaced: read.shards(), target_bytes: 1 << 20 };
    let done = commit(&root, change(&schema, mode, &merged, Some(1))).await.unwrap();
    assert_eq!(done, Committed { version: 3, changed: true });
    assert_eq!(names(&root).await, ["a", "b", "c"]);
    let after = root.snapshot("t").await.unwrap().unwrap();
    assert_eq!((after.shards().len(), after.properties()["kept"].as_str()), (2, "b"));
    assert_eq!(after.transaction("topic/0").await.unwrap(), Some(7));
    // What was appended after the first version is what was appended, wherever its rows are now.
    let appended: Vec<_> = after.appended_since(0).await.unwrap().into_iter().collect();
    assert_eq!(appended.len(), 2);
    assert!(!appended.contains(&merged[0].path));

    // The shards that it replaces are gone: it is not made again.
    let again = [shard(&root, &["a", "b"])];
    let error = commit(&root, change(&schema, mode, &again, Some(1))).await.unwrap_err();
    assert!(matches!(error, CommitError::Superseded { .. }), "{error}");
    assert!(!root.table_path("t").join(&again[0].path).exists());
    assert_eq!(names(&root).await, ["a", "b", "c"]);
}
