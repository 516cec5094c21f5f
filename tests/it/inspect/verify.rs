//! Each claim: tables that keep it, and a table that breaks it.

use std::sync::Arc;

use arrow::array::{BinaryArray, Int64Array, StringArray, TimestampMillisecondArray, UInt32Array};
use arrow::datatypes::{Int64Type, TimestampMillisecondType, UInt32Type};
use pipeline::verify::{verify, verify_within};
use schemas::config::Config;
use schemas::hash::mix64;
use schemas::tables::{
    DEAD_LETTERS, DEAD_LETTERS_SCHEMA, EVENTS, EVENTS_SCHEMA, ITEMS, SEQUENCES, items_schema, properties,
};
use serde_json::Value;
use store::Root;

use super::tables::{Properties, Row, Stored, rows, stored, write_rows};
use crate::programs::{EVENTS_A_USER, USERS, Workspace, json, stderr};

const DAY_MS: i64 = 86_400_000;

/// Returns a workspace with all tables and some rejected records.
fn built() -> (Workspace, Root) {
    let workspace = Workspace::new();
    let mut log = std::fs::read(workspace.path("log.csv")).unwrap();
    log.extend_from_slice(b"u1,,1600000000\nu1,i1,yesterday\n");
    workspace.write("log.csv", &log);
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    let root = Root::new(workspace.root().to_str().unwrap()).unwrap();
    (workspace, root)
}

/// Verifies, and asserts a violation of this claim and column in the JSON and on stderr.
fn violation(workspace: &Workspace, table: &str, claim: &str, column: Option<&str>) -> Value {
    let output = workspace.command("pipeline", &["inspect", "--verify", table, "--json"]).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{claim}: {text}");
    let violation = json(&output)["violation"].clone();
    let found = violation["claim"].as_str().unwrap();
    assert!(found.contains(claim), "`{claim}` was to be broken: {violation}");
    assert_eq!(violation["column"].as_str(), column, "{violation}");
    assert_eq!(violation["table"], table);
    for key in ["claim", "table", "found", "expected", "shard", "user"] {
        assert!(violation[key].as_str().is_none_or(|value| text.contains(value)), "{key}: {text}");
    }
    violation
}

