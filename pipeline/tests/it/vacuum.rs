//! `pipeline vacuum` after publications and erasures: shards that refreshes need stay, and no erased row does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use arrow::array::AsArray;
use chrono::{DateTime, NaiveDate};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use pipeline::compact::{TARGET, compact};
use pipeline::engine::Resources;
use pipeline::privacy::forget;
use pipeline::sequences::{build_with, refresh};
use schemas::config::{Config, Forget, Span};
use schemas::tables::{EVENTS, REFRESH, SEQUENCES};
use store::Root;
use store::publication::{self, Kind, Publication};
use store::vacuum::{VacuumReport, VacuumSettings, vacuum};
use terminal::Interrupt;

use crate::common::{DAY_MS, Event, append, rows_of};

const RESOURCES: Resources = Resources { threads: 2, memory_bytes: 64 << 20 };

fn event(n: usize, user: &str) -> Event {
    Event {
        event_id: format!("e{n}"),
        user: user.into(),
        item: format!("i{n}"),
        ts: 20_000 * DAY_MS + n as i64 * 1_000,
        request: None,
        request_ts: None,
        action: "play".into(),
        value: None,
        source: "clicks-0".into(),
        position: n as i64,
    }
}

fn events(from: usize) -> Vec<Event> {
    (from..from + 9).map(|n| event(n, ["anna", "bert", "carla"][n % 3])).collect()
}

fn config(root: &Root) -> Config {
    let forget = Forget { key_file: Some(root.path().join("a.key").display().to_string()) };
    Config { root: root.path().display().to_string(), forget, ..Config::default() }
}

/// A root whose published model has learned the first of two commits of `events`.
async fn published() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    append(&root, &events(0)).await;
    build_with(&config(&root), &root, RESOURCES).await.unwrap();
    append(&root, &events(9)).await;
    let publication = Publication {
        number: 1,
        parent: None,
        kind: Kind::Daily,
        run: "monday".into(),
        published_at: DateTime::UNIX_EPOCH,
        base: "monday".into(),
        base_hash: String::new(),
        served: "monday".into(),
        served_hash: String::new(),
        daily: 1,
        learned_events: 0,
        full_training: NaiveDate::default(),
        full_events: 0,
        tables: BTreeMap::new(),
        metrics: BTreeMap::new(),
        restores: None,
    };
    publication::publish(&root, &publication).unwrap();
    (directory, root)
}

async fn merge(root: &Root) {
    compact(root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
}

/// Runs a vacuum `days` days later that keeps seven days.
async fn later(root: &Root, days: i64) -> VacuumReport {
    let now_ms = chrono::Utc::now().timestamp_millis() + days * DAY_MS;
    let settings =
        VacuumSettings { keep: Span::minutes(7 * 24 * 60), publications: 2, dry_run: false, now_ms };
    vacuum(root, &[], settings, &Interrupt::default()).await.unwrap()
}

/// The shards below a directory, of all versions.
fn shards(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            shards(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "parquet") {
            found.push(path);
        }
    }
}

/// Every user with rows in any shard on the disk.
fn users_on_disk(root: &Root) -> BTreeSet<String> {
    let (mut files, mut users) = (Vec::new(), BTreeSet::new());
    shards(root.path(), &mut files);
    for file in files {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&file).unwrap()).unwrap();
        let Ok(column) = reader.schema().index_of("user_id") else { continue };
        let mask = ProjectionMask::roots(reader.parquet_schema(), [column]);
        for batch in reader.with_projection(mask).build().unwrap() {
            users.extend(batch.unwrap().column(0).as_string::<i32>().iter().flatten().map(str::to_owned));
        }
    }
    users
}

/// The users and times of the new events that a refresh of the published model finds.
async fn new_targets(root: &Root) -> BTreeSet<(String, i64)> {
    refresh(&config(root), root, 0, RESOURCES).await.unwrap();
    let rows = rows_of(root, REFRESH).await.into_values().flatten();
    rows.flat_map(|row| {
        let new: Vec<_> =
            (0..row.ts.len()).filter(|&k| row.role[k] != 4).map(|k| (row.user.clone(), row.ts[k])).collect();
        new
    })
    .collect()
}

fn of(users: &[&str]) -> BTreeSet<(String, i64)> {
    let new = events(9).into_iter().filter(|event| users.contains(&event.user.as_str()));
    new.map(|event| (event.user, event.ts)).collect()
}

#[tokio::test]
async fn what_a_published_model_has_not_learned_stays_and_nothing_else() {
    let (_directory, root) = published().await;
    merge(&root).await;
    // Written as a whole, twice: of the first nothing is needed, whatever is published.
    build_with(&config(&root), &root, RESOURCES).await.unwrap();
    let report = later(&root, 100).await;
    let deleted = |table: &str| report.tables.iter().find(|t| t.table == table).unwrap().files.len();
    assert_eq!((deleted(EVENTS), deleted(SEQUENCES) > 0), (1, true), "{report}");
    assert_eq!(new_targets(&root).await, of(&["anna", "bert", "carla"]));
    // An unreadable publication may need any shard.
    let second = root.path().join("models/.published/00000002.json");
    fs::write(&second, "{").unwrap();
    assert!(later(&root, 200).await.tables.iter().find(|t| t.table == EVENTS).unwrap().files.is_empty());
    // So may a missing one.
    fs::remove_file(second).unwrap();
    fs::remove_file(root.path().join("models/.published/00000001.json")).unwrap();
    assert!(later(&root, 300).await.tables.iter().find(|t| t.table == EVENTS).unwrap().files.is_empty());
}

