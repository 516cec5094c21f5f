//! `instructions`: equal to the definition, and the same in an incremental run as in a full one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use schemas::config::Config;
use schemas::tables::{
    EVENT_DATE, EVENTS, EVENTS_SCHEMA, INSTRUCTIONS, INSTRUCTIONS_SCHEMA, ITEMS, items_schema,
};
use store::Root;
use store::commit::{Change, CommitMode, ShardWriter, commit};

use crate::common::{DAY_MS, Event, append};
use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Float32Builder, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Float32Type, TimestampMillisecondType};
use chrono::DateTime;
use pipeline::engine::Resources;
use pipeline::instructions::{InstructionsError, InstructionsReport, build};
use pipeline::verify::verify_within;
use proptest::prelude::*;

const RESOURCES: Resources = Resources { threads: 2, memory_bytes: 64 << 20 };
const START: i64 = 20_000 * DAY_MS;

/// One item of the catalogue.
#[derive(Debug, Clone)]
struct Item {
    id: String,
    genre: Vec<&'static str>,
    mood: Vec<&'static str>,
    release: Option<i64>,
    active: bool,
}

fn item(id: &str, genre: &[&'static str]) -> Item {
    Item { id: id.into(), genre: genre.to_vec(), mood: Vec::new(), release: None, active: true }
}

/// Replaces the catalogue by these items.
async fn catalogue(root: &Root, items: &[Item]) {
    let schema = items_schema(["genre", "mood"]);
    let lists = |column: usize, of: fn(&Item) -> &Vec<&'static str>| -> ArrayRef {
        let DataType::List(element) = schema.field(column).data_type() else { panic!("not a list") };
        let mut lists = ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(element));
        items.iter().for_each(|item| lists.append_value(of(item).iter().map(Some)));
        Arc::new(lists.finish())
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(items.iter().map(|item| &item.id))),
        Arc::new(UInt32Array::from_iter_values(1..=items.len() as u32)),
        Arc::new(StringArray::from(vec![None::<&str>; items.len()])),
        Arc::new(TimestampMillisecondArray::from_iter(items.iter().map(|i| i.release)).with_timezone("UTC")),
        Arc::new(BooleanArray::from_iter(items.iter().map(|item| Some(item.active)))),
        lists(5, |item| &item.genre),
        lists(6, |item| &item.mood),
    ];
    let mut writer = ShardWriter::create(root, ITEMS, "part", &schema, &[]).unwrap();
    writer.write(&RecordBatch::try_new(schema.clone(), columns).unwrap()).unwrap();
    replace(root, ITEMS, &schema, &[], vec![writer.finish().unwrap()]).await;
}

async fn replace(
    root: &Root,
    table: &str,
    schema: &arrow::datatypes::SchemaRef,
    partition_by: &[&str],
    shards: Vec<store::commit::NewShard>,
) {
    let read_version = root.snapshot(table).await.unwrap().map(|snapshot| snapshot.version());
    let (mode, properties) = (CommitMode::Replace, BTreeMap::new());
    let change = Change {
        table,
        schema,
        partition_by,
        mode,
        shards: &shards,
        properties,
        read_version,
        transactions: Default::default(),
    };
    commit(root, change).await.unwrap();
}

/// Compacts `events`: one new shard for each date.
async fn compact(root: &Root) {
    let snapshot = root.require(EVENTS, "").await.unwrap();
    let columns = EVENTS_SCHEMA.fields().iter().map(|field| field.name().as_str());
    let columns: Vec<&str> = columns.filter(|&name| name != EVENT_DATE).collect();
    let mut dates: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
    for shard in snapshot.shards() {
        let date = shard.partition[EVENT_DATE].clone().unwrap();
        dates.entry(date).or_default().extend(snapshot.read_shard(shard, &columns).await.unwrap());
    }
    let mut shards = Vec::new();
    for (date, batches) in dates {
        let partition = [(EVENT_DATE, date.as_str())];
        let mut writer = ShardWriter::create(root, EVENTS, "part", &EVENTS_SCHEMA, &partition).unwrap();
        batches.iter().for_each(|batch| writer.write(batch).unwrap());
        shards.push(writer.finish().unwrap());
    }
    replace(root, EVENTS, &EVENTS_SCHEMA, &[EVENT_DATE], shards).await;
}