#[test]
fn untouched_tables_keep_every_claim() {
    let (workspace, _) = built();
    let output = workspace.succeed("pipeline", &["inspect", "--verify", "--json"]);
    let report = json(&output);
    assert_eq!(report["violation"], Value::Null, "{report}");
    let tables: Vec<&str> =
        report["tables"].as_array().unwrap().iter().map(|t| t["table"].as_str().unwrap()).collect();
    assert_eq!(tables, [EVENTS, ITEMS, DEAD_LETTERS, SEQUENCES]);
    let events = u64::from(USERS * EVENTS_A_USER);
    let checked = |table: usize, claim: &str| {
        let checks = report["tables"][table]["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["claim"].as_str().unwrap().contains(claim));
        check.unwrap_or_else(|| panic!("{claim}: {report}"))["checked"].as_u64().unwrap()
    };
    assert_eq!(checked(0, "event_id is unique"), events);
    assert_eq!(checked(2, "reason is"), 2);
    assert_eq!(checked(3, "target exactly once"), events);
    for table in 0..4 {
        assert_eq!(report["tables"][table]["skipped"].as_array().unwrap().len(), 0, "{report}");
    }
    assert!(stderr(&output).contains("no violation"), "{}", stderr(&output));
}

#[tokio::test]
async fn a_table_is_proven_by_the_settings_that_it_keeps() {
    let (workspace, root) = built();
    let other = ["inspect", "--verify", SEQUENCES, "--json", "--set", "sequences.max_len=14"];
    let report = json(&workspace.succeed("pipeline", &other));
    assert_eq!(report["tables"][0]["skipped"].as_array().unwrap().len(), 0, "{report}");
    // A table of an earlier version keeps no settings: what cannot be proven is no success.
    let (shards, mut properties) = rows(&root, SEQUENCES).await;
    properties.remove(properties::SETTINGS);
    write_rows(&root, SEQUENCES, &shards, &properties).await;
    workspace.succeed("pipeline", &["inspect", "--verify", SEQUENCES]);
    let output = workspace.command("pipeline", &other).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let skipped = json(&output)["tables"][0]["skipped"].as_array().unwrap().clone();
    assert!(skipped.len() >= 8, "{skipped:?}");
    assert!(skipped.iter().all(|skipped| skipped["reason"].as_str().unwrap().contains("[sequences]")));
    let text = stderr(&output);
    assert!(text.contains("UNPROVEN") && text.contains("could not prove of table `sequences`"), "{text}");
}

#[test]
fn a_version_that_is_gone_proves_nothing() {
    let (workspace, root) = built();
    // Shards are merged, and the merged ones are deleted.
    workspace.write("more.csv", "user,item,time\nu1,i1,1609000000\n");
    workspace.succeed("pipeline", &["ingest", "--events", "more.csv"]);
    let shard = std::fs::read_dir(root.table_path(EVENTS)).unwrap().map(|entry| entry.unwrap().path());
    let date = shard.filter(|path| path.to_string_lossy().contains("event_date=")).min().unwrap();
    for entry in std::fs::read_dir(date).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let text = workspace.fail("pipeline", &["inspect", "--verify", SEQUENCES], 3);
    assert!(text.contains("cannot be read any more") && text.contains("could not prove"), "{text}");
}

#[tokio::test]
async fn slices_prove_the_same() {
    let (workspace, root) = built();
    let config = Config::load(&workspace.path("config.toml"), &[]).unwrap();
    let whole = verify(&config, &root, None).await.unwrap();
    let sliced = verify_within(&config, &root, None, 70).await.unwrap();
    assert_eq!(whole, sliced);
    assert_eq!(whole.violation, None);
}

/// Returns the last two rows of the first user with several, as (shard, index of the older row).
fn two_rows(shards: &[Vec<Row>]) -> (usize, usize) {
    let same = |rows: &[Row], a: usize| rows.get(a + 1).is_some_and(|next| next.user == rows[a].user);
    let last_two = |rows: &Vec<Row>| (0..rows.len()).find(|&a| same(rows, a) && !same(rows, a + 1));
    shards.iter().enumerate().find_map(|(s, rows)| Some((s, last_two(rows)?))).unwrap()
}

type Tamper = fn(&mut Vec<Vec<Row>>, &mut Properties);
type TamperStored = fn(&mut Stored);
type TamperRows = fn(&mut Vec<Vec<Row>>);

/// Changes that break a claim about a row by itself, or about shards.
const OWN: [(&str, Option<&str>, Tamper); 14] = [
    ("equal length", Some("session"), |shards, _| _ = shards[0][1].session.pop()),
    ("equal length", Some("item_index"), |shards, _| {
        let more = shards[0][1].clone();
        let row = &mut shards[0][1];
        row.item.extend(more.item);
        row.ts.extend(more.ts);
        row.session.extend(more.session);
        row.request.extend(more.request);
        row.visible.extend(more.visible);
        row.role.extend(more.role);
    }),
    ("target_from is below", Some("target_from"), |shards, _| {
        shards[0][1].target_from = shards[0][1].item.len() as u32;
    }),
    ("ts ascends", Some("ts"), |shards, _| shards[0][1].ts[2] = 0),
    ("session never falls", Some("session"), |shards, _| shards[0][1].session[2] = 900),
    ("role is 0 to 4", Some("role"), |shards, _| shards[0][1].role[0] = 5),
    ("role is 0 to 4", Some("role"), |shards, _| {
        let (s, row) = two_rows(shards);
        shards[s][row + 1].role[0] = 0;
    }),
    ("role is 0 to 4", Some("role"), |shards, _| *shards[0][1].role.last_mut().unwrap() = 4),
    ("refers to an item", Some("item_index"), |shards, _| shards[0][1].item[2] = 0),
    ("refers to an item", Some("item_index"), |shards, _| shards[0][1].item[2] = 31),
    ("at most the position", Some("visible_len"), |shards, _| shards[0][1].visible[2] = 3),
    ("sorted by user", Some("user_id"), |shards, _| {
        shards[0].sort_by(|a, b| b.user.cmp(&a.user));
    }),
    ("in one shard", None, |shards, _| {
        let row = shards[0][0].clone();
        let at = shards[1].partition_point(|other| other.user < row.user);
        shards[1].insert(at, row);
    }),
    ("properties", Some("max_len"), |_, properties| {
        properties.insert(properties::MAX_LEN.into(), "13".into());
    }),
];

/// Changes that only the events prove wrong.
const RECOMPUTED: [(&str, Option<&str>, Tamper); 14] = [
    ("session is the ordinal", Some("session"), |shards, _| {
        shards[0][0].session.iter_mut().for_each(|session| *session += 1);
    }),
    ("request is the ordinal", Some("request"), |shards, _| shards[0][0].request[3] += 1),
    ("before v_t", Some("visible_len"), |shards, _| *shards[0][0].visible.last_mut().unwrap() -= 1),
    ("before v_t", Some("visible_len"), |shards, _| *shards[0][0].visible.last_mut().unwrap() += 1),
    ("follows from the split", Some("role"), |shards, _| shards[0][0].role[0] = 1),
    ("exactly once", None, |shards, _| {
        let (s, row) = two_rows(shards);
        shards[s].remove(row + 1);
    }),
    ("exactly once", Some("ts"), |shards, _| {
        let (s, row) = two_rows(shards);
        shards[s].remove(row);
    }),
    ("exactly once", None, |shards, _| {
        let user = shards[0][0].user.clone();
        shards[0].retain(|row| row.user != user);
    }),
    ("exactly once", Some("item_index"), |shards, _| {
        let last = shards[0].last().unwrap().clone();
        shards[0].push(last);
    }),
    ("exactly once", Some("item_index"), |shards, _| {
        let row = &mut shards[0][0];
        row.item[0] = row.item[0] % 30 + 1;
    }),
    ("exactly once", None, |shards, _| {
        let stranger = Row { user: "v".into(), ..shards[0][0].clone() };
        shards[0].push(stranger);
    }),
    ("earlier events", Some("item_index"), |shards, _| {
        let (s, row) = two_rows(shards);
        let item = &mut shards[s][row + 1].item[0];
        *item = *item % 30 + 1;
    }),
    ("newest events it may see", Some("item_index"), |shards, _| {
        let (s, row) = two_rows(shards);
        let row = &mut shards[s][row + 1];
        row.remove(0);
        row.target_from -= 1;
        row.visible.iter_mut().for_each(|visible| *visible = visible.saturating_sub(1));
    }),
    ("targets of one row", Some("role"), |shards, _| {
        let (s, row) = two_rows(shards);
        let mut newest = shards[s][row + 1].clone();
        let end = newest.item.len() - 1;
        shards[s][row + 1].remove(end);
        newest.target_from = end as u32;
        newest.role[..end].fill(4);
        shards[s].insert(row + 2, newest);
    }),
];

#[tokio::test]
async fn each_tampered_row_is_named() {
    let (workspace, root) = built();
    let (shards, properties) = rows(&root, SEQUENCES).await;
    for (claim, column, tamper) in OWN.into_iter().chain(RECOMPUTED) {
        let (mut changed, mut described) = (shards.clone(), properties.clone());
        tamper(&mut changed, &mut described);
        write_rows(&root, SEQUENCES, &changed, &described).await;
        let violation = violation(&workspace, SEQUENCES, claim, column);
        assert!(violation["user"].is_string() || column == Some("user_id") || claim == "properties");
    }
    write_rows(&root, SEQUENCES, &shards, &properties).await;
    workspace.succeed("pipeline", &["inspect", "--verify"]);
}

#[tokio::test]
async fn no_single_change_goes_unnoticed() {
    let (workspace, root) = built();
    let config = Config::load(&workspace.path("config.toml"), &[]).unwrap();
    let (shards, properties) = rows(&root, SEQUENCES).await;
    for change in 0..48 {
        let pick = |salt: u64, n: usize| (mix64(change, salt) % n as u64) as usize;
        let mut changed = shards.clone();
        let s = pick(1, changed.len());
        let r = pick(2, changed[s].len());
        let row = &mut changed[s][r];
        let k = pick(3, row.item.len());
        let by = 1 + pick(4, 2) as u32;
        match change % 7 {
            0 => row.item[k] = row.item[k] % 30 + by,
            1 => row.ts[k] += i64::from(by),
            2 => row.session[k] += by,
            3 => row.request[k] += by,
            4 => row.visible[k] = if row.visible[k] == 0 { by } else { row.visible[k] - 1 },
            5 => row.role[k] = (row.role[k] + by as u8) % 5,
            _ => row.target_from = (row.target_from + by) % 12,
        }
        if changed == shards {
            continue;
        }
        write_rows(&root, SEQUENCES, &changed, &properties).await;
        let found = verify(&config, &root, Some(SEQUENCES)).await.unwrap().violation;
        assert!(found.is_some(), "change {change} of row {r} of shard {s}, position {k}");
    }
}

#[tokio::test]
async fn the_place_is_exact() {
    let (workspace, root) = built();
    let (mut shards, properties) = rows(&root, SEQUENCES).await;
    let row = &mut shards[1][2];
    let (user, position) = (row.user.clone(), row.item.len() - 1);
    let right = row.visible[position];
    row.visible[position] = 0;
    write_rows(&root, SEQUENCES, &shards, &properties).await;
    let found = violation(&workspace, SEQUENCES, "before v_t", Some("visible_len"));
    assert!(found["shard"].as_str().unwrap().starts_with("part-00001-"), "{found}");
    assert_eq!((&found["row"], &found["position"]), (&Value::from(2), &Value::from(position)));
    assert_eq!(found["user"], user);
    assert_eq!((&found["found"], &found["expected"]), (&"0".into(), &right.to_string().into()));
}

#[tokio::test]
async fn properties_must_say_what_was_read() {
    let (workspace, root) = built();
    let (shards, described) = rows(&root, SEQUENCES).await;
    for (key, value) in [
        (properties::EVENTS_VERSION, Some("9")),
        (properties::ITEMS_VERSION, Some("first")),
        (properties::SESSION_GAP_MS, Some("1")),
        (properties::CONFIG_HASH, None),
        (properties::SETTINGS, Some("max_len = 3")),
    ] {
        let mut changed = described.clone();
        match value {
            Some(value) => _ = changed.insert(key.into(), value.into()),
            None => _ = changed.remove(key),
        }
        write_rows(&root, SEQUENCES, &shards, &changed).await;
        violation(&workspace, SEQUENCES, "properties", Some(key));
    }
}

#[tokio::test]
async fn the_targets_of_a_refresh_are_what_is_new() {
    let workspace = Workspace::new();
    let log = std::fs::read_to_string(workspace.path("log.csv")).unwrap();
    let (header, lines) = log.split_once('\n').unwrap();
    let is_new = |n: usize| n % EVENTS_A_USER as usize >= EVENTS_A_USER as usize - 2;
    let part = |new: bool| -> String {
        let lines = lines.lines().enumerate().filter(|&(n, _)| is_new(n) == new);
        std::iter::once(header).chain(lines.map(|(_, line)| line)).map(|line| format!("{line}\n")).collect()
    };
    workspace.write("log.csv", part(false));
    workspace.write("new.csv", part(true));
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["ingest", "--events", "new.csv"]);
    workspace.succeed("pipeline", &["build-sequences", "--since", "0"]);
    let root = Root::new(workspace.root().to_str().unwrap()).unwrap();
    let report = json(&workspace.succeed("pipeline", &["inspect", "--verify", "refresh", "--json"]));
    let proof = &report["tables"][0];
    assert_eq!(proof["skipped"].as_array().unwrap().len(), 0, "{report}");
    let since =
        proof["checks"].as_array().unwrap().iter().find(|c| c["claim"].to_string().contains("--since"));
    assert!(since.is_some(), "{report}");

    let (shards, properties) = rows(&root, "refresh").await;
    let cases: [(&str, Option<&str>, TamperRows); 5] = [
        ("a target that is new", Some("role"), |shards| shards[0][0].role.fill(4)),
        ("committed after", Some("role"), |shards| *shards[0][0].role.last_mut().unwrap() = 4),
        ("committed after", Some("role"), |shards| {
            let row = &mut shards[0][0];
            let old = row.role.iter().rposition(|&role| role == 4).unwrap();
            row.role[old] = 0;
        }),
        ("committed after", None, |shards| _ = shards[0].remove(0)),
        ("before v_t", Some("visible_len"), |shards| *shards[0][0].visible.last_mut().unwrap() -= 1),
    ];
    for (claim, column, tamper) in cases {
        let mut changed = shards.clone();
        tamper(&mut changed);
        write_rows(&root, "refresh", &changed, &properties).await;
        violation(&workspace, "refresh", claim, column);
    }
}

