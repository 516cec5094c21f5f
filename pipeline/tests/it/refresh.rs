//! `build-sequences --since`: for any commits, each new event is a target of one refresh, in the row that
//! a full build has.

use std::collections::{BTreeMap, BTreeSet};

use schemas::config::{Config, Ties};
use schemas::tables::{EVENTS, REFRESH, SEQUENCES, properties};
use store::{Root, TableError};
use terminal::Interrupt;

use crate::common::{DAY_MS, Event, Row, append, item_ids, rows, rows_of};
use pipeline::compact::{TARGET, compact};
use pipeline::engine::Resources;
use pipeline::sequences::{BuildError, build_with, refresh};
use pipeline::verify::verify_within;
use proptest::prelude::*;

const RESOURCES: Resources = Resources { threads: 2, memory_bytes: 64 << 20 };

async fn rewrite(root: &Root) {
    compact(root, &[], TARGET, RESOURCES, &Interrupt::default()).await.unwrap();
}

/// An event's user, item and time, which are unique in these logs.
type Target = (String, String, i64);

fn owned(row: &Row, items: &std::collections::HashMap<u32, String>, roles: fn(u8) -> bool) -> Vec<Target> {
    (row.target_from..row.item.len())
        .filter(|&k| roles(row.role[k]))
        .map(|k| (row.user.clone(), items[&row.item[k]].clone(), row.ts[k]))
        .collect()
}

/// Compares the refresh after `since` with the full build of the same version; returns its targets.
async fn check(root: &Root, config: &Config, since: u64) -> Vec<Target> {
    build_with(config, root, RESOURCES).await.unwrap();
    let report = refresh(config, root, since, RESOURCES).await.unwrap();
    let (full, new) = (rows(root).await, rows_of(root, REFRESH).await);
    let items = item_ids(root).await;
    let mut targets = Vec::new();
    for (shard, new) in &new {
        let mut rest = full[shard].iter();
        for row in new {
            assert!(row.role[..row.target_from].iter().all(|&role| role == 4));
            let fresh: Vec<usize> = (0..row.role.len()).filter(|&k| row.role[k] != 4).collect();
            assert!(!fresh.is_empty(), "a row without a new event: {row:?}");
            // The same row of the full build, but for the roles; in the same order.
            let mut as_built =
                rest.find(|full| full.user == row.user && full.ts == row.ts && full.item == row.item);
            let as_built = as_built.take().unwrap_or_else(|| panic!("not in the full build: {row:?}"));
            for k in fresh {
                assert_eq!(row.role[k], as_built.role[k]);
            }
            assert_eq!(Row { role: as_built.role.clone(), ..row.clone() }, *as_built);
            targets.extend(owned(row, &items, |role| role != 4));
        }
    }
    assert_eq!(report.counts.unwrap().targets.total(), targets.len() as u64);
    let found = verify_within(config, root, Some(REFRESH), 40).await.unwrap();
    assert_eq!(found.doubt(), None, "{found}");
    let again = refresh(config, root, since, RESOURCES).await.unwrap();
    assert!(again.unchanged && again.version == report.version);
    targets
}

fn logs() -> impl Strategy<Value = Vec<Event>> {
    let event = (0usize..6, 0i64..400, prop::option::weighted(0.3, 0u8..4), any::<bool>(), 0usize..100);
    prop::collection::vec(event, 2..90).prop_map(|steps| {
        let mut log: Vec<Event> = Vec::new();
        for (i, (user, ts, request, copy, of)) in steps.into_iter().enumerate() {
            let mut event = Event {
                event_id: format!("e{i}"),
                user: format!("u{user}"),
                item: format!("i{i}"),
                // Late events, and two dates.
                ts: 20_000 * DAY_MS - 200 + ts,
                request: request.map(|r| format!("r{r}")),
                request_ts: None,
                action: "play".into(),
                value: None,
                source: format!("part-{}", i / 20),
                position: i as i64,
            };
            if copy && of % 5 == 0 && !log.is_empty() {
                // A duplicate that a consumer's window let through.
                event = log[of % log.len()].clone();
                event.source = format!("late-{}", i % 2);
            }
            log.push(event);
        }
        log
    })
}