fn event(number: usize, user: &str, item: &str, ts: i64) -> Event {
    Event {
        event_id: format!("e{number}"),
        user: user.into(),
        item: item.into(),
        ts: START + ts,
        request: None,
        request_ts: None,
        action: "play".into(),
        value: None,
        source: "log".into(),
        position: number as i64,
    }
}

/// One row of `instructions`.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    user: String,
    instructions: Vec<(String, String, f32)>,
    as_of: i64,
}

/// The rows in their order.
async fn rows(root: &Root) -> Vec<Row> {
    let snapshot = root.require(INSTRUCTIONS, "pipeline instructions").await.unwrap();
    let columns = ["user_id", "attributes", "conditions", "weights", "as_of"];
    let mut rows = Vec::new();
    for batch in snapshot.read(&columns).await.unwrap() {
        let texts = |column: usize, row| -> Vec<String> {
            let list = batch.column(column).as_list::<i32>().value(row);
            list.as_string::<i32>().iter().map(|text| text.unwrap().to_owned()).collect()
        };
        for row in 0..batch.num_rows() {
            let weights = batch.column(3).as_list::<i32>().value(row);
            let weights = weights.as_primitive::<Float32Type>().values().to_vec();
            let named = texts(1, row).into_iter().zip(texts(2, row)).zip(weights);
            rows.push(Row {
                user: batch.column(0).as_string::<i32>().value(row).to_owned(),
                instructions: named.map(|((a, c), w)| (a, c, w)).collect(),
                as_of: batch.column(4).as_primitive::<TimestampMillisecondType>().value(row),
            });
        }
    }
    rows
}

