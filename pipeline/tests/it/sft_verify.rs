//! `inspect --verify` of instruction examples: a built table keeps every claim, and each change to it breaks one.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::config::{Age, Attribute, Config, Span, SplitKind, Ties};
use schemas::tables::{SFT_SCHEMA, properties};
use store::Root;
use store::commit::{Change, CommitMode, ShardWriter, commit};

use crate::common::append;
use crate::examples::{Example, catalogue, examples, log, write_items};
use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, ListArray, RecordBatch, StringArray, TimestampMillisecondArray,
    UInt8Array, UInt32Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::DataType;
use pipeline::inspect::{Contents, inspect};
use pipeline::verify::{Verification, verify, verify_within};
use pipeline::{sequences, sft};

const TABLE: &str = "sft/genre";

fn config() -> Config {
    let mut config = Config::default();
    config.items.attributes.insert("genre".into(), Attribute::default());
    config
        .conditions
        .derived
        .insert("recent".into(), Age { min_age: None, max_age: Some(Span::minutes(2_880)) });
    config.conditions.min_pool = 8;
    config.conditions.min_matching_history = 1;
    config.conditions.actions = vec!["play".into(), "like".into()];
    config.conditions.min_value = Some(1.0);
    config.sequences.sft_share = 0.3;
    config.sequences.shards = 2;
    config.sequences.max_len = 16;
    config
}

async fn built(config: &Config) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    for part in log(5, 600).chunks(350) {
        append(&root, part).await;
    }
    write_items(&root, &catalogue(5, 600)).await;
    sequences::build(config, &root).await.unwrap();
    sft::build(config, &root, &["genre".to_owned(), "recent".to_owned()]).await.unwrap();
    (directory, root)
}

#[tokio::test]
async fn what_is_built_verifies() {
    for (ties, split, min_pool) in
        [(Ties::FileOrder, SplitKind::LeaveOneOut, 8), (Ties::Shuffled, SplitKind::None, 30)]
    {
        let mut config = config();
        config.sequences.ties = ties;
        config.sequences.split = split;
        config.sequences.guard_share = (split == SplitKind::None).then_some(0.2);
        config.conditions.min_pool = min_pool;
        let (_directory, root) = built(&config).await;
        for table in [TABLE, "sft/recent"] {
            let found = verify_within(&config, &root, Some(table), 150).await.unwrap();
            assert_eq!(found.violation, None, "{ties:?}");
            assert!(found.tables[0].skipped.is_empty() && found.tables[0].checks[0].checked > 0, "{found}");
            assert_eq!(found, verify(&config, &root, Some(table)).await.unwrap());
        }
        // The tables are verified by the settings in their properties, not by others.
        let other = Config::default();
        let found = verify(&other, &root, Some("sft/recent")).await.unwrap();
        assert_eq!(found.doubt(), None, "{found}");
    }
}

#[tokio::test]
async fn inspect_shows_examples() {
    let (_directory, root) = built(&config()).await;
    let report = inspect(&root, None).await.unwrap();
    let names: Vec<&str> = report.tables.iter().map(|table| table.table.as_str()).collect();
    assert_eq!(names, ["events", "items", "sequences", TABLE, "sft/recent"]);
    let Some(Contents::Sft(contents)) = &report.tables[3].contents else { panic!("{report}") };
    assert_eq!(contents.examples.total(), report.tables[3].rows);
    assert!(contents.users > 0 && contents.top.iter().all(|top| top.pool.is_some()));
    let stored = examples(&root, TABLE).await;
    assert_eq!(contents.top.iter().map(|top| top.examples).sum::<u64>(), report.tables[3].rows);
    assert_eq!(stored.values().map(Vec::len).sum::<usize>() as u64, report.tables[3].rows);
    let text = report.to_string();
    assert!(text.contains("visible positions that carry the value") && text.contains("weight 0."), "{text}");
    let html = report.to_html();
    assert!(html.contains("Matching history") && html.contains("Drum &amp; Bass"));
}

type Tamper = fn(&mut Vec<Vec<Example>>);

/// The first example that fits, by shard and row.
fn find(shards: &[Vec<Example>], fits: impl Fn(&Example) -> bool) -> (usize, usize) {
    let of = |(s, rows): (usize, &Vec<Example>)| Some((s, rows.iter().position(&fits)?));
    shards.iter().enumerate().find_map(of).unwrap()
}

fn long(example: &Example) -> bool {
    example.item.len() > 4 && example.visible_len > 2
}