/// The version that the model of a damaged publication has learned is unknown, and the log no longer has the first versions.
#[tokio::test]
async fn a_damaged_publication_keeps_whatever_the_log_still_tells_of() {
    let (_directory, root) = published().await;
    append(&root, &events(18)).await;
    append(&root, &events(27)).await;
    let third = root.snapshot_at(EVENTS, 2).await.unwrap().unwrap();
    deltalake::checkpoints::create_checkpoint(third.delta(), None).await.unwrap();
    assert!(store::clean::clean_log(&root, EVENTS, 2).unwrap().files > 0);
    merge(&root).await;
    fs::write(root.path().join("models/.published/00000001.json"), "{").unwrap();
    fs::remove_file(publication::published_path(&root)).unwrap();
    later(&root, 100).await;
    let events = root.snapshot(EVENTS).await.unwrap().unwrap();
    let appended = events.appended_since(2).await.unwrap();
    assert!(appended.len() == 1 && appended.iter().all(|path| root.table_path(EVENTS).join(path).exists()));
}

#[tokio::test]
async fn an_erasure_leaves_a_refresh_what_it_needs() {
    let (_directory, root) = published().await;
    forget(&config(&root), &root, &["anna".into()], &Interrupt::default()).await.unwrap();
    later(&root, 8).await;
    assert!(!users_on_disk(&root).contains("anna"));
    assert_eq!(new_targets(&root).await, of(&["bert", "carla"]));
    // Nothing is left of a shard, and nothing of it is asked for.
    for user in ["bert", "carla"] {
        forget(&config(&root), &root, &[user.into()], &Interrupt::default()).await.unwrap();
    }
    append(&root, &[event(40, "dora")]).await;
    later(&root, 20).await;
    assert_eq!(users_on_disk(&root), ["dora".to_owned()].into());
    assert_eq!(new_targets(&root).await, [("dora".to_owned(), event(40, "").ts)].into());
}

#[tokio::test]
async fn no_publication_keeps_an_erased_row_on_the_disk() {
    let (_directory, root) = published().await;
    merge(&root).await;
    build_with(&config(&root), &root, RESOURCES).await.unwrap();
    // The shard that was merged is kept for the published model, and has rows of hers.
    later(&root, 30).await;
    assert!(users_on_disk(&root).contains("anna"));
    forget(&config(&root), &root, &["anna".into()], &Interrupt::default()).await.unwrap();
    later(&root, 6).await;
    assert!(users_on_disk(&root).contains("anna"), "versions of the last seven days stay readable");
    later(&root, 8).await;
    assert_eq!(users_on_disk(&root), ["bert".to_owned(), "carla".to_owned()].into());
    let error = refresh(&config(&root), &root, 0, RESOURCES).await.unwrap_err();
    assert!(error.to_string().contains("cannot be read"), "{error}");
}

#[tokio::test]
async fn a_slow_clock_shortens_nothing() {
    let (_directory, root) = published().await;
    merge(&root).await;
    append(&root, &events(20)).await;
    // The newest commit, by a clock that is a month behind, and the files too.
    let month = Duration::from_secs(30 * 86_400);
    let log = root.table_path(EVENTS).join("_delta_log");
    let newest = log.join(format!("{:020}.json", 3));
    let text = fs::read_to_string(&newest).unwrap();
    let lines = text.lines().map(|line| {
        let mut action: serde_json::Value = serde_json::from_str(line).unwrap();
        if let Some(info) = action.get_mut("commitInfo") {
            info["timestamp"] = (info["timestamp"].as_i64().unwrap() - 30 * DAY_MS).into();
        }
        action.to_string() + "\n"
    });
    fs::write(&newest, lines.collect::<String>()).unwrap();
    let mut files = vec![newest];
    shards(&root.table_path(EVENTS), &mut files);
    for file in files {
        File::options().append(true).open(file).unwrap().set_modified(SystemTime::now() - month).unwrap();
    }
    let report = later(&root, 0).await;
    assert!(report.tables.iter().all(|table| table.files.is_empty()), "{report}");
    for version in 0..4 {
        let snapshot = root.snapshot_at(EVENTS, version).await.unwrap().unwrap();
        snapshot.read(&["event_id"]).await.unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_is_ahead_keeps_nothing_for_ever() {
    let (_directory, root) = published().await;
    merge(&root).await;
    let newest = root.table_path(EVENTS).join(format!("_delta_log/{:020}.json", 2));
    let text = fs::read_to_string(&newest).unwrap();
    let info: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let ahead = info["commitInfo"]["timestamp"].as_i64().unwrap() + 3_650 * DAY_MS;
    let mut changed = info.clone();
    changed["commitInfo"]["timestamp"] = ahead.into();
    fs::write(&newest, text.replacen(text.lines().next().unwrap(), &changed.to_string(), 1)).unwrap();
    assert!(later(&root, 6).await.tables.iter().all(|table| table.files.is_empty()));
    let report = later(&root, 8).await;
    assert_eq!(report.tables.iter().find(|t| t.table == EVENTS).unwrap().files.len(), 1, "{report}");
}