fn config(overrides: &[&str]) -> Config {
    let mut all = vec!["items.attributes.genre={}", "items.attributes.mood={}", "conditions.min_pool=1"];
    all.extend(overrides);
    Config::from_overrides(&all.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
}

async fn run(root: &Root, config: &Config, at: Option<i64>) -> InstructionsReport {
    let at = at.map(|at| DateTime::from_timestamp_millis(at).unwrap());
    build(config, root, at, RESOURCES).await.unwrap()
}

fn named(row: &Row) -> Vec<(&str, f32)> {
    row.instructions.iter().map(|(_, value, weight)| (value.as_str(), *weight)).collect()
}

type Sums = BTreeMap<(String, String), f64>;

/// The definition, computed over the whole log at once.
fn expected(events: &[Event], items: &[Item], config: &Config, as_of: i64) -> Vec<Row> {
    let mut sorted: Vec<&Event> = events.iter().collect();
    sorted.sort_by_key(|e| {
        (e.source.clone(), e.position, e.ts, e.user.clone(), e.item.clone(), e.action.clone())
    });
    let days = |one: &Event, other: &Event| one.ts.div_euclid(DAY_MS).abs_diff(other.ts.div_euclid(DAY_MS));
    let is_first = |n: usize, event: &Event| {
        let days_max = u64::from(config.events.dedup_days);
        !sorted[..n].iter().any(|o| o.event_id == event.event_id && days(o, event) <= days_max)
    };
    let first = sorted.iter().enumerate().filter(|(n, event)| is_first(*n, event)).map(|(_, event)| *event);
    let from = as_of - config.instructions.window.ms;
    let actions = &config.sequences.actions;
    let of = |item: &Item, ts: i64| -> Vec<(String, String, f64)> {
        let mut carried = Vec::new();
        for (attribute, values) in [("genre", &item.genre), ("mood", &item.mood)] {
            let values: BTreeSet<_> = values.iter().collect();
            let share = 1.0 / values.len() as f64;
            carried.extend(values.iter().map(|value| (attribute.to_owned(), value.to_string(), share)));
        }
        for (name, age) in &config.conditions.derived {
            if age.carried(item.release, ts) {
                carried.push((name.clone(), name.clone(), 1.0));
            }
        }
        carried
    };
    let mut quota = config.instructions.quota.clone();
    if quota.is_empty() {
        quota = ["genre", "mood"].map(|name| (name.to_owned(), config.instructions.per_user)).into();
    }
    let mut pools: HashMap<(String, String), usize> = HashMap::new();
    for item in items.iter().filter(|item| item.active) {
        of(item, as_of).into_iter().for_each(|(a, c, _)| *pools.entry((a, c)).or_default() += 1);
    }
    let mut users: BTreeMap<&str, (f64, Sums)> = BTreeMap::new();
    for event in first {
        if event.ts <= from || event.ts > as_of || !(actions.is_empty() || actions.contains(&event.action)) {
            continue;
        }
        let (events, sums) = users.entry(&event.user).or_default();
        *events += 1.0;
        if let Some(item) = items.iter().find(|item| item.id == event.item) {
            for (attribute, value, share) in of(item, event.ts) {
                *sums.entry((attribute, value)).or_default() += share;
            }
        }
    }
    let row = |(user, (events, sums)): (&str, (f64, Sums))| {
        let mut ranked: Vec<_> =
            sums.into_iter().map(|((a, c), sum)| (a, c, (sum / events) as f32)).collect();
        ranked.retain(|(a, c, _)| {
            pools.get(&(a.clone(), c.clone())).copied().unwrap_or(0) >= config.conditions.min_pool
        });
        // By attribute and value already; this sort is stable.
        ranked.sort_by(|a, b| b.2.total_cmp(&a.2));
        let mut kept: Vec<(String, String, f32)> = Vec::new();
        for one in ranked {
            let same = kept.iter().filter(|(a, ..)| *a == one.0).count();
            if same < quota.get(&one.0).copied().unwrap_or(0) {
                kept.push(one);
            }
        }
        kept.truncate(config.instructions.per_user);
        Row { user: user.into(), instructions: kept, as_of }
    };
    users.into_iter().map(row).collect()
}

#[tokio::test]
async fn a_small_log_counted_by_hand() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    let rock = Item { mood: vec!["loud"], ..item("rock", &["Rock"]) };
    let both = item("both", &["Rock", "Pop"]);
    let new = Item { release: Some(START), ..item("new", &["Jazz"]) };
    let gone = Item { active: false, ..item("gone", &["Polka"]) };
    catalogue(&root, &[rock, both, new, gone]).await;
    let mut log = vec![
        event(0, "anna", "rock", 1_000),
        event(1, "anna", "both", 2_000),
        event(2, "anna", "new", 3_000),
        event(3, "anna", "nobody", 4_000),
        event(4, "bert", "gone", 5_000),
        event(5, "carl", "rock", -5_000),
        event(6, "anna", "rock", 6_000),
        // The window is open where it begins.
        event(7, "dora", "rock", 0),
        event(8, "emil", "new", 10_000),
    ];
    log[6].action = "skip".into();
    append(&root, &log).await;
    let overrides =
        ["instructions.window=10s", "sequences.actions=[\"play\"]", "conditions.derived.fresh.max_age=3s"];
    let mut config = config(&overrides);
    config.instructions.quota = [("genre".into(), 2), ("mood".into(), 1), ("fresh".into(), 1)].into();
    let report = run(&root, &config, None).await;
    let rows = rows(&root).await;
    let users: Vec<&str> = rows.iter().map(|row| row.user.as_str()).collect();
    assert_eq!(users, ["anna", "bert", "emil"]);
    assert!(rows.iter().all(|row| row.as_of == START + 10_000));
    // Rock 1 + 1/2, Pop 1/2, Jazz 1, loud 1, of four events: nothing is fresh three seconds after its release,
    // and nothing of the catalogue is now.
    assert_eq!(named(&rows[0]), [("Rock", 0.375), ("Jazz", 0.25), ("loud", 0.25)]);
    // A condition that is not retrievable is no instruction.
    assert_eq!(named(&rows[1]), []);
    assert_eq!(named(&rows[2]), [("Jazz", 1.0)]);
    assert_eq!((report.users, report.users_outside, report.users_without), (3, 2, Some(1)));
    assert_eq!(report.by_attribute.unwrap(), [("genre".into(), 3), ("mood".into(), 1)].into());

    // Two seconds after the release it is: at that time, and in a pool of one.
    let at = Some(START + 2_500);
    append(&root, &[event(9, "emil", "new", 2_400)]).await;
    run(&root, &config, at).await;
    let at_release = self::rows(&root).await;
    let emil = at_release.iter().find(|row| row.user == "emil").unwrap();
    assert_eq!(named(emil), [("fresh", 1.0), ("Jazz", 1.0)]);
    let carl = at_release.iter().find(|row| row.user == "carl").unwrap();
    assert_eq!(named(carl), [("Rock", 1.0), ("loud", 1.0)]);

    config.conditions.min_pool = 2;
    run(&root, &config, None).await;
    assert_eq!(named(&self::rows(&root).await[0]), [("Rock", 0.375)]);
}