const TAMPERED: [(&str, Option<&str>, Tamper); 20] = [
    ("equal length", Some("matches"), |shards| {
        let (s, e) = find(shards, long);
        shards[s][e].matches.pop();
    }),
    ("refer to an item", Some("target_item"), |shards| shards[0][0].target_item = 0),
    ("ts ascends", Some("target_ts"), |shards| {
        let (s, e) = find(shards, long);
        shards[s][e].target_ts = 0;
    }),
    ("at most the length", Some("visible_len"), |shards| {
        shards[0][0].visible_len = shards[0][0].item.len() as u32 + 1;
    }),
    ("role is 1, 2 or 3", Some("role"), |shards| shards[0][0].role = 0),
    ("sorted by user", Some("user_id"), |shards| shards[0].sort_by(|a, b| b.user.cmp(&a.user))),
    ("in one shard", None, |shards| {
        let example = shards[0][0].clone();
        let at = shards[1].partition_point(|other| other.user < example.user);
        shards[1].insert(at, example);
    }),
    ("the target carries it", Some("condition"), |shards| shards[0][0].condition = "Opera".into()),
    ("matches says", Some("matches"), |shards| {
        let (s, e) = find(shards, long);
        shards[s][e].matches[2] ^= true;
    }),
    ("number of the target's values", Some("weight"), |shards| shards[0][0].weight *= 0.5),
    ("role is that of the target", Some("role"), |shards| {
        let (s, e) = find(shards, |e| e.role == 3);
        shards[s][e].role = 1;
    }),
    ("history is that", Some("item_index"), |shards| {
        // The oldest position is left out of all lists.
        let (s, e) = find(shards, long);
        let e = &mut shards[s][e];
        e.item.remove(0);
        e.ts.remove(0);
        e.session.remove(0);
        e.request.remove(0);
        e.matches.remove(0);
        e.visible_len -= 1;
    }),
    ("history is that", Some("session"), |shards| {
        let (s, e) = find(shards, long);
        shards[s][e].session[1] += 7;
    }),
    ("history is that", Some("request"), |shards| {
        let (s, e) = find(shards, long);
        shards[s][e].request[1] += 7;
    }),
    ("visible_len is that", Some("visible_len"), |shards| {
        let (s, e) = find(shards, long);
        shards[s][e].visible_len -= 1;
    }),
    ("once for each value", Some("target_item"), |shards| {
        let example = shards[0][0].clone();
        shards[0].insert(0, example);
    }),
    ("once for each value", Some("target_item"), |shards| {
        let (s, e) = find(shards, |e| e.role == 1);
        shards[s].remove(e);
    }),
    ("once for each value", None, |shards| {
        let user = shards[0][0].user.clone();
        shards[0].retain(|example| example.user != user);
    }),
    ("an event of the user", None, |shards| {
        let stranger = Example { user: "v".into(), ..shards[0][0].clone() };
        shards[0].push(stranger);
    }),
    ("an event of the user", Some("target_item"), |shards| {
        // The target of another user.
        let (one, other) = (shards[0][0].clone(), shards[0].last().unwrap().clone());
        let stolen = Example { user: one.user, ..other };
        shards[0].insert(0, stolen);
    }),
];

async fn write(root: &Root, shards: &[Vec<Example>]) {
    let snapshot = root.require(TABLE, "").await.unwrap();
    let mut written = Vec::new();
    for (s, rows) in shards.iter().enumerate() {
        let mut writer = ShardWriter::create(root, TABLE, &format!("part-{s:05}"), &SFT_SCHEMA, &[]).unwrap();
        writer.write(&batch(rows)).unwrap();
        written.push(writer.finish().unwrap());
    }
    let change = Change {
        table: TABLE,
        schema: &SFT_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: &written,
        properties: snapshot.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        read_version: Some(snapshot.version()),
        transactions: Default::default(),
    };
    commit(root, change).await.unwrap();
}

fn batch(rows: &[Example]) -> RecordBatch {
    let list = |column: usize, lengths: Vec<usize>, values: ArrayRef| -> ArrayRef {
        let DataType::List(element) = SFT_SCHEMA.field(column).data_type() else { panic!("no list") };
        Arc::new(ListArray::new(Arc::clone(element), OffsetBuffer::from_lengths(lengths), values, None))
    };
    let u32s = |column: usize, of: fn(&Example) -> &Vec<u32>| {
        let values = UInt32Array::from_iter_values(rows.iter().flat_map(of).copied());
        list(column, rows.iter().map(|row| of(row).len()).collect(), Arc::new(values))
    };
    let numbers = |of: fn(&Example) -> u32| Arc::new(UInt32Array::from_iter_values(rows.iter().map(of)));
    let ts = TimestampMillisecondArray::from_iter_values(rows.iter().flat_map(|row| row.ts.clone()));
    let matches = BooleanArray::from_iter(rows.iter().flat_map(|row| row.matches.clone()).map(Some));
    let target_ts = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.target_ts));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.user))),
        u32s(1, |row| &row.item),
        list(2, rows.iter().map(|row| row.ts.len()).collect(), Arc::new(ts.with_timezone("UTC"))),
        u32s(3, |row| &row.session),
        u32s(4, |row| &row.request),
        list(5, rows.iter().map(|row| row.matches.len()).collect(), Arc::new(matches)),
        numbers(|row| row.target_item),
        Arc::new(target_ts.with_timezone("UTC")),
        numbers(|row| row.visible_len),
        Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.role))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.condition))),
        Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.weight))),
    ];
    RecordBatch::try_new(SFT_SCHEMA.clone(), columns).unwrap()
}

