//! `pipeline forget`: nothing of a person is left, and nothing of them comes back.

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use schemas::delta::Root;
use serde_json::Value;

use crate::programs::{Workspace, files, json, stderr};

const USER: &str = "person-77";

/// The tables, and files beside the models, in which some text or bytes name the user.
async fn naming(root: &Path) -> Vec<String> {
    let opened = Root::new(root.to_str().unwrap()).unwrap();
    let mut naming = Vec::new();
    for table in
        ["events", "items", "dead_letters", "sequences", "refresh", "sft/genre", "instructions", "forgotten"]
    {
        let Some(snapshot) = opened.snapshot(table).await.unwrap() else { continue };
        let schema = snapshot.delta().snapshot().unwrap().snapshot().arrow_schema();
        let columns: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let columns: Vec<&str> = columns.into_iter().filter(|&name| name != "event_date").collect();
        for batch in snapshot.read(&columns).await.unwrap() {
            let named = batch.columns().iter().any(|column| match column.data_type() {
                DataType::Utf8 => column.as_string::<i32>().iter().flatten().any(|text| text.contains(USER)),
                DataType::Binary => (0..column.len()).any(|row| {
                    let bytes = column.as_binary::<i32>().value(row);
                    bytes.windows(USER.len()).any(|part| part == USER.as_bytes())
                }),
                _ => false,
            });
            if named {
                naming.push(table.to_owned());
            }
        }
    }
    for (name, bytes) in files(&root.join("models")) {
        // Ids are short: a packed page that holds one shows it, or not; what is read says for sure.
        if name.ends_with(".parquet") {
            let rows =
                trainer::evaluate::stored::read_ranks(&root.join("models").join(&name)).unwrap().unwrap();
            if rows.iter().any(|row| row.user_id == USER) {
                naming.push(name);
            }
        } else if bytes.windows(USER.len()).any(|part| part == USER.as_bytes()) {
            naming.push(name);
        }
    }
    naming.dedup();
    naming
}

/// A log in which `u3` has become the person, with two records of theirs that are none.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let log = std::fs::read_to_string(workspace.path("log.csv")).unwrap();
    let log = log.replace("\nu3,", &format!("\n{USER},"));
    workspace.write("log.csv", format!("{log}{USER},i1,yesterday\nu1,{USER}\nu5,i2,never\n"));
    workspace
}

const SETTINGS: [&str; 6] = [
    "--set",
    "sequences.sft_share=0.2",
    "--set",
    "conditions.min_pool=5",
    "--set",
    "events.max_dead_letter_rate=0.5",
];

fn run(workspace: &Workspace, program: &str, args: &[&str]) -> Value {
    json(&workspace.succeed(program, &[args, &SETTINGS, &["--json"]].concat()))
}

