//! Tests of what a vacuum keeps and deletes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::commit::{Change, CommitMode, NewShard, ShardWriter, commit};
use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::*;

const DAY_MS: i64 = 86_400_000;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("name", DataType::Utf8, false)]))
}

fn shard(root: &Root, table: &str, name: &str) -> NewShard {
    let mut writer = ShardWriter::create(root, table, "part", &schema(), &[]).unwrap();
    let column = Arc::new(StringArray::from(vec![name]));
    writer.write(&RecordBatch::try_new(schema(), vec![column]).unwrap()).unwrap();
    writer.finish().unwrap()
}

/// Replaces the table's rows by one row; returns its version and a time after it.
async fn replace(root: &Root, table: &str, name: &str) -> (u64, i64) {
    let shards = [shard(root, table, name)];
    let read_version = root.snapshot(table).await.unwrap().map(|snapshot| snapshot.version());
    let change = Change {
        table,
        schema: &schema(),
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: &shards,
        properties: BTreeMap::new(),
        read_version,
        transactions: BTreeMap::new(),
    };
    let version = commit(root, change).await.unwrap().version;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let now = chrono::Utc::now().timestamp_millis();
    tokio::time::sleep(Duration::from_millis(5)).await;
    (version, now)
}

fn new_root() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    (directory, root)
}

fn settings(now_ms: i64) -> VacuumSettings {
    VacuumSettings { keep: Span { ms: DAY_MS }, publications: 2, dry_run: false, now_ms }
}

async fn run(root: &Root, settings: VacuumSettings) -> VacuumReport {
    vacuum(root, &[], settings, &Interrupt::default()).await.unwrap()
}

async fn readable(root: &Root, table: &str, version: u64) -> bool {
    root.snapshot_at(table, version).await.unwrap().unwrap().read(&["name"]).await.is_ok()
}

#[tokio::test]
async fn versions_within_the_time_stay_readable() {
    let (_directory, root) = new_root();
    let mut after = Vec::new();
    for name in ["a", "b", "c", "d", "e"] {
        after.push(replace(&root, "sft/genre", name).await.1);
    }
    // At the start of the retained time, version `n` was the newest.
    for (n, now) in after.into_iter().enumerate() {
        let settings = settings(now + DAY_MS);
        let listed = run(&root, VacuumSettings { dry_run: true, ..settings }).await;
        let report = run(&root, settings).await;
        assert_eq!(report.tables[0].files, listed.tables[0].files);
        assert_eq!(report.tables[0].files.len(), usize::from(n > 0), "one version more is out of reach");
        assert_eq!(report.tables[0].kept, 4 - n);
        for version in 0..5 {
            assert_eq!(readable(&root, "sft/genre", version as u64).await, version >= n, "{n} {version}");
        }
        assert!(run(&root, settings).await.tables[0].files.is_empty(), "there is nothing left to do");
    }
}

#[tokio::test]
async fn what_no_commit_named_goes_when_it_is_old() {
    let (_directory, root) = new_root();
    let (_, now) = replace(&root, "t", "a").await;
    let orphan = shard(&root, "t", "orphan");
    let path = root.table_path("t").join(&orphan.path);
    std::fs::write(root.table_path("t").join("notes.txt"), "mine").unwrap();
    std::fs::write(root.table_path("t").join("_delta_log/old.parquet"), "log").unwrap();
    // A killed or a running writer's shard: too young to tell.
    assert!(run(&root, settings(now + DAY_MS / 2)).await.tables[0].files.is_empty());
    let report = run(&root, settings(chrono::Utc::now().timestamp_millis() + DAY_MS + 1)).await;
    assert_eq!((report.tables[0].files.clone(), report.tables[0].bytes), (vec![orphan.path], orphan.bytes));
    assert!(!path.exists());
    assert!(root.table_path("t").join("notes.txt").exists());
    assert!(root.table_path("t").join("_delta_log/old.parquet").exists());
    assert!(readable(&root, "t", 0).await);
}

#[tokio::test]
async fn less_than_an_hour_is_refused() {
    let (_directory, root) = new_root();
    replace(&root, "t", "a").await;
    let settings = VacuumSettings { keep: Span::minutes(59), ..settings(i64::MAX) };
    let error = vacuum(&root, &[], settings, &Interrupt::default()).await.unwrap_err();
    assert!(error.to_string().contains("at least 1h"), "{error}");
    let unknown = vacuum(&root, &["x".into()], super::tests::settings(0), &Interrupt::default()).await;
    assert!(unknown.unwrap_err().to_string().contains("`x`"));
}
