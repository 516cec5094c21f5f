//! `build-sft` as a whole: SQL as its oracle, reproducibility of its examples, refusals, and leftovers.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::config::{Age, Attribute, Config, Span, SplitKind, Ties};
use schemas::tables::{SFT_SCHEMA, properties, sft_table};
use store::Root;

use crate::common::{Event, append, batch, item_ids, rows};
use crate::examples::{Item, catalogue, examples, log, write_items};
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, UInt8Array, UInt32Array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::prelude::SessionContext;
use pipeline::engine::Resources;
use pipeline::sequences::build_with;
use pipeline::sft::{self, SftError};
use proptest::prelude::*;

const RESOURCES: Resources = Resources { threads: 2, memory_bytes: 64 << 20 };

fn fresh() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    (directory, root)
}

fn config() -> Config {
    let mut config = Config::default();
    config.items.attributes.insert("genre".into(), Attribute::default());
    config
        .conditions
        .derived
        .insert("recent".into(), Age { min_age: None, max_age: Some(Span::minutes(2_880)) });
    config.conditions.min_pool = 1;
    config.sequences.sft_share = 0.3;
    config.sequences.shards = 3;
    config.sequences.max_len = 12;
    config
}

/// The result of SQL: user, value, target, role, visible, weight's denominator, matches, and the history's positions.
type Line = (String, String, String, i64, u8, u32, u32, Vec<bool>);

/// A position of a row of `sequences`: user, row, position, item, time, visible length, role, whether the row owns it.
type Place = (String, i64, i64, String, i64, u32, u8, bool);