#[tokio::test]
async fn only_what_changed_is_computed_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    catalogue(&root, &[item("rock", &["Rock"]), item("pop", &["Pop"])]).await;
    let config = config(&["instructions.window=2d"]);
    let day = |day: i64| day * DAY_MS + 1;
    append(
        &root,
        &[event(0, "a", "rock", day(0)), event(1, "b", "pop", day(1)), event(2, "c", "pop", day(2))],
    )
    .await;
    let first = run(&root, &config, Some(START + day(2) - 2)).await;
    assert_eq!((first.users, first.users_recomputed, first.users_outside), (2, 2, 1));
    assert!(first.full.is_some());
    let again = run(&root, &config, Some(START + day(2) - 2)).await;
    assert!(again.unchanged && again.version == first.version && again.users == 2);

    // The window moves by a day and a half: a leaves it, c enters it.
    let moved = run(&root, &config, Some(START + day(3) + DAY_MS / 2)).await;
    assert!(moved.full.is_none() && !moved.unchanged);
    assert_eq!((moved.users, moved.users_recomputed, moved.users_kept, moved.users_outside), (1, 1, 0, 2));

    // A late event outside the window changes no row, one inside those of its user.
    let at = moved.as_of.timestamp_millis();
    append(&root, &[event(3, "a", "rock", day(-5))]).await;
    let late = run(&root, &config, Some(at)).await;
    assert_eq!((late.unchanged, late.users_recomputed, late.users_kept), (false, 0, 1));
    append(&root, &[event(4, "d", "rock", day(3))]).await;
    let inside = run(&root, &config, Some(at)).await;
    assert_eq!((inside.users, inside.users_recomputed, inside.users_kept), (2, 1, 1));

    // New items that carry nothing change no row; another value does.
    catalogue(&root, &[item("rock", &["Rock"]), item("pop", &["Pop"]), item("new", &[])]).await;
    let unmoved = run(&root, &config, Some(at)).await;
    assert_eq!((unmoved.unchanged, unmoved.full, unmoved.users_recomputed), (false, None, 0));
    catalogue(&root, &[item("rock", &["Rock"]), item("pop", &["Disco"])]).await;
    assert!(run(&root, &config, Some(at)).await.full.unwrap().contains("catalogue"));
    compact(&root).await;
    assert!(run(&root, &config, Some(at)).await.full.unwrap().contains("lost shards"));
    assert_eq!(rows(&root).await.len(), 2);
}

#[tokio::test]
async fn what_cannot_be_computed_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    let fail =
        |error: InstructionsError, needle: &str| assert!(error.to_string().contains(needle), "{error}");
    fail(build(&config(&[]), &root, None, RESOURCES).await.unwrap_err(), "no table `events`");
    append(&root, &[]).await;
    fail(build(&config(&[]), &root, None, RESOURCES).await.unwrap_err(), "no table `items`");
    catalogue(&root, &[item("rock", &["Rock"])]).await;
    fail(build(&config(&[]), &root, None, RESOURCES).await.unwrap_err(), "table `events` is empty");
    append(&root, &[event(0, "a", "rock", 0)]).await;
    let error = build(&config(&["items.attributes.language={}"]), &root, None, RESOURCES).await.unwrap_err();
    fail(error, "no column for the attribute `language` (it has genre, mood)");
    let error = build(&Config::default(), &root, None, RESOURCES).await.unwrap_err();
    assert!(matches!(error, InstructionsError::Config(_)), "{error}");
    assert!(root.snapshot(INSTRUCTIONS).await.unwrap().is_none());
}

