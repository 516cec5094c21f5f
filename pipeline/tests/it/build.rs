//! `build-sequences` as a whole: reproducibility of its rows, refusals, and leftovers.

use schemas::config::{Config, SplitKind, Ties};
use schemas::hash::{hash64, mix64};
use schemas::tables::{EVENTS, ITEMS, SEQUENCES, properties};
use store::Root;

use crate::common::{DAY_MS, Event, append, item_ids, rows};
use pipeline::engine::Resources;
use pipeline::sequences::{BuildError, build, build_with, refresh};
use tempfile::TempDir;

fn fresh() -> (TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    (directory, root)
}

fn event(n: u64, user: &str, item: &str, ts: i64) -> Event {
    Event {
        event_id: format!("e{n}"),
        user: user.into(),
        item: item.into(),
        ts,
        request: None,
        request_ts: None,
        action: "play".into(),
        value: None,
        source: "log.csv".into(),
        position: n as i64,
    }
}

/// A log with ties, several files and repeated records; `n` events of a skewed choice of users.
fn log(n: u64) -> Vec<Event> {
    (0..n)
        .map(|i| {
            let r = mix64(1, i);
            let user = (r % 100).min(r / 100 % 1000);
            let mut event = event(i, &format!("user{user}"), &format!("item{}", r / 7 % 500), 0);
            event.ts = 20_000 * DAY_MS + (r / 11 % 50) as i64 * 100_000 * ((i % 40) as i64);
            event.source = format!("file{}", i % 3);
            event.request = (i % 4 == 0).then(|| format!("request{}", i / 16));
            if i % 50 == 49 {
                // A copy of the previous record at another position.
                event.event_id = format!("e{}", i - 1);
            }
            event
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_threads_nor_memory_change_a_row() {
    let (_directory, root) = fresh();
    let log = log(60_000);
    for part in log.chunks(20_000) {
        append(&root, part).await;
    }
    let mut config = Config::default();
    // Only the first build gives the items their indexes.
    build(&config, &root).await.unwrap();
    for ties in [Ties::FileOrder, Ties::Shuffled] {
        config.sequences.ties = ties;
        config.sequences.max_len = 50;
        let mut builds = Vec::new();
        // The smallest pool makes the sort spill.
        for (threads, memory_bytes) in [(1, 1 << 30), (2, 1 << 30), (5, 1 << 30), (1, 5 << 20)] {
            let _ = std::fs::remove_dir_all(root.table_path(SEQUENCES));
            let report = build_with(&config, &root, Resources { threads, memory_bytes }).await.unwrap();
            builds.push((rows(&root).await, report.counts));
        }
        assert_eq!(builds[0].0.len(), config.sequences.shards);
        for (i, other) in builds.iter().enumerate() {
            assert_eq!(builds[0].1, other.1, "counts of run {i}");
            for (name, rows) in &builds[0].0 {
                for (k, (one, two)) in rows.iter().zip(&other.0[name]).enumerate() {
                    assert_eq!(one, two, "row {k} of {name} in run {i}, {ties:?}");
                }
            }
        }
        let counts = builds[0].1.as_ref().unwrap();
        assert!(counts.duplicates > 0 && counts.rows > counts.users);
    }
}

#[tokio::test]
async fn a_second_build_writes_nothing_and_says_so() {
    let (_directory, root) = fresh();
    let log = log(200);
    append(&root, &log).await;
    let mut config = Config::default();
    let first = build(&config, &root).await.unwrap();
    assert!(!first.unchanged && first.to_string().contains("events read"));
    let again = build(&config, &root).await.unwrap();
    assert!(again.unchanged && again.to_string().contains("unchanged at version 0"), "{again}");
    assert_eq!((again.version, again.rows), (first.version, first.rows));

    config.sequences.max_len = 20;
    let other = build(&config, &root).await.unwrap();
    assert_eq!((other.unchanged, other.version), (false, 1));
    append(&root, &[event(1_000, "new", &log[0].item, 20_000 * DAY_MS)]).await;
    assert_eq!(build(&config, &root).await.unwrap().version, 2);
    let stored = root.require(SEQUENCES, "").await.unwrap();
    let stored = |key| stored.properties().get(key).cloned().unwrap_or_default();
    assert_eq!(stored(properties::MAX_LEN), "20");
    assert_eq!(stored(properties::DELTA_TAU_MS), "900000");
    assert_eq!(stored(properties::TIE_POLICY), "file-order");
    assert_eq!(stored(properties::EVENTS_VERSION), "1");
    assert_eq!(stored(properties::ITEMS_VERSION), "0");
    assert_eq!(stored(properties::CONFIG_HASH), config.sequences.hash());
}

#[tokio::test]
async fn items_that_only_events_know_get_the_next_indexes() {
    let (_directory, root) = fresh();
    let config = Config::default();
    append(&root, &[event(0, "u", "b", 5), event(1, "u", "a", 6), event(2, "u", "b", 7)]).await;
    assert_eq!(build(&config, &root).await.unwrap().counts.unwrap().new_items, 2);
    append(&root, &[event(3, "u", "0", 8), event(4, "u", "a", 9)]).await;
    let report = build(&config, &root).await.unwrap();
    assert_eq!((report.counts.unwrap().new_items, report.items_version), (1, 1));
    let ids = item_ids(&root).await;
    assert_eq!([&ids[&1], &ids[&2], &ids[&3]], ["a", "b", "0"]);
    let rows = rows(&root).await;
    assert_eq!(rows.values().next().unwrap()[0].item, [2, 1, 2, 3, 1]);
    // Nothing new: no commit to `items`.
    append(&root, &[event(5, "u", "a", 10)]).await;
    assert_eq!(build(&config, &root).await.unwrap().items_version, 1);
}

#[tokio::test]
async fn what_cannot_be_built_is_named_and_leaves_nothing() {
    let (_directory, root) = fresh();
    let mut config = Config::default();
    let error = build(&config, &root).await.unwrap_err();
    assert!(error.to_string().contains("pipeline ingest"), "{error}");
    append(&root, &[]).await;
    let error = build(&config, &root).await.unwrap_err();
    assert!(matches!(error, BuildError::NoEvents { version: 0 }), "{error}");
    assert!(!root.table_path(ITEMS).exists());

    append(&root, &log(300)).await;
    config.sequences.actions = vec!["plays".into()];
    let error = build(&config, &root).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"none of the 300 events has an action of sequences.actions, which is ["plays"]"#
    );

    config.sequences.actions.clear();
    config.sequences.max_len = 4;
    config.sequences.split = SplitKind::Temporal;
    config.sequences.validation_from = Some("2000-01-01T00:00:00Z".parse().unwrap());
    config.sequences.test_from = Some("2100-01-01T00:00:00Z".parse().unwrap());
    let error = build(&config, &root).await.unwrap_err();
    let BuildError::Window { user, .. } = &error else { panic!("{error}") };
    assert!(user.starts_with("user") && error.to_string().contains(user));
    let left: Vec<_> = std::fs::read_dir(root.table_path(SEQUENCES)).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_missing_shard_is_an_error_that_names_it() {
    let (_directory, root) = fresh();
    append(&root, &log(100)).await;
    let snapshot = root.require(EVENTS, "").await.unwrap();
    let shard = &snapshot.shards()[0].path;
    std::fs::remove_file(root.table_path(EVENTS).join(shard)).unwrap();
    let error = build(&Config::default(), &root).await.unwrap_err();
    let mut text = error.to_string();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
        text.push_str(&format!(": {cause}"));
    }
    assert!(text.contains(shard.rsplit('/').next().unwrap()), "{text}");
}

#[tokio::test]
async fn one_user_may_have_a_long_history() {
    let (_directory, root) = fresh();
    let n = 150_000;
    let events: Vec<Event> =
        (0..n).map(|i| event(i, "only", &format!("i{}", i % 97), 20_000 * DAY_MS + i as i64 * 400)).collect();
    append(&root, &events).await;
    let report = build(&Config::default(), &root).await.unwrap();
    let shards = rows(&root).await;
    assert_eq!(shards.keys().collect::<Vec<_>>(), [&format!("part-{:05}", hash64(b"only") % 8)]);
    let owned: usize = shards.values().flatten().map(|row| row.item.len() - row.target_from).sum();
    assert_eq!(owned as u64, n);
    assert_eq!(report.counts.unwrap().users, 1);
}

#[tokio::test]
async fn auto_takes_the_mean_request_interval_of_all_users() {
    let (_directory, root) = fresh();
    let mut config = Config::default();
    config.sequences.delta_tau = "auto".to_owned().try_into().unwrap();
    // Two requests a user, 1 to 5 minutes apart; and a third one in a later session.
    let log = |users: std::ops::Range<u64>| -> Vec<Event> {
        users
            .flat_map(|user| {
                let apart = (1 + user as i64 % 5) * 60_000;
                [0, apart, 100 * 60_000].into_iter().zip(0..).map(move |(at, n)| {
                    let mut event = event(user * 3 + n, &format!("u{user}"), &format!("i{n}"), 0);
                    event.ts = 20_000 * DAY_MS + at + 5_000;
                    event.request = Some(format!("r{user}-{n}"));
                    event.request_ts = Some(20_000 * DAY_MS + at);
                    event
                })
            })
            .collect()
    };
    append(&root, &log(0..999)).await;
    let error = build(&config, &root).await.unwrap_err();
    assert!(matches!(error, BuildError::TooFewIntervals { count: 999 }), "{error}");
    append(&root, &log(999..1_000)).await;
    let report = build(&config, &root).await.unwrap();
    let measured = report.request_intervals.unwrap();
    assert_eq!((measured.count, measured.median_ms, measured.p90_ms), (1_000, 180_000, 300_000));
    assert_eq!(report.delta_tau_ms, Some(180_000));
    // The second request sees the first one only if it is later by more than the mean interval.
    let seen: usize = rows(&root).await.values().flatten().filter(|row| row.visible[1] == 1).count();
    assert_eq!(seen, 400);
    assert!(build(&config, &root).await.unwrap().unchanged);
    let stored = root.require(SEQUENCES, "").await.unwrap();
    let stored = |key| stored.properties().get(key).cloned().unwrap_or_default();
    assert_eq!(stored(properties::DELTA_TAU_MS), "180000");
    assert_eq!(stored(properties::REQUEST_INTERVAL_MEAN_MS), "180000.000");

    // A refresh measures all users, not only those with new events.
    append(&root, &log(2_000..2_001)).await;
    let report = refresh(&config, &root, 1, Resources::default()).await.unwrap();
    assert_eq!((report.delta_tau_ms, report.counts.unwrap().users), (Some(179_880), 1));
}

#[tokio::test]
async fn many_users_may_have_one_event_each() {
    let (_directory, root) = fresh();
    let n = 100_000;
    let events: Vec<Event> = (0..n)
        .map(|i| event(i, &format!("u{i}"), &format!("i{}", i % 97), 20_000 * DAY_MS + i as i64))
        .collect();
    append(&root, &events).await;
    let resources = Resources { threads: 2, memory_bytes: 8 << 20 };
    let report = build_with(&Config::default(), &root, resources).await.unwrap();
    let counts = report.counts.unwrap();
    assert_eq!((counts.users, counts.rows, counts.users_too_few), (n, n, n));
    assert!(report.spilled_bytes.unwrap() > 0);
    for (name, rows) in rows(&root).await {
        assert!(rows.is_sorted_by(|a, b| a.user < b.user), "{name}");
    }
}