async fn check_cuts(log: Vec<Event>, cuts: BTreeSet<usize>, config: Config, compact_after: Option<usize>) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    let mut covered: Vec<Target> = Vec::new();
    let ends = cuts.iter().copied().filter(|&end| end < log.len()).chain([log.len()]);
    let (mut start, mut since) = (0, 0);
    for (n, end) in ends.enumerate() {
        if end == start {
            continue;
        }
        append(&root, &log[start..end]).await;
        start = end;
        if compact_after == Some(n) {
            rewrite(&root).await;
        }
        let version = root.require(EVENTS, "").await.unwrap().version();
        if n == 0 {
            // The targets that a first full training learned.
            build_with(&config, &root, RESOURCES).await.unwrap();
            let items = item_ids(&root).await;
            for row in rows(&root).await.values().flatten() {
                covered.extend(owned(row, &items, |_| true));
            }
        } else {
            covered.extend(check(&root, &config, since).await);
        }
        since = version;
    }
    let distinct: BTreeSet<Target> = covered.iter().cloned().collect();
    assert_eq!(distinct.len(), covered.len(), "an event was covered twice");
    let wanted: BTreeSet<Target> = log.iter().map(|e| (e.user.clone(), e.item.clone(), e.ts)).collect();
    assert_eq!(distinct, wanted);
}

/// How many cases of a property to try: `few`, or what PROPTEST_CASES says.
fn cases(few: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(few)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]
    #[test]
    fn refreshes_cover_each_new_event_once(
        log in logs(),
        cuts in prop::collection::btree_set(1usize..90, 0..4),
        max_len in 4usize..20,
        shuffled in any::<bool>(),
        compact_after in prop::option::of(0usize..4),
    ) {
        let mut config = Config::default();
        config.sequences.max_len = max_len;
        config.sequences.shards = 3;
        config.sequences.session_gap.ms = 20;
        config.sequences.delta_tau = "10ms".to_owned().try_into().unwrap();
        config.sequences.ties = if shuffled { Ties::Shuffled } else { Ties::FileOrder };
        tokio::runtime::Runtime::new().unwrap().block_on(check_cuts(log, cuts, config, compact_after));
    }
}

/// Logs of a few days with equal times and repeated ids: later, on other dates, for other users.
fn entangled() -> impl Strategy<Value = Vec<Event>> {
    let event = (0usize..5, 0i64..5, 0i64..4, prop::option::weighted(0.3, 0u8..3), prop::bool::weighted(0.8));
    let copy = prop::option::weighted(
        0.4,
        (0usize..100, 0i64..4, prop::option::weighted(0.4, 0usize..5), 0usize..3),
    );
    prop::collection::vec((event, copy), 2..60).prop_map(|steps| {
        let mut log: Vec<Event> = Vec::new();
        for (i, ((user, day, minute, request, plays), copy)) in steps.into_iter().enumerate() {
            let mut event = Event {
                event_id: format!("e{i}"),
                user: format!("u{user}"),
                item: format!("i{}", i % 7),
                ts: (20_000 + day) * DAY_MS + minute * 60_000,
                request: request.map(|r| format!("r{r}")),
                request_ts: None,
                action: if plays { "play" } else { "skip" }.into(),
                value: None,
                source: format!("part-{}", i / 20),
                position: i as i64,
            };
            if let Some((of, days, user, source)) = copy.filter(|_| !log.is_empty()) {
                event = log[of % log.len()].clone();
                event.ts += days * DAY_MS;
                event.user = user.map_or(event.user, |user| format!("u{user}"));
                if source > 0 {
                    (event.source, event.position) = (format!("{}-again", ["a", "z"][source - 1]), i as i64);
                }
            }
            log.push(event);
        }
        log
    })
}

