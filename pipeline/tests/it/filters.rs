//! The filters of `[sequences]`: every table that is built from the log sees the events that a slow definition keeps.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use schemas::config::{Config, Ties};
use schemas::hash::{hash64, mix64};
use schemas::history::{AtMostOnce, EventFilter, LogFilters};
use schemas::tables::{EVENTS, INSTRUCTIONS, REFRESH, SEQUENCES};
use store::Root;

use crate::common::{DAY_MS, Event, Row, append, item_ids, rows, rows_of};
use crate::examples::{Item, write_items};
use pipeline::engine::Resources;
use pipeline::histories::FilterCounts;
use pipeline::sequences::{BuildError, build_with, refresh};
use pipeline::verify::verify_within;
use pipeline::{instructions, sft};

/// Resources of a case: one thread or several, in much memory or too little.
const RESOURCES: [Resources; 3] = [
    Resources { threads: 1, memory_bytes: 64 << 20 },
    Resources { threads: 3, memory_bytes: 64 << 20 },
    Resources { threads: 2, memory_bytes: 20_000 },
];

/// User, item and time of an event.
type Survivor = (String, String, i64);

/// What the definition keeps of a log.
#[derive(Debug, Default, PartialEq)]
struct Expected {
    survivors: Vec<Survivor>,
    by_action: u64,
    duplicates: u64,
    counts: FilterCounts,
}

/// The definition, filter by filter, over the whole log at once.
fn expected(log: &[Event], config: &Config) -> Expected {
    let filters = config.sequences.filters();
    let mut result = Expected::default();
    let passes = |e: &Event| filters.taken_by(&e.action, e.value, e.ts);
    let mut passing = 0;
    for event in log {
        match passes(event) {
            Some(EventFilter::Action) => result.by_action += 1,
            Some(EventFilter::Value) => result.counts.by_value += 1,
            Some(EventFilter::Time) => result.counts.by_time += 1,
            None => passing += 1,
        }
    }
    // Copies: the first record within the window of days counts, or none.
    let key = |e: &Event| {
        let (source, user, item) = (e.source.clone(), e.user.clone(), e.item.clone());
        let value = e.value.map(|value| (value * 10.0) as i64);
        (source, e.position, e.ts, user, item, e.action.clone(), e.request.clone(), value)
    };
    let mut sorted: Vec<&Event> = log.iter().collect();
    sorted.sort_by_key(|e| key(e));
    let days = |a: &Event, b: &Event| a.ts.div_euclid(DAY_MS).abs_diff(b.ts.div_euclid(DAY_MS));
    let mut events: Vec<&Event> = Vec::new();
    for (n, event) in sorted.iter().enumerate() {
        let near = |other: &&&Event| {
            other.event_id == event.event_id && days(other, event) <= u64::from(config.events.dedup_days)
        };
        if !sorted[..n].iter().any(|other| near(&other)) && passes(event).is_none() {
            events.push(event);
        }
    }
    result.duplicates = passing - events.len() as u64;
    // The order of histories.
    let tie = |e: &Event| match config.sequences.ties {
        Ties::FileOrder => 0,
        Ties::Shuffled => mix64(config.sequences.tie_seed, hash64(e.event_id.as_bytes())),
    };
    events.sort_by_key(|e| (e.ts, tie(e), e.source.clone(), e.position, hash64(e.event_id.as_bytes())));
    if let Some(keep) = filters.at_most_once {
        let before = events.len();
        let mut seen = BTreeSet::new();
        let mut kept: Vec<&Event> = match keep {
            AtMostOnce::First => events.clone(),
            AtMostOnce::Last => events.iter().rev().copied().collect(),
        };
        kept.retain(|e| seen.insert((e.user.clone(), e.item.clone())));
        events = kept;
        result.counts.by_once = (before - events.len()) as u64;
    }
    if filters.has_core() {
        let before = events.clone();
        loop {
            let at_first = events.len();
            for (of, min) in [
                ((|e| &e.user) as fn(&Event) -> &String, filters.min_user_events),
                (|e| &e.item, filters.min_item_events),
            ] {
                let mut counts: HashMap<&str, u32> = HashMap::new();
                events.iter().for_each(|e| *counts.entry(of(e)).or_default() += 1);
                events.retain(|e| counts[of(e).as_str()] >= min.unwrap_or(0));
            }
            if events.len() == at_first {
                break;
            }
            result.counts.core_rounds += 1;
        }
        let distinct = |events: &[&Event], of: fn(&Event) -> &String| {
            events.iter().map(|e| of(e).clone()).collect::<BTreeSet<String>>().len() as u64
        };
        result.counts.by_core = (before.len() - events.len()) as u64;
        result.counts.core_users = distinct(&before, |e| &e.user) - distinct(&events, |e| &e.user);
        result.counts.core_items = distinct(&before, |e| &e.item) - distinct(&events, |e| &e.item);
    }
    result.survivors = events.iter().map(|e| (e.user.clone(), e.item.clone(), e.ts)).collect();
    result.survivors.sort();
    result
}

