//! Commits next to other writers, on stores that answer late, wrongly or not at all.

use std::sync::Arc;

use schemas::tables::timestamp;

use crate::clean::{Cleaned, clean_log};
use arrow::array::{AsArray, Date32Array, Int64Array, StringArray, UInt8Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use arrow::record_batch::RecordBatch;
use deltalake::kernel::transaction::TransactionError;
use deltalake::logstore::{CommitOrBytes, LogStoreConfig};
use deltalake::{ObjectStore, ObjectStoreError};

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

/// [`commit`] that deletes the shard on failure.
async fn commit_or_delete(
    root: &Root,
    change: Change<'_>,
    shard: &NewShard,
) -> Result<Committed, CommitError> {
    let mut shards = Uncommitted::new(root, change.table);
    shards.push(shard.clone());
    shards.commit(change).await
}

#[tokio::test]
async fn a_change_by_another_writer_is_a_conflict_and_leaves_no_files() {
    let (_dir, root) = new_root();
    let schema = schema();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["b"])], Some(0))).await.unwrap();
    for stale in [None, Some(0)] {
        let late = [shard(&root, &["c"])];
        let late_change = change(&schema, CommitMode::Append, &late, stale);
        let error = commit_or_delete(&root, late_change, &late[0]).await.unwrap_err();
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
    // The column's value comes from the log.
    let days = &snapshot.read(&["day"]).await.unwrap()[0];
    assert_eq!(days.column(0).as_string::<i32>().value(0), "2020-01-01");
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

/// How a store answers the request of a log entry.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// It writes the entry, and the answer is lost.
    Lost,
    /// It writes the entry, the answer is lost, and the client's retry fails because the entry exists.
    Exists,
    /// It writes the entry and never answers.
    Never,
    /// It does not write the entry.
    Refused,
}

/// A log store whose answers do not match what it did.
struct Lossy(LogStoreRef, Answer);

#[async_trait::async_trait]
impl LogStore for Lossy {
    fn name(&self) -> String {
        self.0.name()
    }

    async fn read_commit_entry(&self, version: u64) -> deltalake::DeltaResult<Option<bytes::Bytes>> {
        self.0.read_commit_entry(version).await
    }

    async fn write_commit_entry(
        &self,
        version: u64,
        entry: CommitOrBytes,
        operation: Uuid,
    ) -> Result<(), TransactionError> {
        if self.1 != Answer::Refused {
            self.0.write_commit_entry(version, entry, operation).await?;
        }
        let source = ObjectStoreError::Generic { store: "test", source: "503".into() };
        Err(match self.1 {
            Answer::Exists => TransactionError::VersionAlreadyExists(version),
            Answer::Never => std::future::pending().await,
            Answer::Lost | Answer::Refused => TransactionError::ObjectStore { source },
        })
    }

    async fn abort_commit_entry(
        &self,
        version: u64,
        entry: CommitOrBytes,
        operation: Uuid,
    ) -> Result<(), TransactionError> {
        self.0.abort_commit_entry(version, entry, operation).await
    }

    async fn get_latest_version(&self, from: u64) -> deltalake::DeltaResult<u64> {
        self.0.get_latest_version(from).await
    }

    fn object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.0.object_store(operation)
    }

    fn root_object_store(&self, operation: Option<Uuid>) -> Arc<dyn ObjectStore> {
        self.0.root_object_store(operation)
    }

    fn config(&self) -> &LogStoreConfig {
        self.0.config()
    }
}

#[tokio::test]
async fn an_entry_that_was_written_is_a_commit_whatever_the_store_answers() {
    let (_dir, root) = new_root();
    let schema = schema();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    let mut expected = vec!["a"];
    for (answer, name, version) in [(Answer::Lost, "b", 1), (Answer::Exists, "c", 2)] {
        let snapshot = root.snapshot("t").await.unwrap().unwrap();
        let mut shards = Uncommitted::new(&root, "t");
        shards.push(shard(&root, &[name]));
        let actions = vec![Action::Add(add(&shards.shards()[0], true))];
        let append = change(&schema, CommitMode::Append, shards.shards(), Some(snapshot.version()));
        let store = Arc::new(Lossy(snapshot.delta().log_store(), answer));
        let entered = enter(&root, &append, Some(&snapshot), actions, store, Some(&shards)).await;
        shards.settle(&entered);
        assert_eq!(entered.unwrap(), Committed { version, changed: true }, "{answer:?}");
        drop(shards);
        expected.push(name);
        assert_eq!(names(&root).await, expected, "{answer:?}");
    }
}