async fn oracle(root: &Root, log: &[Event], items: &[Item], config: &Config, condition: &str) -> Vec<Line> {
    let ids = item_ids(root).await;
    let context = SessionContext::new();
    let mut places: Vec<Place> = Vec::new();
    for (number, row) in (0..).zip(rows(root).await.values().flatten()) {
        for k in 0..row.item.len() {
            let (item, owned) = (ids[&row.item[k]].clone(), k >= row.target_from);
            let place =
                (row.user.clone(), number, k as i64, item, row.ts[k], row.visible[k], row.role[k], owned);
            places.push(place);
        }
    }
    let positions = RecordBatch::try_from_iter([
        ("user_id", Arc::new(StringArray::from_iter_values(places.iter().map(|p| &p.0))) as ArrayRef),
        ("line", Arc::new(Int64Array::from_iter_values(places.iter().map(|p| p.1)))),
        ("k", Arc::new(Int64Array::from_iter_values(places.iter().map(|p| p.2)))),
        ("item", Arc::new(StringArray::from_iter_values(places.iter().map(|p| &p.3)))),
        ("ts", Arc::new(Int64Array::from_iter_values(places.iter().map(|p| p.4)))),
        ("visible", Arc::new(UInt32Array::from_iter_values(places.iter().map(|p| p.5)))),
        ("role", Arc::new(UInt8Array::from_iter_values(places.iter().map(|p| p.6)))),
        ("owned", Arc::new(BooleanArray::from_iter(places.iter().map(|p| Some(p.7))))),
    ]);
    context.register_batch("positions", positions.unwrap()).unwrap();
    let values: Vec<(&Item, &str)> =
        items.iter().flat_map(|item| item.genres.iter().map(move |genre| (item, *genre))).collect();
    let lines = RecordBatch::try_from_iter([
        ("item", Arc::new(StringArray::from_iter_values(values.iter().map(|(i, _)| &i.id))) as ArrayRef),
        ("value", Arc::new(StringArray::from_iter_values(values.iter().map(|(_, value)| value)))),
        ("active", Arc::new(BooleanArray::from_iter(values.iter().map(|(i, _)| Some(i.active))))),
    ]);
    context.register_batch("catalogue", lines.unwrap()).unwrap();
    let released = RecordBatch::try_from_iter_with_nullable([
        ("item", Arc::new(StringArray::from_iter_values(items.iter().map(|i| &i.id))) as ArrayRef, false),
        ("release_ts", Arc::new(Int64Array::from_iter(items.iter().map(|i| i.release_ts))), true),
        ("active", Arc::new(BooleanArray::from_iter(items.iter().map(|i| Some(i.active)))), false),
    ]);
    context.register_batch("released", released.unwrap()).unwrap();
    let events = batch(log);
    let ts = Arc::new(Int64Array::from_iter_values(log.iter().map(|e| e.ts))) as ArrayRef;
    let schema = events.schema();
    let columns = schema.fields().iter().zip(events.columns()).map(|(field, column)| {
        let column = if field.name() == "ts" { Arc::clone(&ts) } else { Arc::clone(column) };
        (field.name().clone(), column, true)
    });
    context.register_batch("log", RecordBatch::try_from_iter_with_nullable(columns).unwrap()).unwrap();

    let one_of = |column: &str, actions: &[String]| match actions {
        [] => "true".to_owned(),
        some => format!("{column} IN ('{}')", some.join("', '")),
    };
    let limits = &config.conditions;
    let min_value =
        limits.min_value.map_or("true".into(), |min| format!("coalesce(c.value >= {min:?}, false)"));
    let (carried, pools) = match limits.derived.get(condition) {
        None => (
            "SELECT DISTINCT p.item, p.ts, c.value FROM positions p JOIN catalogue c ON p.item = c.item"
                .to_owned(),
            "SELECT value, count(DISTINCT item) AS pool FROM catalogue WHERE active GROUP BY value"
                .to_owned(),
        ),
        Some(age) => {
            let max = age.max_age.unwrap().ms;
            (
                format!(
                    "SELECT DISTINCT p.item, p.ts, '{condition}' AS value FROM positions p \
                     JOIN released r ON p.item = r.item WHERE p.ts - r.release_ts < {max}"
                ),
                format!(
                    "SELECT '{condition}' AS value, count(*) AS pool FROM released \
                     WHERE active AND (SELECT max(ts) FROM log) - release_ts < {max}"
                ),
            )
        }
    };
    let sql = include_str!("sft.sql")
        .replace("{fit}", &format!("{} AND {min_value}", one_of("c.action", &limits.actions)))
        .replace("{wanted}", &one_of("c.action", &config.sequences.actions))
        .replace("{carried}", &carried)
        .replace("{pools}", &pools)
        .replace("{min_pool}", &limits.min_pool.to_string())
        .replace("{min_history}", &limits.min_matching_history.to_string());
    let mut found = Vec::new();
    for batch in context.sql(&sql).await.unwrap().collect().await.unwrap() {
        let text = |column: usize| cast(batch.column(column), &DataType::Utf8).unwrap();
        let number = |column: usize| cast(batch.column(column), &DataType::Int64).unwrap();
        let (user, value, item) = (text(0), text(3), text(7));
        let [values, role, visible, ts] = [4, 5, 6, 8].map(number);
        for row in 0..batch.num_rows() {
            let of = |column: &ArrayRef| column.as_string::<i32>().value(row).to_owned();
            let n = |column: &ArrayRef| column.as_primitive::<Int64Type>().value(row);
            let lists = batch.column(9).as_list::<i32>();
            let matches: Vec<bool> = match lists.is_valid(row) {
                true => lists.value(row).as_boolean().iter().flatten().collect(),
                false => Vec::new(),
            };
            found.push((
                of(&user),
                of(&value),
                of(&item),
                n(&ts),
                n(&role) as u8,
                n(&visible) as u32,
                n(&values) as u32,
                matches,
            ));
        }
    }
    found.sort();
    found
}