/// Replaces the rows, and keeps the properties.
async fn rewrite(root: &Root, rows: &[Row]) {
    let snapshot = root.require(INSTRUCTIONS, "").await.unwrap();
    let texts = |of: fn(&(String, String, f32)) -> &String| -> ArrayRef {
        let DataType::List(element) = INSTRUCTIONS_SCHEMA.field(1).data_type() else { panic!("not a list") };
        let mut lists = ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(element));
        rows.iter().for_each(|row| lists.append_value(row.instructions.iter().map(of).map(Some)));
        Arc::new(lists.finish())
    };
    let DataType::List(element) = INSTRUCTIONS_SCHEMA.field(3).data_type() else { panic!("not a list") };
    let mut weights = ListBuilder::new(Float32Builder::new()).with_field(Arc::clone(element));
    rows.iter().for_each(|row| weights.append_value(row.instructions.iter().map(|(_, _, w)| Some(*w))));
    let as_of = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.as_of));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.user))),
        texts(|(attribute, ..)| attribute),
        texts(|(_, value, _)| value),
        Arc::new(weights.finish()),
        Arc::new(as_of.with_timezone("UTC")),
    ];
    let mut writer =
        ShardWriter::create(root, INSTRUCTIONS, "part-00000", &INSTRUCTIONS_SCHEMA, &[]).unwrap();
    writer.write(&RecordBatch::try_new(INSTRUCTIONS_SCHEMA.clone(), columns).unwrap()).unwrap();
    let change = Change {
        table: INSTRUCTIONS,
        schema: &INSTRUCTIONS_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: &[writer.finish().unwrap()],
        properties: snapshot.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        read_version: Some(snapshot.version()),
        transactions: Default::default(),
    };
    commit(root, change).await.unwrap();
}

type Tamper = fn(&mut Vec<Row>);

#[tokio::test]
async fn what_was_tampered_with_does_not_verify() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    catalogue(&root, &[item("rock", &["Rock"]), item("pop", &["Pop"])]).await;
    let log = [
        event(0, "a", "rock", 1),
        event(1, "a", "rock", 2),
        event(2, "a", "pop", 3),
        event(3, "b", "pop", 4),
    ];
    append(&root, &log).await;
    let config = config(&[]);
    run(&root, &config, None).await;
    let good = rows(&root).await;
    let cases: [(&str, Tamper); 7] = [
        ("those of the events", |rows| rows[0].instructions[1].2 = 0.25),
        ("those of the events", |rows| _ = rows[0].instructions.pop()),
        ("those of the events", |rows| _ = rows.pop()),
        ("descend", |rows| rows[0].instructions.reverse()),
        ("values of the catalogue", |rows| rows[1].instructions[0].1 = "Polka".into()),
        ("each user once", |rows| rows.swap(0, 1)),
        ("as_of", |rows| rows[1].as_of += 1),
    ];
    for (claim, tamper) in cases {
        let mut rows = good.clone();
        tamper(&mut rows);
        rewrite(&root, &rows).await;
        let found = verify_within(&config, &root, Some(INSTRUCTIONS), 2).await.unwrap();
        let violation = found.violation.clone().unwrap_or_else(|| panic!("{claim}: {found}"));
        assert!(violation.claim.contains(claim), "{claim}: {violation}");
    }
    rewrite(&root, &good).await;
    assert_eq!(verify_within(&config, &root, None, 2).await.unwrap().violation, None);
    let shown = pipeline::inspect::inspect(&root, Some(INSTRUCTIONS)).await.unwrap();
    let text = shown.to_string();
    assert!(
        text.contains("users 2") && text.contains("genre=Pop") && text.contains("instructions a user"),
        "{text}"
    );
    assert!(shown.to_html().contains("Instructions a user"));
    // The table is verified by the settings in its properties, not by others.
    let other = self::config(&["instructions.per_user=1"]);
    let found = verify_within(&other, &root, Some(INSTRUCTIONS), 2).await.unwrap();
    assert_eq!(found.doubt(), None, "{found}");
}