/// The events that rows own, with roles that `wanted` selects.
fn owned(
    rows: &BTreeMap<String, Vec<Row>>,
    items: &HashMap<u32, String>,
    wanted: fn(u8) -> bool,
) -> Vec<Survivor> {
    let mut owned: Vec<Survivor> = Vec::new();
    for row in rows.values().flatten() {
        let positions = (row.target_from..row.item.len()).filter(|&k| wanted(row.role[k]));
        owned.extend(positions.map(|k| (row.user.clone(), items[&row.item[k]].clone(), row.ts[k])));
    }
    owned.sort();
    owned
}

/// Logs in which users and items recur, with several actions and values, equal times, and copies that differ.
fn logs() -> impl Strategy<Value = Vec<Event>> {
    let event = (0usize..8, 0usize..8, 0i64..3, 0i64..6, 0usize..3, prop::option::weighted(0.8, 0u8..5));
    let copy = prop::option::weighted(0.15, (0usize..100, 0i64..2, 0usize..4, 0u8..5));
    prop::collection::vec((event, copy), 1..120).prop_map(|steps| {
        let mut log: Vec<Event> = Vec::new();
        for (i, ((user, item, day, minute, action, value), copy)) in steps.into_iter().enumerate() {
            // Low numbers are frequent, so that cores have several rounds.
            let (user, item) = (user * user / 8, item * (i % 8) / 8);
            let mut event = Event {
                event_id: format!("e{i}"),
                user: format!("u{user}"),
                item: format!("i{item}"),
                ts: (20_000 + day) * DAY_MS + minute * 60_000,
                request: None,
                request_ts: None,
                action: ["play", "play", "skip"][action].into(),
                value: value.map(f64::from),
                source: format!("part-{}", i / 20),
                position: i as i64,
            };
            if let Some((of, days, change, value)) = copy.filter(|_| !log.is_empty()) {
                event = log[of % log.len()].clone();
                event.ts += days * DAY_MS;
                match change {
                    0 => event.value = Some(f64::from(value)),
                    1 => event.user = format!("u{value}"),
                    2 => (event.source, event.position) = ("a".into(), i as i64),
                    _ => event.action = "like".into(),
                }
            }
            log.push(event);
        }
        log
    })
}

fn configs() -> impl Strategy<Value = Config> {
    let of_event = (
        any::<bool>(),
        prop::option::weighted(0.3, 1u8..4),
        prop::option::weighted(0.3, 0i64..3),
        prop::option::weighted(0.3, 0i64..3),
    );
    let of_history = (
        prop::option::of(prop_oneof![Just(AtMostOnce::First), Just(AtMostOnce::Last)]),
        prop::option::of(1u32..5),
        prop::option::of(1u32..5),
    );
    let shape = (0u32..3, any::<bool>(), 4usize..20);
    (of_event, of_history, shape).prop_map(
        |((plays, min_value, from, days), (once, min_user, min_item), (dedup_days, shuffled, max_len))| {
            let overrides = [
                "items.attributes.genre={}",
                "instructions.window=3650d",
                "conditions.min_pool=1",
                "conditions.min_matching_history=0",
                "sequences.sft_share=0.4",
                "sequences.shards=3",
            ];
            let mut config = Config::from_overrides(&overrides.map(ToOwned::to_owned)).unwrap();
            let sequences = &mut config.sequences;
            let day = |day: i64| chrono::DateTime::from_timestamp((20_000 + day) * 86_400 + 120, 0);
            sequences.actions = if plays { vec!["play".into()] } else { Vec::new() };
            sequences.min_value = min_value.map(f64::from);
            sequences.from = from.and_then(day);
            sequences.until = days.and_then(|days| day(from.unwrap_or(0) + 1 + days));
            sequences.at_most_once = once;
            (sequences.min_user_events, sequences.min_item_events) = (min_user, min_item);
            sequences.max_len = max_len;
            sequences.ties = if shuffled { Ties::Shuffled } else { Ties::FileOrder };
            config.events.dedup_days = dedup_days;
            config.validate().unwrap();
            config
        },
    )
}

