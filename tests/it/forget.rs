//! `pipeline forget`: nothing of a person is left, and nothing of them comes back.

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use serde_json::Value;
use store::Root;

use crate::programs::{Workspace, files, json, stderr};

const USER: &str = "person-77";

/// Returns the tables, and the files beside the models, in which a text or bytes name the user.
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
        // Ids are short, and a compressed page may or may not show one, so the rows are read.
        if name.ends_with(".parquet") {
            let rows = trainer::judge::stored::read_ranks(&root.join("models").join(&name)).unwrap().unwrap();
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

/// Returns a workspace whose log calls `u3` the person, with two broken records of theirs.
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
    // The rest is valid, and as a build would make it.
    run(&workspace, "pipeline", &["inspect", "--verify"]);
    let text = stderr(&workspace.succeed("pipeline", &[&["forget", "--user", USER][..], &SETTINGS].concat()));
    assert!(text.contains("1 of them forgotten before") && text.contains("0 rows taken out"), "{text}");

    // The source still holds the person's events: they are counted.
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

    // Without the key, hashes match no user: reading is refused.
    let key = key(&workspace);
    std::fs::rename(&key, workspace.path("lost")).unwrap();
    let ingest = [&["ingest"][..], &SETTINGS].concat();
    let text = workspace.fail("pipeline", &ingest, 1);
    assert!(text.contains(key.to_str().unwrap()) && text.contains("forget.key_file"), "{text}");
    let named = workspace.path("lost");
    let setting = format!("forget.key_file={}", named.display());
    workspace.succeed("pipeline", &[&ingest[..], &["--set", &setting]].concat());
}

/// Returns the path of the root's key: the only file in the state directory; no file of the root contains it.
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
    // A root that was moved still finds its key.
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

/// Returns one count of `ingest`, over all its files.
fn count(report: &Value, name: &str) -> u64 {
    report["events"][name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"))
}

#[tokio::test]
async fn an_id_with_marks_is_found_in_torn_records_and_others_are_spared() {
    let workspace = Workspace::new();
    workspace.write(
        "log.csv",
        "user,item,time\nauth0|65aa,i1,1700000000\nauth0|65aa,i2,1700000060,one-too-many\nu2,i1,1700000120\n\
         u2,auth0|65aa,never\n",
    );
    workspace.write(
        "more.jsonl",
        "{\"user\":\"auth0|65aa\",\"item\":\"i1\",\"time\":\"never\"}\n\
         {\"user\":\"\\u0061uth0|65aa\",\"item\":\n\
         {\"user\":\"u2\",\"note\":\"auth0|65aa\",\"time\":1700000000}\n\
         {\"user\":\"u2\",\"note\":\"auth0|65aa\",\"item\":\n",
    );
    let ingest =
        ["ingest", "--events", "log.csv", "more.jsonl", "--set", "events.max_dead_letter_rate=1", "--json"];
    let first = json(&workspace.succeed("pipeline", &ingest));
    assert_eq!(["read", "accepted", "dead_letters"].map(|name| count(&first, name)), [8, 2, 6]);
    let report = run(&workspace, "pipeline", &["forget", "--user", "auth0|65aa"]);
    let rows = |table: &str| {
        report["tables"].as_array().unwrap().iter().find(|t| t["table"] == table).unwrap()["rows"].clone()
    };
    assert_eq!((rows("events"), rows("dead_letters")), (1.into(), 3.into()), "{report}");

    let names = ["read", "accepted", "duplicates", "dead_letters", "forgotten"];
    for _ in 0..2 {
        let again = json(&workspace.succeed("pipeline", &ingest));
        assert_eq!(names.map(|name| count(&again, name)), [8, 0, 1, 3, 4], "{again}");
    }
    let opened = Root::new(workspace.root().to_str().unwrap()).unwrap();
    let letters = opened.snapshot("dead_letters").await.unwrap().unwrap();
    assert_eq!(letters.rows(), 3, "those of u2, whatever else they name");
    let events = opened.snapshot("events").await.unwrap().unwrap().read(&["user_id"]).await.unwrap();
    assert!(
        events.iter().all(|batch| batch.column(0).as_string::<i32>().iter().all(|user| user == Some("u2")))
    );
}

/// The header attributes a line only while the file still holds that line; another file of the same name attributes nothing.
#[test]
fn records_of_a_replaced_file_are_found_and_those_of_a_longer_one_spared() {
    let workspace = Workspace::new();
    let letters = |workspace: &Workspace| {
        let report = json(&workspace.succeed("pipeline", &["inspect", "dead_letters", "--json"]));
        report["tables"][0]["rows"].as_u64().unwrap()
    };
    let log = "user,item,time\n7,9,never\n9,7,never\n8,9,1700000000\n8,9,1700000001\n";
    workspace.write("log.csv", log);
    run(&workspace, "pipeline", &["ingest"]);
    // The log was extended: 9's record is still 9's.
    workspace.write("log.csv", format!("{log}8,7,1700000100\n"));
    run(&workspace, "pipeline", &["forget", "--user", "7"]);
    assert_eq!(letters(&workspace), 1);
    // Another file has taken its name; its header would attribute the record to another user.
    workspace.write("log.csv", "item,user,time\n1,2,1700000000\n");
    run(&workspace, "pipeline", &["forget", "--user", "9"]);
    assert_eq!(letters(&workspace), 0);
}

#[test]
fn ids_that_look_alike_and_links_that_lead_out_are_named() {
    let workspace = Workspace::new();
    workspace.write(
        "log.csv",
        "user,item,time\ncaf\u{e9},i1,1700000000\ncafe\u{301},i1,1700000001\n caf\u{e9} ,i1,1700000002\ncafe,i1,1700000003\n\
         caf\u{e9}\u{200b},i1,never\ncafe,i2,never\n",
    );
    run(&workspace, "pipeline", &["ingest"]);
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(workspace.root().join("models/m")).unwrap();
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path(), workspace.root().join("models/elsewhere")).unwrap();
        std::os::unix::fs::symlink(workspace.root().join("models/m"), workspace.root().join("models/latest"))
            .unwrap();
    }
    let args = ["forget", "--user", "caf\u{e9}", "--json"];
    let output = workspace.succeed("pipeline", &args);
    let report = json(&output);
    assert_eq!(
        report["look_alikes"],
        serde_json::json!([" caf\u{e9} ", "cafe\u{301}", "caf\u{e9}\u{200b}"]),
        "{report}"
    );
    let text = stderr(&output);
    assert!(text.contains("looks the same") && text.contains("cafe\\u{301}"), "{text}");
    #[cfg(unix)]
    assert_eq!(report["links"], serde_json::json!(["models/elsewhere"]));
}

#[cfg(unix)]
#[test]
fn what_cannot_be_looked_at_is_an_error() {
    let workspace = Workspace::new();
    run(&workspace, "pipeline", &["ingest"]);
    // A directory that cannot be listed: a symbolic link to itself.
    let sft = workspace.root().join("sft");
    std::os::unix::fs::symlink(&sft, &sft).unwrap();
    let text = workspace.fail("pipeline", &["forget", "--user", "u3"], 1);
    assert!(text.contains("cannot look for tables in") && text.contains("sft"), "{text}");
    workspace.fail("pipeline", &["inspect"], 1);
    workspace.fail("pipeline", &["vacuum"], 1);
    std::fs::remove_file(&sft).unwrap();
    std::fs::write(workspace.root().join("models"), "no directory").unwrap();
    let text = workspace.fail("pipeline", &["forget", "--user", "u3"], 1);
    assert!(text.contains("models"), "{text}");
}