/// A change to a root between two runs.
#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Event>),
    Items(Vec<Item>),
    Compact,
    Nothing,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    // Few ids, so that some occur several times, also for another user or in another commit.
    let one = (0usize..60, 0usize..8, 0usize..7, 0i64..6 * 24, 0usize..3, 0usize..4);
    prop::collection::vec(one, 0..25).prop_map(|events| {
        let event =
            |(id, user, thing, hour, source, action): (usize, usize, usize, i64, usize, usize)| Event {
                source: format!("log{source}"),
                action: ["play", "play", "play", "skip"][action].into(),
                ..event(id, &format!("u{user}"), &format!("i{thing}"), hour * 3_600_000)
            };
        events.into_iter().map(event).collect()
    })
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let genres = prop::sample::subsequence(vec!["Jazz", "Pop", "Rock"], 0..=3);
    let moods = prop::sample::subsequence(vec!["calm", "loud"], 0..=2);
    let one = (genres, moods, prop::option::of(-3i64..6), prop::bool::weighted(0.8));
    prop::collection::vec(one, 6).prop_map(|items| {
        let item = |(i, (genre, mood, release, active)): (usize, (_, _, Option<i64>, bool))| Item {
            id: format!("i{i}"),
            genre,
            mood,
            release: release.map(|day| START + day * DAY_MS),
            active,
        };
        items.into_iter().enumerate().map(item).collect()
    })
}

fn steps() -> impl Strategy<Value = Vec<(Step, Option<i64>)>> {
    let step = prop_oneof![
        6 => events().prop_map(Step::Append),
        1 => items().prop_map(Step::Items),
        1 => Just(Step::Compact),
        2 => Just(Step::Nothing),
    ];
    prop::collection::vec((step, prop::option::weighted(0.6, 0i64..7 * 24)), 1..6)
}

async fn check(first: Vec<Event>, items: Vec<Item>, steps: Vec<(Step, Option<i64>)>, config: Config) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    let (mut log, mut present) = (first.clone(), items.clone());
    log.push(event(99, "u0", "i0", 3_600_000));
    catalogue(&root, &items).await;
    append(&root, &log).await;
    for (step, at) in [(Step::Nothing, None)].into_iter().chain(steps) {
        match step {
            Step::Append(events) => {
                append(&root, &events).await;
                log.extend(events);
            }
            Step::Items(items) => {
                catalogue(&root, &items).await;
                present = items;
            }
            Step::Compact => compact(&root).await,
            Step::Nothing => {}
        }
        let at = at.map(|hour| START + hour * 3_600_000);
        let report = run(&root, &config, at).await;
        let incremental = rows(&root).await;
        let as_of = at.unwrap_or_else(|| log.iter().map(|event| event.ts).max().unwrap());
        assert_eq!(report.as_of.timestamp_millis(), as_of);
        assert_eq!(incremental, expected(&log, &present, &config, as_of), "against the definition");
        assert_eq!(report.users, incremental.len() as u64);
        let again = run(&root, &config, at).await;
        assert!(again.unchanged && again.version == report.version);
        let verification = verify_within(&config, &root, Some(INSTRUCTIONS), 30).await.unwrap();
        assert_eq!(verification.violation, None);
        assert!(verification.tables.iter().all(|proof| proof.skipped.is_empty()), "{verification}");

        let (table, aside) = (root.table_path(INSTRUCTIONS), directory.path().join("aside"));
        std::fs::rename(&table, &aside).unwrap();
        run(&root, &config, at).await;
        assert_eq!(incremental, rows(&root).await, "against a full computation");
        std::fs::remove_dir_all(&table).unwrap();
        std::fs::rename(&aside, &table).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn an_incremental_run_gives_what_a_full_one_does(
        first in events(),
        items in items(),
        steps in steps(),
        filtered in any::<bool>(),
        min_pool in 0usize..3,
        days in 0u32..4,
    ) {
        let mut config = config(&["instructions.window=2d", "instructions.per_user=4"]);
        config.instructions.quota =
            [("genre".into(), 2), ("mood".into(), 1), ("new-release".into(), 1)].into();
        config.conditions.derived.get_mut("new-release").unwrap().max_age =
            Some(schemas::config::Span::minutes(3 * 24 * 60));
        config.conditions.min_pool = min_pool;
        if filtered {
            config.sequences.actions = vec!["play".into()];
        }
        config.events.dedup_days = days;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(check(first, items, steps, config));
    }
}
