//! SQL as the oracle of `build-sequences`: random logs are written as tables, built, read back, and compared
//! with the result of plain SQL (`oracle.sql`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use schemas::config::{Config, Sequences, Span, SplitKind, Ties};
use schemas::hash::{hash64, mix64};
use schemas::history::DeltaTau;
use store::Root;

use crate::common::{Event, Row, append, batch, item_ids, rows};
use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;
use datafusion::prelude::SessionContext;
use pipeline::engine::Resources;
use pipeline::sequences::{BuildError, BuildReport, build_with};
use proptest::prelude::*;

/// The result of SQL for one event.
#[derive(Debug, Clone, PartialEq)]
struct Expected {
    item: String,
    ts: i64,
    session: u32,
    request: u32,
    visible: u32,
    role: u8,
}

fn unit(text: &str) -> f64 {
    (hash64(text.as_bytes()) >> 11) as f64 / (1u64 << 53) as f64
}

/// The histories that the log holds under the configuration, by user.
async fn oracle(log: &[Event], config: &Sequences) -> BTreeMap<String, Vec<Expected>> {
    let quoted: Vec<String> = config.actions.iter().map(|a| format!("'{a}'")).collect();
    let role = match config.split {
        SplitKind::LeaveOneOut => {
            "CASE WHEN n < 3 THEN 0 WHEN numbered.t = n - 1 THEN 3 WHEN numbered.t = n - 2 THEN 2 ELSE 0 END"
                .to_owned()
        }
        SplitKind::LastN => {
            let last = config.last_n.unwrap();
            format!(
                "CASE WHEN n < {last} + 2 THEN 0 WHEN numbered.t >= n - {last} THEN 3 \
                 WHEN numbered.t = n - {last} - 1 THEN 2 ELSE 0 END"
            )
        }
        SplitKind::Temporal => format!(
            "CASE WHEN ts >= {} THEN 3 WHEN ts >= {} THEN 2 ELSE 0 END",
            config.test_from.unwrap().timestamp_millis(),
            config.validation_from.unwrap().timestamp_millis()
        ),
        SplitKind::None => format!("CASE WHEN user_unit < {} THEN 2 ELSE 0 END", config.guard_share.unwrap()),
    };
    let (off, margin) = match config.delta_tau.fixed().unwrap() {
        DeltaTau::Off => ("true", 0),
        DeltaTau::Margin(ms) => ("false", ms),
    };
    let actions =
        if quoted.is_empty() { "true".into() } else { format!("action IN ({})", quoted.join(", ")) };
    let sql = include_str!("oracle.sql")
        .replace("{actions}", &actions)
        .replace("{session_gap}", &config.session_gap.ms.to_string())
        .replace("{batch_gap}", &config.batch_gap.ms.to_string())
        .replace("{off}", off)
        .replace("{margin}", &margin.to_string())
        .replace("{role}", &role)
        .replace("{sft_share}", &format!("{:?}", config.sft_share));

    let context = SessionContext::new();
    context.register_batch("log", with_keys(log, config)).unwrap();
    let mut histories: BTreeMap<String, Vec<Expected>> = BTreeMap::new();
    for batch in context.sql(&sql).await.unwrap().collect().await.unwrap() {
        let numbers: Vec<ArrayRef> =
            [3, 4, 5, 6, 7].map(|c| cast(batch.column(c), &DataType::Int64).unwrap()).into();
        let number = |column: usize, row| numbers[column].as_primitive::<Int64Type>().value(row);
        let texts = [0, 2].map(|c| cast(batch.column(c), &DataType::Utf8).unwrap());
        for row in 0..batch.num_rows() {
            histories.entry(texts[0].as_string::<i32>().value(row).into()).or_default().push(Expected {
                item: texts[1].as_string::<i32>().value(row).into(),
                ts: number(0, row),
                session: number(1, row) as u32,
                request: number(2, row) as u32,
                visible: number(3, row) as u32,
                role: number(4, row) as u8,
            });
        }
    }
    histories
}