fn violated(found: &Verification, claim: &str, column: Option<&str>) {
    let violation = found.violation.as_ref().unwrap_or_else(|| panic!("`{claim}` was to be broken: {found}"));
    assert!(violation.claim.contains(claim), "`{claim}` was to be broken: {violation}");
    assert_eq!((violation.column.as_deref(), violation.table.as_str()), (column, TABLE), "{violation}");
}

#[tokio::test]
async fn what_is_changed_is_found() {
    let config = config();
    let (_directory, root) = built(&config).await;
    let untouched: Vec<Vec<Example>> = examples(&root, TABLE).await.into_values().collect();
    write(&root, &untouched).await;
    assert_eq!(verify(&config, &root, Some(TABLE)).await.unwrap().violation, None);
    for (claim, column, tamper) in TAMPERED {
        let mut shards = untouched.clone();
        tamper(&mut shards);
        write(&root, &shards).await;
        violated(&verify(&config, &root, Some(TABLE)).await.unwrap(), claim, column);
    }
}

#[tokio::test]
async fn an_example_of_a_pre_training_target_is_found() {
    let config = config();
    let (_directory, root) = built(&config).await;
    let mut shards: Vec<Vec<Example>> = examples(&root, TABLE).await.into_values().collect();
    let untouched = shards.clone();
    // An example whose target is the newest event of its own history, which pre-training learns.
    let learned = pretrained(&root).await;
    let (s, e) = find(&shards, |e| {
        let newest = e.item.len().checked_sub(1);
        newest.is_some_and(|k| e.matches[k] && learned.contains(&(e.user.clone(), e.ts[k], e.item[k])))
    });
    let e = &mut shards[s][e];
    (e.target_item, e.target_ts) = (e.item.pop().unwrap(), e.ts.pop().unwrap());
    (_, _, _) = (e.session.pop(), e.request.pop(), e.matches.pop());
    e.visible_len = e.visible_len.min(e.item.len() as u32);
    let values = catalogue(5, 600).into_iter().nth(e.target_item as usize - 1).unwrap().genres.len();
    (e.role, e.weight) = (1, 1.0 / values as f32);
    write(&root, &shards).await;
    let found = verify(&config, &root, Some(TABLE)).await.unwrap();
    violated(&found, "no target of pre-training is an example", Some("target_item"));

    // `sequences`, built without the share, learns targets of the examples.
    write(&root, &untouched).await;
    let mut other = config.clone();
    other.sequences.sft_share = 0.0;
    sequences::build(&other, &root).await.unwrap();
    let found = verify(&config, &root, Some(TABLE)).await.unwrap();
    violated(&found, "pre-training target of `sequences`", Some("target_item"));
    std::fs::remove_dir_all(root.table_path("sequences")).unwrap();
    let found = verify(&config, &root, Some(TABLE)).await.unwrap();
    assert!(found.violation.is_none() && found.to_string().contains("the root has no sequences"), "{found}");
}

/// The targets of role 0 of `sequences`: user, time, item.
async fn pretrained(root: &Root) -> std::collections::HashSet<(String, i64, u32)> {
    let rows = crate::common::rows(root).await.into_values().flatten();
    rows.flat_map(|row| {
        let mine = (row.target_from..row.item.len()).filter(|&k| row.role[k] == 0).collect::<Vec<_>>();
        mine.into_iter().map(move |k| (row.user.clone(), row.ts[k], row.item[k]))
    })
    .collect()
}

#[tokio::test]
async fn a_table_under_another_name_is_found() {
    let config = config();
    let (_directory, root) = built(&config).await;
    let snapshot = root.require("sft/recent", "").await.unwrap();
    let mut properties: BTreeMap<String, String> =
        snapshot.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    properties.insert(properties::CONDITION.into(), "classic".into());
    let change = Change {
        table: TABLE,
        schema: &SFT_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Append,
        shards: &[],
        properties,
        read_version: Some(0),
        transactions: Default::default(),
    };
    commit(&root, change).await.unwrap();
    let found = verify(&config, &root, Some(TABLE)).await.unwrap();
    violated(&found, "the properties say", Some(properties::CONDITION));
}