#[tokio::test]
async fn tampered_events_are_named() {
    let (workspace, root) = built();
    let tampers: [(&str, Option<&str>, TamperStored); 5] = [
        ("unique within its event_date", Some("event_id"), |events| {
            let mut ids = events.texts("event_id");
            ids[1] = ids[0].clone();
            events.set("event_id", Arc::new(StringArray::from(ids)));
        }),
        ("UTC date of ts", Some("ts"), |events| {
            let mut times = events.numbers::<TimestampMillisecondType>("ts").values().to_vec();
            times[3] -= DAY_MS;
            events.set("ts", Arc::new(TimestampMillisecondArray::from(times).with_timezone("UTC")));
        }),
        ("required columns", Some("user_id"), |events| {
            let mut users = events.texts("user_id");
            users[2] = None;
            events.set("user_id", Arc::new(StringArray::from(users)));
        }),
        ("contract's types", Some("position"), |events| {
            let texts = events.numbers::<Int64Type>("position").values().to_vec();
            let texts = texts.iter().map(ToString::to_string);
            events.set("position", Arc::new(StringArray::from_iter_values(texts)));
        }),
        ("as many rows", None, |events| events.miscounted = 1),
    ];
    for (claim, column, tamper) in tampers {
        let original = stored(&root, EVENTS, &EVENTS_SCHEMA).await;
        let mut changed = stored(&root, EVENTS, &EVENTS_SCHEMA).await;
        tamper(&mut changed);
        changed.write(&root, EVENTS).await;
        violation(&workspace, EVENTS, claim, column);
        original.write(&root, EVENTS).await;
    }
    workspace.succeed("pipeline", &["inspect", "--verify"]);
}