/// Builds both tables and compares the examples with the oracle, and their histories with the rows of `sequences`.
async fn check(log: &[Event], items: &[Item], config: &Config, condition: &str) {
    let (_directory, root) = fresh();
    for part in log.chunks(log.len().div_ceil(2)) {
        append(&root, part).await;
    }
    write_items(&root, items).await;
    build_with(config, &root, RESOURCES).await.unwrap();
    let lines = oracle(&root, log, items, config, condition).await;
    let report = match sft::build_with(config, &root, &[condition.to_owned()], RESOURCES).await {
        Ok(report) => report,
        // Such a log has nothing to learn from.
        Err(SftError::NoTargets { .. } | SftError::Pools { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let ids = item_ids(&root).await;
    let sequences = rows(&root).await;
    let mut found = Vec::new();
    for (shard, examples) in examples(&root, &sft_table(condition)).await {
        assert!(examples.is_sorted_by_key(|e| (&e.user, e.target_ts)), "{shard}");
        for e in examples {
            let of_user = sequences[&shard].iter().filter(|row| row.user == e.user);
            // In these logs, the item identifies the event.
            let mut owner = of_user
                .filter(|row| row.item[row.target_from..].contains(&e.target_item))
                .collect::<Vec<_>>();
            let owner = owner.pop().unwrap();
            let k = owner.item.iter().rposition(|&item| item == e.target_item).unwrap();
            assert_eq!(e.item, owner.item[..k]);
            assert_eq!((&e.ts[..], &e.session[..]), (&owner.ts[..k], &owner.session[..k]));
            assert_eq!(e.request, owner.request[..k]);
            let values = (1.0 / e.weight).round() as u32;
            assert_eq!(e.weight, 1.0 / values as f32);
            found.push((
                e.user,
                e.condition,
                ids[&e.target_item].clone(),
                e.target_ts,
                e.role,
                e.visible_len,
                values,
                e.matches,
            ));
        }
    }
    found.sort();
    for (found, expected) in found.iter().zip(&lines) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), lines.len());
    let counts = report.tables[0].counts.as_ref().unwrap();
    let of = |role: u8| lines.iter().filter(|line| line.4 == role).count() as u64;
    assert_eq!([counts.examples.sft, counts.examples.validation, counts.examples.test], [1, 2, 3].map(of));
    let mean: Vec<f64> =
        lines.iter().filter(|line| line.5 > 0).map(|line| seen(line) as f64 / f64::from(line.5)).collect();
    if !mean.is_empty() {
        let mean = mean.iter().sum::<f64>() / mean.len() as f64;
        assert!((counts.match_rate.mean - mean).abs() < 1e-6);
    }
    let without = lines.iter().filter(|line| seen(line) == 0).count() as f64;
    assert!((counts.match_rate.without - without / lines.len().max(1) as f64).abs() < 1e-9);
}

fn seen(line: &Line) -> usize {
    line.7[..line.5 as usize].iter().filter(|matches| **matches).count()
}

fn configs() -> impl Strategy<Value = Config> {
    let limits = (any::<bool>(), prop::option::of(0u8..5), 0usize..3, 0usize..20);
    let shape = (4usize..24, any::<bool>(), any::<bool>(), any::<bool>());
    (limits, shape).prop_map(
        |((likes, min_value, min_history, min_pool), (max_len, shuffled, none, filter))| {
            let mut config = config();
            config.conditions.actions = if likes { vec!["like".into()] } else { vec![] };
            config.conditions.min_value = min_value.map(f64::from);
            config.conditions.min_matching_history = min_history;
            config.conditions.min_pool = min_pool;
            config.sequences.max_len = max_len;
            config.sequences.ties = if shuffled { Ties::Shuffled } else { Ties::FileOrder };
            if none {
                config.sequences.split = SplitKind::None;
                config.sequences.guard_share = Some(0.3);
            }
            if filter {
                config.sequences.actions = vec!["play".into(), "like".into()];
            }
            config.validate().unwrap();
            config
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn examples_are_what_sql_says(seed in any::<u64>(), n in 20u64..200, config in configs(), derived in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let condition = if derived { "recent" } else { "genre" };
        runtime.block_on(check(&log(seed, n), &catalogue(seed, n), &config, condition));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_threads_nor_memory_change_an_example() {
    let (_directory, root) = fresh();
    let log = log(3, 20_000);
    append(&root, &log).await;
    write_items(&root, &catalogue(3, 20_000)).await;
    let config = config();
    let conditions = ["genre".to_owned(), "recent".to_owned()];
    let mut builds = Vec::new();
    for (threads, memory_bytes) in [(1, 1 << 30), (2, 1 << 30), (3, 1 << 20)] {
        let _ = std::fs::remove_dir_all(root.table_path("sft"));
        let report =
            sft::build_with(&config, &root, &conditions, Resources { threads, memory_bytes }).await.unwrap();
        let mut tables = Vec::new();
        for condition in &conditions {
            tables.push(examples(&root, &sft_table(condition)).await);
        }
        builds.push((tables, report.tables.into_iter().map(|table| table.counts).collect::<Vec<_>>()));
    }
    assert!(builds[0].0.iter().all(|table| table.values().any(|shard| shard.len() > 10)));
    assert!(builds[0] == builds[1] && builds[1] == builds[2]);
}

#[tokio::test]
async fn a_second_build_writes_nothing_and_only_its_own_settings_count() {
    let (_directory, root) = fresh();
    append(&root, &log(1, 300)).await;
    write_items(&root, &catalogue(1, 200)).await;
    let mut config = config();
    let both = ["genre".to_owned(), "recent".to_owned()];
    let first = sft::build(&config, &root, &both).await.unwrap();
    assert!(first.tables.iter().all(|table| !table.unchanged && table.counts.is_some()));
    assert_eq!(first.tables[0].new_items, Some(129));
    let text = first.to_string();
    assert!(text.contains("sft/genre  version 0") && text.contains("examples that see no match"), "{text}");
    let again = sft::build(&config, &root, &both).await.unwrap();
    assert!(again.tables.iter().all(|table| table.unchanged && table.version == 0), "{again}");

    // Another age is another `recent`, and the same genre.
    config.conditions.derived.get_mut("recent").unwrap().max_age = Some(Span::minutes(2_000));
    let other = sft::build(&config, &root, &both).await.unwrap();
    let states: BTreeMap<&str, (bool, u64)> =
        other.tables.iter().map(|t| (t.condition.as_str(), (t.unchanged, t.version))).collect();
    assert_eq!(states, BTreeMap::from([("genre", (true, 0)), ("recent", (false, 1))]));
    config.conditions.min_matching_history = 1;
    assert!(sft::build(&config, &root, &both).await.unwrap().tables.iter().all(|table| !table.unchanged));

    let stored = root.require("sft/recent", "").await.unwrap();
    let stored = |key: &str| stored.properties().get(key).cloned().unwrap_or_default();
    assert_eq!(stored(properties::CONDITION), "recent");
    assert_eq!(stored(properties::CONFIG_HASH), config.sequences.hash());
    assert_eq!(stored(properties::EVENTS_VERSION), "0");
    assert!(!stored(sft::CONDITIONS_HASH).is_empty() && stored(sft::POOL).parse::<u64>().is_ok());
    let snapshot = root.require("sft/genre", "").await.unwrap();
    let columns = snapshot.delta().snapshot().unwrap().snapshot().arrow_schema();
    let names = |schema: &arrow::datatypes::Schema| -> Vec<String> {
        schema.fields().iter().map(|field| field.name().clone()).collect()
    };
    assert_eq!(names(&columns), names(&SFT_SCHEMA));
}

#[tokio::test]
async fn what_cannot_be_built_is_named_and_leaves_nothing() {
    let (_directory, root) = fresh();
    let mut config = config();
    let genre = ["genre".to_owned()];
    let refused = async |config: &Config, conditions: &[String]| {
        let error = sft::build(config, &root, conditions).await.unwrap_err();
        assert!(!root.table_path("sft").join("genre/_delta_log").exists());
        error
    };
    let error = refused(&config, &genre).await;
    assert!(error.to_string().contains("pipeline ingest"), "{error}");
    append(&root, &log(1, 300)).await;
    write_items(&root, &catalogue(1, 300)).await;

    let error = refused(&config, &["gener".to_owned()]).await;
    assert!(
        matches!(error, SftError::Config(_)) && error.to_string().contains("did you mean genre"),
        "{error}"
    );
    config.sequences.sft_share = 0.0;
    let error = refused(&config, &genre).await;
    assert!(matches!(error, SftError::Config(_)), "{error}");
    assert!(error.to_string().starts_with("sequences.sft_share"), "{error}");
    config.sequences.sft_share = 1e-12;
    let error = refused(&config, &genre).await;
    assert!(matches!(error, SftError::NoTargets { .. }), "{error}");
    assert!(error.to_string().contains("sequences.sft_share"), "{error}");

    config.sequences.sft_share = 0.3;
    config.conditions.min_pool = 10_000;
    let error = refused(&config, &["recent".to_owned(), "genre".to_owned()]).await;
    assert!(matches!(error, SftError::Pools { .. }) && error.to_string().contains("recent "), "{error}");
    let error = refused(&config, &genre).await.to_string();
    assert!(error.contains("conditions.min_pool = 10000") && error.contains("Rock "), "{error}");
    config.items.attributes.insert("mood".into(), Attribute::default());
    let error = refused(&config, &["mood".to_owned()]).await;
    assert!(matches!(error, SftError::Attribute { .. }) && error.to_string().contains("`mood`"), "{error}");
    let left: Vec<_> = std::fs::read_dir(root.table_path("sft/genre")).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