async fn check(log: Vec<Event>, cut: usize, config: Config, resources: Resources) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    let genre = |n: usize| ["Rock", "Jazz", "Folk"][n % 3];
    let items: Vec<Item> = (0..7)
        .map(|n| Item { id: format!("i{n}"), genres: vec![genre(n)], release_ts: None, active: true })
        .collect();
    write_items(&root, &items).await;
    let cut = (cut % log.len()).max(1).min(log.len());
    append(&root, &log[..cut]).await;
    let since = root.require(EVENTS, "").await.unwrap().version();
    if cut < log.len() {
        append(&root, &log[cut..]).await;
    }

    let expected = expected(&log, &config);
    let built = build_with(&config, &root, resources).await;
    if expected.survivors.is_empty() {
        let error = built.unwrap_err();
        let last = match &error {
            BuildError::NoActions { events, .. } => (*events, 0),
            BuildError::NothingLeft { events, last, .. } => (*events, *last),
            _ => panic!("{error}"),
        };
        let FilterCounts { by_value, by_time, by_core, .. } = expected.counts;
        let steps = [by_core, by_time, by_value].into_iter().find(|&events| events > 0);
        assert_eq!(last, (log.len() as u64, steps.unwrap_or(0)), "{error}");
        return;
    }
    let report = built.unwrap();
    let counts = report.counts.clone().unwrap();
    let items = item_ids(&root).await;
    assert_eq!(owned(&rows(&root).await, &items, |_| true), expected.survivors);
    let set = config.sequences.filters().beyond_actions();
    let found = Expected {
        survivors: expected.survivors.clone(),
        by_action: counts.filtered,
        duplicates: counts.duplicates,
        counts: counts.filters.unwrap_or_default(),
    };
    assert_eq!(found, expected);
    assert_eq!((counts.filters.is_some(), counts.events), (set, log.len() as u64));
    assert_eq!(serde_json::to_value(&report).unwrap()["counts"].get("filters").is_some(), set);

    // A refresh is a part of the full build.
    refresh(&config, &root, since, resources).await.unwrap();
    let (full, new) = (rows(&root).await, rows_of(&root, REFRESH).await);
    for (shard, row) in new.iter().flat_map(|(shard, rows)| rows.iter().map(move |row| (shard, row))) {
        let same = |full: &&Row| Row { role: row.role.clone(), ..(*full).clone() } == *row;
        assert!(full[shard].iter().any(|full| same(&full)), "not in the full build: {row:?}");
    }

    // The other tables: each is recomputed from the events that the verification keeps by itself.
    let run = instructions::build(&config, &root, None, Resources { memory_bytes: 64 << 20, ..resources });
    let run = run.await.unwrap();
    let users: BTreeSet<&String> = expected.survivors.iter().map(|(user, ..)| user).collect();
    assert_eq!(run.users, users.len() as u64);
    let mut tables = vec![SEQUENCES, REFRESH, INSTRUCTIONS];
    match sft::build_with(&config, &root, &["genre".to_owned()], resources).await {
        Ok(built) => {
            assert_eq!(built.tables[0].filters, counts.filters);
            tables.push("sft/genre");
        }
        Err(sft::SftError::NoTargets { .. }) => {}
        Err(error) => panic!("{error}"),
    }
    let mut others = config.clone();
    // Tables are verified by their own settings.
    others.sequences = Config::default().sequences;
    for (table, events_held_max) in tables.into_iter().zip([10, 1_000, 20, 30]) {
        let found = verify_within(&others, &root, Some(table), events_held_max).await.unwrap();
        assert_eq!(found.doubt(), None, "{found}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 30, ..ProptestConfig::default() })]
    #[test]
    fn every_build_sees_the_events_that_the_definition_keeps(
        log in logs(),
        cut in any::<usize>(),
        config in configs(),
        resources in 0usize..3,
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(check(log, cut, config, RESOURCES[resources]));
    }
}

fn event(n: i64, user: &str, item: &str, value: f64) -> Event {
    Event {
        event_id: format!("e{n}"),
        user: user.into(),
        item: item.into(),
        ts: 20_000 * DAY_MS + n * 60_000,
        request: None,
        request_ts: None,
        action: "play".into(),
        value: Some(value),
        source: "log.csv".into(),
        position: n,
    }
}

fn config(overrides: &[&str]) -> Config {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Config::from_overrides(&overrides).unwrap()
}

/// A chain: without `u3`, `c` falls, then `u2`, then `b`, then `u1`.
#[tokio::test]
async fn a_core_by_hand() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    let pairs = [
        ("u1", "a"),
        ("u1", "b"),
        ("u2", "b"),
        ("u2", "c"),
        ("u3", "c"),
        ("v1", "x"),
        ("v1", "y"),
        ("v2", "x"),
        ("v2", "y"),
        ("v2", "a"),
        ("v2", "x"),
    ];
    let log: Vec<Event> = pairs.iter().zip(0..).map(|(&(user, item), n)| event(n, user, item, 5.0)).collect();
    append(&root, &log).await;
    let config = config(&[
        "sequences.at_most_once=true",
        "sequences.min_user_events=2",
        "sequences.min_item_events=2",
        "sequences.min_value=1",
    ]);
    let report = build_with(&config, &root, RESOURCES[1]).await.unwrap();
    let filters = report.counts.as_ref().unwrap().filters.unwrap();
    let expected = FilterCounts {
        by_once: 1,
        by_core: 6,
        core_users: 3,
        core_items: 3,
        core_rounds: 3,
        ..FilterCounts::default()
    };
    assert_eq!(filters, expected);
    let text = report.to_string();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines =
        "filtered by value 0 filtered by at_most_once 1 outside the k-core 6 3 users, 3 items, rounds 3";
    assert!(words.contains(lines), "{text}");
    assert!(!text.contains("filtered by time"), "{text}");
    // The same settings again: nothing to do.
    assert!(build_with(&config, &root, RESOURCES[1]).await.unwrap().unchanged);
}