#[tokio::test]
async fn nothing_is_left_and_nothing_comes_back() {
    let workspace = workspace();
    let read = run(&workspace, "pipeline", &["ingest"])["events"].clone();
    run(&workspace, "pipeline", &["build-sequences"]);
    run(&workspace, "pipeline", &["build-sft", "--condition", "genre"]);
    run(&workspace, "pipeline", &["instructions"]);
    run(&workspace, "trainer", &["pretrain", "--name", "m"]);
    run(&workspace, "trainer", &["evaluate", "--model", "m"]);
    let before = naming(&workspace.root()).await;
    for place in ["events", "dead_letters", "sequences", "sft/genre", "instructions", "m/ranks-test.parquet"]
    {
        assert!(before.iter().any(|named| named == place), "{place}: {before:?}");
    }

    let report = run(&workspace, "pipeline", &["forget", "--user", USER]);
    assert_eq!((&report["users"], &report["known"]), (&1.into(), &0.into()));
    let rows = |table: &str| {
        let tables = report["tables"].as_array().unwrap();
        tables.iter().find(|t| t["table"] == table).unwrap_or_else(|| panic!("{table}: {report}"))["rows"]
            .clone()
    };
    assert_eq!(rows("events"), crate::programs::EVENTS_A_USER);
    assert_eq!(rows("dead_letters"), 2);
    assert_eq!(naming(&workspace.root()).await, Vec::<String>::new());
    // What is left is as sound as before, and is what a build would make of it.
    run(&workspace, "pipeline", &["inspect", "--verify"]);
    let text = stderr(&workspace.succeed("pipeline", &[&["forget", "--user", USER][..], &SETTINGS].concat()));
    assert!(text.contains("1 of them forgotten before") && text.contains("0 rows taken out"), "{text}");

    // The source still has them: they are counted.
    let again = run(&workspace, "pipeline", &["ingest"])["events"].clone();
    let number = |counts: &Value, name: &str| counts[name].as_u64().unwrap();
    assert_eq!(number(&again, "read"), number(&read, "read"));
    assert_eq!(number(&again, "accepted"), 0);
    assert_eq!(number(&again, "dead_letters"), 1);
    assert_eq!(number(&again, "forgotten"), u64::from(crate::programs::EVENTS_A_USER) + 2);
    assert_eq!(
        number(&again, "duplicates"),
        number(&read, "accepted") - u64::from(crate::programs::EVENTS_A_USER)
    );
    run(&workspace, "pipeline", &["build-sequences"]);
    assert_eq!(naming(&workspace.root()).await, Vec::<String>::new());

    // Without the key nobody knows who it was: nothing is read rather than everybody.
    let key = key(&workspace);
    std::fs::rename(&key, workspace.path("lost")).unwrap();
    let ingest = [&["ingest"][..], &SETTINGS].concat();
    let text = workspace.fail("pipeline", &ingest, 1);
    assert!(text.contains(key.to_str().unwrap()) && text.contains("forget.key_file"), "{text}");
    let named = workspace.path("lost");
    let setting = format!("forget.key_file={}", named.display());
    workspace.succeed("pipeline", &[&ingest[..], &["--set", &setting]].concat());
}

/// The key of the root's hashes: the only file in the state directory, and no other file of the root or beside it has it.
fn key(workspace: &Workspace) -> std::path::PathBuf {
    let directory = workspace.path("state/climber-pilot/erasure-keys");
    let keys = files(&directory);
    let [(name, key)] = &keys[..] else { panic!("{keys:?}") };
    assert_eq!(key.len(), 32);
    for (name, bytes) in files(&workspace.root()) {
        assert!(!bytes.windows(32).any(|part| part == key.as_slice()), "{name} has the key");
    }
    directory.join(name)
}

#[test]
fn a_key_beside_the_hashes_is_still_read_and_said() {
    let workspace = workspace();
    let forget = |user| [&["forget", "--user", user][..], &SETTINGS].concat();
    run(&workspace, "pipeline", &["ingest"]);
    let text = stderr(&workspace.succeed("pipeline", &forget(USER)));
    let key = key(&workspace);
    assert!(text.contains(key.to_str().unwrap()), "{text}");
    // As earlier versions left it.
    let beside = workspace.root().join("forgotten.key");
    std::fs::rename(&key, &beside).unwrap();
    let text = stderr(&workspace.succeed("pipeline", &forget("u5")));
    assert!(
        text.contains("warning") && text.contains("forgotten.key") && text.contains("erasure-keys"),
        "{text}"
    );
    assert!(text.contains(key.to_str().unwrap()), "where to move it: {text}");
    std::fs::rename(&beside, &key).unwrap();
    let text = stderr(&workspace.succeed("pipeline", &forget(USER)));
    assert!(text.contains("1 of them forgotten before") && !text.contains("warning"), "{text}");
    // A root that was moved finds its key.
    std::fs::rename(workspace.root(), workspace.path("moved")).unwrap();
    let moved = [&forget(USER)[..], &["--root", "moved"]].concat();
    let text = stderr(&workspace.succeed("pipeline", &moved));
    assert!(text.contains("1 of them forgotten before"), "{text}");
}

#[test]
fn a_mistaken_root_or_user_is_refused() {
    let workspace = Workspace::new();
    let text = workspace.fail("pipeline", &["forget", "--user", USER], 1);
    assert!(text.contains("`events`"), "{text}");
    let text = workspace.fail("pipeline", &["forget", "--user", " "], 2);
    assert!(text.contains("--user"), "{text}");
}