#[tokio::test]
async fn an_entry_that_was_not_written_leaves_no_files() {
    let (_dir, root) = new_root();
    let schema = schema();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    let snapshot = root.snapshot("t").await.unwrap().unwrap();
    // First without an entry, then with another writer's.
    for other in [false, true] {
        let mut shards = Uncommitted::new(&root, "t");
        shards.push(shard(&root, &["b"]));
        let path = root.table_path("t").join(&shards.shards()[0].path);
        if other {
            let new = [shard(&root, &["c"])];
            commit(&root, change(&schema, CommitMode::Append, &new, Some(0))).await.unwrap();
        }
        let actions = vec![Action::Add(add(&shards.shards()[0], true))];
        let append = change(&schema, CommitMode::Append, shards.shards(), Some(0));
        let store = Arc::new(Lossy(snapshot.delta().log_store(), Answer::Refused));
        let entered = enter(&root, &append, Some(&snapshot), actions, store, Some(&shards)).await;
        shards.settle(&entered);
        let error = entered.unwrap_err();
        match other {
            false => assert!(matches!(error, CommitError::Log { .. }), "{error:?}"),
            true => assert!(matches!(error, CommitError::Conflict { .. }), "{error:?}"),
        }
        assert!(path.exists());
        drop(shards);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn whoever_waits_for_an_answer_in_vain_takes_no_shards_along() {
    let (_dir, root) = new_root();
    let schema = schema();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    let snapshot = root.snapshot("t").await.unwrap().unwrap();
    let mut shards = Uncommitted::new(&root, "t");
    shards.push(shard(&root, &["b"]));
    let actions = vec![Action::Add(add(&shards.shards()[0], true))];
    let append = change(&schema, CommitMode::Append, shards.shards(), Some(0));
    let store = Arc::new(Lossy(snapshot.delta().log_store(), Answer::Never));
    let entered = enter(&root, &append, Some(&snapshot), actions, store, Some(&shards));
    let waited = tokio::time::timeout(std::time::Duration::from_millis(200), entered).await;
    assert!(waited.is_err());
    drop(shards);
    assert_eq!(names(&root).await, ["a", "b"]);
}

/// Cancels a commit after one poll, two polls, and so on, until it completes.
#[tokio::test]
async fn a_commit_that_is_cancelled_at_any_moment_leaves_whole_tables() {
    let (_dir, root) = new_root();
    let schema = schema();
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    let (mut deleted, mut committed) = (0, 0);
    for polls in 1..1_000 {
        let before = root.snapshot("t").await.unwrap().unwrap().version();
        let mut shards = Uncommitted::new(&root, "t");
        shards.push(shard(&root, &["b"]));
        let file = root.table_path("t").join(&shards.shards()[0].path);
        let done = {
            let append = change(&schema, CommitMode::Append, shards.shards(), Some(before));
            let mut commit = Box::pin(shards.commit(append));
            let mut done = false;
            for _ in 0..polls {
                done = futures::poll!(&mut commit).is_ready();
                if done {
                    break;
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            done
        };
        drop(shards);
        // A blocking write goes on after its task is cancelled; wait for it.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let now = root.snapshot("t").await.unwrap().unwrap();
        assert!(now.is_whole().await, "after {polls} polls");
        committed += u32::from(now.version() > before);
        deleted += u32::from(!file.exists());
        if done {
            break;
        }
    }
    assert!(deleted > 0 && committed > 0, "{deleted} deleted, {committed} committed");
}

#[tokio::test]
async fn a_directory_whose_name_is_an_escape_keeps_its_tables() {
    let dir = tempfile::tempdir().unwrap();
    let schema = schema();
    for name in ["a%20b", "%2525", "100%", "%2e%2E"] {
        let root = Root::new(dir.path().join(name).to_str().unwrap()).unwrap();
        // Enough commits for a checkpoint, and one after it.
        let mut version = None;
        for _ in 0..102 {
            let shards = [shard(&root, &["a"])];
            let append = change(&schema, CommitMode::Append, &shards, version);
            version = Some(commit(&root, append).await.unwrap().version);
        }
        assert!(root.table_path("t").join("_delta_log/_last_checkpoint").exists(), "{name}");
        let snapshot = root.snapshot("t").await.unwrap().unwrap();
        assert_eq!((snapshot.rows(), names(&root).await.len()), (102, 102), "{name}");
        assert_eq!(snapshot.appended_since(3).await.unwrap().len(), 98, "{name}");
        assert_eq!(root.snapshot_at("t", 4).await.unwrap().unwrap().rows(), 5, "{name}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
}

#[test]
fn writers_that_give_up_take_no_directory_from_others() {
    let (_dir, root) = new_root();
    let schema = schema();
    let partition = [("name", "a")];
    let rows = rows(&["a"]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let mut writer = ShardWriter::create(&root, "t", "part", &schema, &partition).unwrap();
                    writer.write(&rows).unwrap();
                    let mut shards = Uncommitted::new(&root, "t");
                    shards.push(writer.finish().unwrap());
                }
            });
        }
    });
    assert_eq!(std::fs::read_dir(root.table_path("t")).unwrap().count(), 0);
}

/// Returns the sorted names in the table's log.
fn log_files(root: &Root) -> Vec<String> {
    let log = std::fs::read_dir(root.table_path("t").join("_delta_log")).unwrap();
    let mut names: Vec<String> = log.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_log_of_ten_thousand_commits_is_cleaned_up_behind_the_oldest_version_that_is_needed() {
    let (_dir, root) = new_root();
    let schema = schema();
    let offset = async |version: u64| {
        let mut append = change(&schema, CommitMode::Append, &[], Some(version - 1));
        append.transactions.insert("topic/0".into(), version as i64);
        assert_eq!(commit(&root, append).await.unwrap(), Committed { version, changed: true });
    };
    commit(&root, change(&schema, CommitMode::Append, &[shard(&root, &["a"])], None)).await.unwrap();
    // Written directly: as commits of a consumer they would take a minute.
    for version in 1..9_998 {
        let entry = format!(
            "{}\n{}",
            serde_json::json!({ "commitInfo": { "timestamp": version, "operation": "WRITE" } }),
            serde_json::json!({ "txn": { "appId": "topic/0", "version": version } }),
        );
        let name = format!("{version:020}.json");
        std::fs::write(root.table_path("t").join("_delta_log").join(name), entry).unwrap();
    }
    offset(9_998).await;
    offset(9_999).await;
    assert_eq!(log_files(&root).len(), 10_002);
    // No checkpoint exists before that version.
    assert_eq!(clean_log(&root, "t", 9_998).unwrap().files, 0);
    let before = root.snapshot("t").await.unwrap().unwrap();
    assert_eq!(clean_log(&root, "t", 9_999).unwrap(), Cleaned { files: 9_999, first: 9_999 });
    let name = |ending: &str| format!("{:020}.{ending}", 9_999);
    assert_eq!(log_files(&root), [name("checkpoint.parquet"), name("json"), "_last_checkpoint".to_owned()]);
    let after = root.snapshot("t").await.unwrap().unwrap();
    assert_eq!((after.version(), after.rows(), names(&root).await), (9_999, 1, vec!["a".to_owned()]));
    assert_eq!(after.transaction("topic/0").await.unwrap(), Some(9_999));
    assert_eq!(
        after.transactions(&["topic/0".into(), "x".into()]).await.unwrap(),
        [("topic/0".into(), 9_999)].into()
    );
    assert!(after.appended_since(9_999).await.unwrap().is_empty());
    let gone = after.appended_since(5).await.unwrap_err();
    assert!(matches!(gone, TableError::Expired { since: 5, version: 6, .. }), "{gone}");
    assert!(gone.to_string().contains("cleaned up"), "{gone}");
    assert!(root.snapshot_at("t", 5).await.unwrap().is_none());
    let pinned = root.pinned([("t", 5)]).snapshot("t").await.unwrap_err();
    assert!(matches!(pinned, TableError::Cleaned { version: 5, .. }), "{pinned}");

    for version in 10_000..10_205 {
        offset(version).await;
    }
    // A snapshot opened before the cleanup can still be updated.
    assert_eq!(before.updated().await.unwrap().transaction("topic/0").await.unwrap(), Some(10_204));
    assert_eq!(clean_log(&root, "t", 10_150).unwrap(), Cleaned { files: 101, first: 10_099 });
    // 106 entries, two checkpoints and `_last_checkpoint`.
    assert_eq!(log_files(&root).len(), 109);
    assert_eq!(root.snapshot_at("t", 10_150).await.unwrap().unwrap().version(), 10_150);
    assert_eq!(root.snapshot("t").await.unwrap().unwrap().version(), 10_204);
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
    // A commit with offsets only still makes a version.
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
    // Appended shards are the ones that were appended, wherever their rows are now.
    let appended: Vec<_> = after.appended_since(0).await.unwrap().into_iter().collect();
    assert_eq!(appended.len(), 2);
    assert!(!appended.contains(&merged[0].path));

    // The replaced shards are gone, so the rewrite is refused.
    let again = [shard(&root, &["a", "b"])];
    let error = commit_or_delete(&root, change(&schema, mode, &again, Some(1)), &again[0]).await.unwrap_err();
    assert!(matches!(error, CommitError::Superseded { .. }), "{error}");
    assert!(!root.table_path("t").join(&again[0].path).exists());
    assert_eq!(names(&root).await, ["a", "b", "c"]);
}