#[tokio::test]
async fn the_filter_that_takes_the_last_event_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    append(&root, &[event(0, "u", "a", 1.0), event(1, "u", "b", 2.0), event(2, "v", "a", 4.0)]).await;
    for (overrides, expected) in [
        (
            &["sequences.min_value=5"][..],
            "the filters leave none of the 3 events: sequences.min_value = 5 took out the last 3",
        ),
        (
            &["sequences.min_value=2", "sequences.from=2040-01-01T00:00:00Z"],
            "the filters leave none of the 3 events: sequences.from = 2040-01-01T00:00:00+00:00 took out the last 2",
        ),
        (
            &["sequences.min_user_events=2", "sequences.min_item_events=2"],
            "the filters leave none of the 3 events: the k-core of sequences.min_user_events = 2 and \
             sequences.min_item_events = 2 took out the last 3",
        ),
        (
            &["sequences.actions=[\"skip\"]", "sequences.min_value=5"],
            "none of the 3 events has an action of sequences.actions, which is [\"skip\"]",
        ),
    ] {
        let error = build_with(&config(overrides), &root, RESOURCES[0]).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

/// An event of another user brings an item into the core: a refresh reads the whole log, and has what the full build has.
#[tokio::test]
async fn a_refresh_sees_the_core_of_the_whole_log() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    append(&root, &[event(0, "u", "a", 1.0), event(1, "u", "b", 1.0), event(2, "v", "b", 1.0)]).await;
    append(&root, &[event(3, "w", "a", 1.0), event(4, "w", "c", 1.0)]).await;
    let settings = config(&["sequences.min_item_events=2"]);
    assert_eq!(
        settings.sequences.filters(),
        LogFilters { min_item_events: Some(2), ..LogFilters::default() }
    );
    let counts = refresh(&settings, &root, 0, RESOURCES[1]).await.unwrap().counts.unwrap();
    assert_eq!((counts.other_users, counts.targets.total()), (0, 1));
    let items = item_ids(&root).await;
    let targets = owned(&rows_of(&root, REFRESH).await, &items, |role| role != 4);
    assert_eq!(targets, [("w".to_owned(), "a".to_owned(), event(3, "", "", 0.0).ts)]);
    // Minimum events of users need the users' own histories only.
    let settings = config(&["sequences.min_user_events=2"]);
    let counts = refresh(&settings, &root, 0, RESOURCES[1]).await.unwrap().counts.unwrap();
    assert_eq!((counts.other_users, counts.targets.total()), (3, 2));
}