/// User, time and item of the events that count and are fresh, by the definition; `fresh` returns for each event of the log
/// whether it was appended after the refresh's version.
fn fresh_targets(log: &[Event], fresh: impl Fn(usize) -> bool, config: &Config) -> Vec<Target> {
    let days = i64::from(config.events.dedup_days);
    let key = |e: &Event| {
        let (source, user, item) = (e.source.clone(), e.user.clone(), e.item.clone());
        (source, e.position, e.ts, user, item, e.action.clone(), e.request.clone())
    };
    let near = |a: &Event, b: &Event| {
        a.event_id == b.event_id && (a.ts.div_euclid(DAY_MS) - b.ts.div_euclid(DAY_MS)).abs() <= days
    };
    let mut targets: BTreeSet<(String, Target)> = BTreeSet::new();
    for event in log {
        let mut copies = log.iter().enumerate().filter(|(_, copy)| near(copy, event));
        let counts = !log.iter().any(|copy| near(copy, event) && key(copy) < key(event));
        let wanted = config.sequences.actions.is_empty() || config.sequences.actions.contains(&event.action);
        if counts && wanted && copies.all(|(at, _)| fresh(at)) {
            let target = (event.user.clone(), event.item.clone(), event.ts);
            targets.insert((event.event_id.clone(), target));
        }
    }
    let mut targets: Vec<Target> = targets.into_iter().map(|(_, target)| target).collect();
    targets.sort();
    targets
}

/// The command that follows each commit of a log.
#[derive(Debug, Clone, Copy)]
enum After {
    Nothing,
    Build,
    Refresh,
    Compact,
}

/// A refresh is the same whatever was built before it, is made of rows of the full build, and its targets are those of
/// [`fresh_targets`].
async fn check_entangled(log: Vec<Event>, cuts: Vec<(usize, After)>, since: usize, config: Config) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    // The version after each commit, and its end in the log.
    let mut versions = Vec::new();
    let mut start = 0;
    for (end, after) in cuts.into_iter().chain([(log.len(), After::Nothing)]) {
        let end = end.min(log.len());
        if end <= start {
            continue;
        }
        append(&root, &log[start..end]).await;
        start = end;
        let version = root.require(EVENTS, "").await.unwrap().version();
        match after {
            After::Nothing => {}
            After::Build => _ = build_with(&config, &root, RESOURCES).await,
            After::Refresh => {
                let since = versions.last().map_or(0, |&(version, _)| version);
                refresh(&config, &root, since, RESOURCES).await.unwrap();
            }
            After::Compact => rewrite(&root).await,
        }
        versions.push((version, end));
    }
    let (since, learned) = versions[since % versions.len()];
    refresh(&config, &root, since, RESOURCES).await.unwrap();
    let by_notes = rows_of(&root, REFRESH).await;
    for table in [REFRESH, SEQUENCES] {
        let table = root.table_path(table);
        if table.exists() {
            std::fs::remove_dir_all(table).unwrap();
        }
    }
    refresh(&config, &root, since, RESOURCES).await.unwrap();
    assert_eq!(rows_of(&root, REFRESH).await, by_notes);

    let mut targets = Vec::new();
    if !by_notes.is_empty() {
        build_with(&config, &root, RESOURCES).await.unwrap();
        let (full, items) = (rows(&root).await, item_ids(&root).await);
        for (shard, row) in by_notes.iter().flat_map(|(shard, rows)| rows.iter().map(move |row| (shard, row)))
        {
            let same = |full: &&Row| Row { role: row.role.clone(), ..(*full).clone() } == *row;
            assert!(full[shard].iter().any(|full| same(&full)), "not in the full build: {row:?}");
            targets.extend(owned(row, &items, |role| role != 4));
        }
    }
    targets.sort();
    assert_eq!(targets, fresh_targets(&log, |at| at >= learned, &config));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]
    #[test]
    fn a_refresh_is_a_part_of_the_full_build_whatever_was_built_before(
        log in entangled(),
        cuts in prop::collection::btree_map(1usize..60, prop_oneof![
            Just(After::Nothing), Just(After::Build), Just(After::Refresh), Just(After::Compact)
        ], 1..5),
        since in 0usize..5,
        dedup_days in 0u32..3,
        max_len in 4usize..20,
        only_plays in any::<bool>(),
        shuffled in any::<bool>(),
    ) {
        let mut config = Config::default();
        config.events.dedup_days = dedup_days;
        config.sequences.max_len = max_len;
        config.sequences.shards = 2;
        config.sequences.actions = if only_plays { vec!["play".into()] } else { Vec::new() };
        config.sequences.ties = if shuffled { Ties::Shuffled } else { Ties::FileOrder };
        let cuts = cuts.into_iter().collect();
        tokio::runtime::Runtime::new().unwrap().block_on(check_entangled(log, cuts, since, config));
    }
}