/// The log, with columns for values that SQL has no function for.
fn with_keys(log: &[Event], config: &Sequences) -> RecordBatch {
    let batch = batch(log);
    let shuffled = config.ties == Ties::Shuffled;
    let tie =
        log.iter().map(|e| if shuffled { mix64(config.tie_seed, hash64(e.event_id.as_bytes())) } else { 0 });
    let event_tie = log.iter().map(|e| if shuffled { e.event_id.as_str() } else { "" });
    let column = |name: &str| batch.column_by_name(name).unwrap().clone();
    RecordBatch::try_from_iter([
        ("event_id", column("event_id")),
        ("user_id", column("user_id")),
        ("item_id", column("item_id")),
        ("ts", Arc::new(Int64Array::from_iter_values(log.iter().map(|e| e.ts))) as ArrayRef),
        ("request_id", column("request_id")),
        ("action", column("action")),
        ("source", column("source")),
        ("position", column("position")),
        ("event_date", column("event_date")),
        ("tie", Arc::new(UInt64Array::from_iter_values(tie))),
        ("event_id_tie", Arc::new(StringArray::from_iter_values(event_tie))),
        ("event_unit", Arc::new(Float64Array::from_iter_values(log.iter().map(|e| unit(&e.event_id))))),
        ("user_unit", Arc::new(Float64Array::from_iter_values(log.iter().map(|e| unit(&e.user))))),
    ])
    .unwrap()
}

/// Compares the table with the oracle, list by list.
fn compare(
    shards: &BTreeMap<String, Vec<Row>>,
    items: &HashMap<u32, String>,
    histories: &BTreeMap<String, Vec<Expected>>,
    config: &Sequences,
    report: &BuildReport,
) {
    let mut by_user: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for (name, rows) in shards {
        assert!(!rows.is_empty() && rows.is_sorted_by_key(|row| &row.user), "{name}");
        for row in rows {
            let bucket = hash64(row.user.as_bytes()) % config.shards as u64;
            assert_eq!(*name, format!("part-{bucket:05}"));
            by_user.entry(&row.user).or_default().push(row);
        }
    }
    assert_eq!(by_user.keys().collect::<Vec<_>>(), histories.keys().collect::<Vec<_>>());

    let mut short_context = 0;
    for (user, rows) in by_user {
        let history = &histories[user];
        let place: HashMap<&str, usize> =
            history.iter().enumerate().map(|(t, event)| (event.item.as_str(), t)).collect();
        assert_eq!(place.len(), history.len(), "these logs name every event by its item");
        let mut owned = Vec::new();
        let mut holding_out = 0;
        for row in rows {
            let n = row.item.len();
            assert!(n <= config.max_len && row.target_from < n, "{row:?}");
            let lists =
                [row.ts.len(), row.session.len(), row.request.len(), row.visible.len(), row.role.len()];
            assert_eq!(lists, [n; 5]);
            let positions: Vec<usize> = row.item.iter().map(|index| place[items[index].as_str()]).collect();
            assert!(positions.is_sorted_by(|a, b| a < b), "{row:?}");
            let mut kept_promise = true;
            for (k, &t) in positions.iter().enumerate() {
                let is = Expected {
                    item: items[&row.item[k]].clone(),
                    ts: row.ts[k],
                    session: row.session[k],
                    request: row.request[k],
                    // The first position of the row that the target may not see, back in the history.
                    visible: positions.partition_point(|&p| p < history[t].visible as usize) as u32,
                    role: if k < row.target_from { 4 } else { history[t].role },
                };
                assert_eq!((is.visible, is.role), (row.visible[k], row.role[k]), "{user} {t} of {row:?}");
                let role = history[t].role;
                assert_eq!(Expected { visible: history[t].visible, role, ..is }, history[t]);
                if k >= row.target_from {
                    let v = history[t].visible as usize;
                    kept_promise &= (v.saturating_sub(config.max_len / 2)..v)
                        .all(|p| positions.binary_search(&p).is_ok());
                }
            }
            short_context += u64::from(!kept_promise);
            holding_out += usize::from(row.role.iter().any(|role| [2, 3].contains(role)));
            owned.extend_from_slice(&positions[row.target_from..]);
        }
        assert_eq!(owned, (0..history.len()).collect::<Vec<_>>(), "{user} owns each event once, in order");
        assert!(holding_out <= 1 || config.split == SplitKind::None, "{user}");
    }
    let counts = report.counts.as_ref().unwrap();
    assert!(short_context <= counts.rows_short_context);
}