#[tokio::test]
async fn tampered_items_and_dead_letters_are_named() {
    let (workspace, root) = built();
    let schema = items_schema(["genre"]);
    for (claim, column) in [("item_id is unique", "item_id"), ("dense", "item_index")] {
        let original = stored(&root, ITEMS, &schema).await;
        let mut changed = stored(&root, ITEMS, &schema).await;
        if column == "item_id" {
            let mut ids = changed.texts("item_id");
            ids[7] = ids[3].clone();
            changed.set("item_id", Arc::new(StringArray::from(ids)));
        } else {
            let mut indexes = changed.numbers::<UInt32Type>("item_index").values().to_vec();
            indexes[7] = 100;
            changed.set("item_index", Arc::new(UInt32Array::from(indexes)));
        }
        changed.write(&root, ITEMS).await;
        violation(&workspace, ITEMS, claim, Some(column));
        original.write(&root, ITEMS).await;
    }
    for (claim, column) in [("code of the list", "reason"), ("is unique", "position")] {
        let original = stored(&root, DEAD_LETTERS, &DEAD_LETTERS_SCHEMA).await;
        let mut changed = stored(&root, DEAD_LETTERS, &DEAD_LETTERS_SCHEMA).await;
        if column == "reason" {
            changed.set("reason", Arc::new(StringArray::from(vec!["missing_field", "bad_luck"])));
        } else {
            // The same bytes at the same place.
            changed.set("position", Arc::new(Int64Array::from(vec![801, 801])));
            changed.set("value", Arc::new(BinaryArray::from(vec![b"x".as_slice(); 2])));
        }
        changed.write(&root, DEAD_LETTERS).await;
        violation(&workspace, DEAD_LETTERS, claim, Some(column));
        original.write(&root, DEAD_LETTERS).await;
    }
}

#[test]
fn a_table_whose_log_is_lost_is_no_success_and_is_said_before_it_is_begun_anew() {
    let (workspace, _) = built();
    let log = workspace.root().join("events/_delta_log");
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    let text = workspace.fail("pipeline", &["inspect", "--verify", "events"], 3);
    assert!(text.contains("its log has no entry"), "{text}");
    let text = stderr(&workspace.succeed("pipeline", &["ingest"]));
    assert!(text.contains("events has shards, and its log no entry"), "{text}");
    // An intact table gets no such warning.
    let text = stderr(&workspace.succeed("pipeline", &["ingest"]));
    assert!(!text.contains("no entry"), "{text}");
}