fn event(n: i64, user: &str) -> Event {
    Event {
        event_id: format!("e{n}"),
        user: user.into(),
        item: format!("i{n}"),
        ts: 20_000 * DAY_MS + n * 60_000,
        request: None,
        request_ts: None,
        action: "play".into(),
        value: None,
        source: "log.csv".into(),
        position: n,
    }
}

#[tokio::test]
async fn what_is_not_known_any_more_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    for n in 0..4 {
        append(&root, &[event(n, "u")]).await;
    }
    let config = Config::default();
    let error = refresh(&config, &root, 9, RESOURCES).await.unwrap_err();
    assert_eq!(error.to_string(), "table `events` has no version 9 yet; its newest is 3");

    // Delta's clean-up: a checkpoint of the log stands for the entries before it.
    let events = root.require(EVENTS, "").await.unwrap();
    deltalake::checkpoints::create_checkpoint(events.delta(), None).await.unwrap();
    for version in 0..3 {
        let entry = root.table_path(EVENTS).join(format!("_delta_log/{version:020}.json"));
        std::fs::remove_file(entry).unwrap();
    }
    let fresh = refresh(&config, &root, 2, RESOURCES).await.unwrap();
    assert_eq!(fresh.counts.unwrap().targets.total(), 1);
    let error = refresh(&config, &root, 0, RESOURCES).await.unwrap_err();
    let expired = TableError::Expired { table: EVENTS.into(), since: 0, version: 1 };
    assert_eq!(error.to_string(), BuildError::Table(expired).to_string());
}

#[tokio::test]
async fn nothing_new_is_an_empty_table_that_says_since_when() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    append(&root, &[event(0, "a"), event(1, "b")]).await;
    append(&root, &[event(2, "b")]).await;
    let config = Config::default();
    let report = refresh(&config, &root, 0, RESOURCES).await.unwrap();
    let counts = report.counts.unwrap();
    assert_eq!((report.rows, counts.other_users, counts.users, counts.targets.total()), (1, 1, 1, 1));
    let report = refresh(&config, &root, 1, RESOURCES).await.unwrap();
    assert_eq!((report.rows, report.unchanged, report.version), (0, false, 1));
    let table = root.require(REFRESH, "").await.unwrap();
    assert_eq!(table.properties().get(properties::SINCE_VERSION).map(String::as_str), Some("1"));
    let mapped: BTreeMap<String, Vec<Row>> = rows_of(&root, REFRESH).await;
    assert!(mapped.is_empty());
}

/// A refresh decodes only the histories of users with new events; of other users' events it reads the ids at most.
#[tokio::test]
async fn the_events_of_others_are_not_decoded() {
    let of = |users: std::ops::Range<i64>, per_user: i64| -> Vec<Event> {
        let numbers = users.flat_map(|user| (0..per_user).map(move |n| (user, n)));
        numbers.map(|(user, n)| event(user * 1_000 + n * 97, &format!("u{user}"))).collect()
    };
    let mut decoded = Vec::new();
    for others in [10, 1_000] {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path().to_str().unwrap()).unwrap();
        append(&root, &of(0..others, 20)).await;
        let config = Config::default();
        build_with(&config, &root, RESOURCES).await.unwrap();
        // Three users get an event at the end of their histories, and a new user gets one on the first date.
        let news: Vec<Event> =
            (0..3).map(|user| event(user * 1_000 + 20 * 97, &format!("u{user}"))).collect();
        append(&root, &[&news[..], &[event(1, "new")]].concat()).await;
        for since in [0, 1] {
            let report = refresh(&config, &root, since, RESOURCES).await.unwrap();
            let counts = report.counts.unwrap();
            assert_eq!(counts.events, others as u64 * 20 + 4);
            assert_eq!(counts.other_users, counts.events - if since == 0 { 64 } else { 0 });
            decoded.push(report.events_decoded.unwrap());
        }
    }
    // The new events are looked up among those of their dates.
    assert_eq!(decoded, [64 + 4, 0, 64 + 4, 0]);
}