/// The request intervals against their definition, from the oracle's sessions.
fn compare_intervals(log: &[Event], histories: &BTreeMap<String, Vec<Expected>>, report: &BuildReport) {
    let request_ts: HashMap<&str, i64> =
        log.iter().filter_map(|e| Some((e.item.as_str(), e.request_ts?))).collect();
    let mut sessions: BTreeMap<(&str, u32), BTreeSet<i64>> = BTreeMap::new();
    for (user, history) in histories {
        for event in history {
            if let Some(&ts) = request_ts.get(event.item.as_str()) {
                sessions.entry((user, event.session)).or_default().insert(ts);
            }
        }
    }
    let mut intervals: Vec<i64> = Vec::new();
    for times in sessions.into_values() {
        intervals.extend(times.iter().zip(times.iter().skip(1)).map(|(a, b)| b - a));
    }
    intervals.sort_unstable();
    let n = intervals.len();
    let Some(measured) = report.request_intervals else {
        assert_eq!(n, 0);
        return;
    };
    assert_eq!(measured.count, n as u64);
    assert!((measured.mean_ms - intervals.iter().sum::<i64>() as f64 / n as f64).abs() < 1e-3);
    assert_eq!(
        (measured.median_ms, measured.p90_ms),
        (intervals[(n - 1) / 2], intervals[(n * 9).div_ceil(10) - 1])
    );
}

/// The report's counts against the log and the oracle.
fn compare_counts(log: &[Event], histories: &BTreeMap<String, Vec<Expected>>, report: &BuildReport) {
    let counts = report.counts.as_ref().unwrap();
    let role = |wanted| histories.values().flatten().filter(|e| e.role == wanted).count() as u64;
    assert_eq!(counts.events, log.len() as u64);
    assert_eq!(counts.users, histories.len() as u64);
    assert_eq!(counts.targets.total(), counts.events - counts.duplicates - counts.filtered);
    assert_eq!(counts.targets.total(), histories.values().map(Vec::len).sum::<usize>() as u64);
    let targets = counts.targets;
    assert_eq!([targets.pretrain, targets.sft, targets.validation, targets.test], [0, 1, 2, 3].map(role));
}

fn logs() -> impl Strategy<Value = Vec<Event>> {
    // Around midnight, and around the epoch, because an event's identity includes its date.
    let start = prop_oneof![Just(1_577_923_190_000i64), Just(-10_000)];
    let event = (
        0usize..5,                                                     // user
        prop_oneof![4 => Just(0i64), 4 => 1i64..40, 1 => 0i64..9_000], // step
        prop::option::weighted(0.4, 0u8..4),                           // request
        prop_oneof![4 => Just("play"), 1 => Just("like"), 1 => Just("skip")],
        prop_oneof![Just("a.csv"), Just("b-10.csv"), Just("b-9.csv")],
        prop::option::weighted(0.08, any::<prop::sample::Index>()), // a copy of which earlier event
        0u8..3,     // a copy in everything, but the action, only by id
        0i64..1000, // disorder
    );
    (start, prop::collection::vec(event, 1..120), any::<u64>()).prop_map(|(start, steps, salt)| {
        let mut now = start;
        let mut log: Vec<Event> = Vec::new();
        let mut order = Vec::new();
        for (i, (user, step, request, action, source, copy, alike, disorder)) in steps.into_iter().enumerate()
        {
            now += step;
            let mut event = Event {
                event_id: format!("e{salt:x}-{i}"),
                user: ["u1", "u10", "u2", "é", "z"][user].into(),
                item: format!("i{i}"),
                ts: now,
                request: request.map(|r| format!("r{}-{r}", i / 16)),
                // Some requests have no time, and some items come before the request that is said to have shown them.
                request_ts: request.filter(|r| *r > 0).map(|r| now / 16 * 16 + i64::from(r) * 3),
                action: action.into(),
                value: None,
                source: source.into(),
                position: i as i64,
            };
            if let (Some(copy), false) = (copy, log.is_empty()) {
                let of = copy.get(&log);
                event = match alike {
                    0 => of.clone(),
                    1 => Event { action: event.action, ..of.clone() },
                    _ => Event { event_id: of.event_id.clone(), ..event },
                };
            }
            log.push(event);
            order.push(disorder);
        }
        // The order of the files differs from the order of the events' times.
        let mut indexes: Vec<usize> = (0..log.len()).collect();
        indexes.sort_by_key(|&i| order[i]);
        indexes.into_iter().map(|i| log[i].clone()).collect()
    })
}

fn configs() -> impl Strategy<Value = Config> {
    let split = prop_oneof![
        Just((SplitKind::LeaveOneOut, 0i64, 0i64)),
        Just((SplitKind::LastN, 1, 0)),
        (0i64..1_500, 1i64..300).prop_map(|(from, for_)| (SplitKind::Temporal, from, for_)),
        Just((SplitKind::None, 0, 0)),
    ];
    let gaps = (0i64..60, 0i64..6, prop_oneof![Just(None), (0i64..100).prop_map(Some)]);
    let shape = (4usize..24, 1usize..5, prop_oneof![Just(0.0), Just(0.3)]);
    (split, gaps, shape, any::<bool>(), any::<bool>()).prop_map(
        |((split, a, b), (session, batch, margin), (max_len, shards, sft_share), shuffled, filter)| {
            let mut config = Config::default();
            let temporal = split == SplitKind::Temporal;
            let date =
                |ms: i64| temporal.then(|| DateTime::from_timestamp_millis(1_577_923_190_000 + ms).unwrap());
            let delta_tau = margin.map_or("off".to_owned(), |ms| format!("{ms}ms"));
            config.sequences = Sequences {
                actions: if filter { vec!["play".into(), "like".into()] } else { vec![] },
                session_gap: Span { ms: session },
                batch_gap: Span { ms: batch },
                delta_tau: delta_tau.try_into().unwrap(),
                max_len,
                ties: if shuffled { Ties::Shuffled } else { Ties::FileOrder },
                tie_seed: 7,
                split,
                last_n: (split == SplitKind::LastN).then_some(a as usize),
                validation_from: date(a),
                test_from: date(a + b),
                guard_share: (split == SplitKind::None).then_some(0.5),
                sft_share,
                shards,
                ..Sequences::default()
            };
            config.validate().unwrap();
            config
        },
    )
}

async fn check(log: Vec<Event>, commits: usize, memory_bytes: usize, config: Config) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    for part in log.chunks(log.len().div_ceil(commits)) {
        append(&root, part).await;
    }
    let histories = oracle(&log, &config.sequences).await;
    let resources = Resources { threads: 2, memory_bytes };
    match build_with(&config, &root, resources).await {
        Ok(report) => {
            compare(&rows(&root).await, &item_ids(&root).await, &histories, &config.sequences, &report);
            compare_counts(&log, &histories, &report);
            compare_intervals(&log, &histories, &report);
        }
        Err(BuildError::NoActions { .. }) => assert!(histories.is_empty()),
        Err(BuildError::Window { user, .. }) => {
            // The held-out events of a period, together with all that follow, must fit into half a row.
            let history = &histories[&user];
            let first = history.iter().position(|e| e.role > 1).unwrap();
            assert!(history.len() - first > config.sequences.max_len / 2);
            assert_eq!(config.sequences.split, SplitKind::Temporal);
        }
        Err(error) => panic!("{error}"),
    }
}

/// How many cases of a property to try: `few`, or what PROPTEST_CASES says.
fn cases(few: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(few)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(64)))]
    #[test]
    fn sequences_are_what_sql_says(
        log in logs(),
        commits in 1usize..4,
        // With little memory, buckets go to the scratch file and are read range by range.
        memory_bytes in prop_oneof![Just(64 << 20), Just(4 << 10)],
        config in configs(),
    ) {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap()
            .block_on(check(log, commits, memory_bytes, config));
    }
}
