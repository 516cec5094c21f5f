//! `trainer retrieve`, as a user runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, ListArray, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::DataType;
use schemas::config::{Config, Sft};
use schemas::tables::{INSTRUCTIONS, INSTRUCTIONS_SCHEMA};
use serde_json::Value;
use store::Root;
use store::commit::{Change, CommitMode, ShardWriter, commit};
use trainer::checkpoint;
use trainer::data::Catalogue;
use trainer::data::conditions::KnownConditions;
use trainer::kinds::TrainedModel as _;
use trainer::models::SequenceModel;

use crate::programs::{EVENTS_A_USER, USERS, Workspace, json, stderr};

/// Returns a workspace with tables, a model `base`, and `taught`, which has the same weights and follows genres.
async fn models() -> Workspace {
    let workspace = Workspace::new();
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    workspace.succeed("trainer", &["pretrain", "--name", "base"]);
    let overrides = ["sft.conditions=[\"genre\"]".to_owned()];
    let config = Config::load(&workspace.path("config.toml"), &overrides).unwrap();
    let root = Root::new(&config.root).unwrap();
    let device = trainer::device::open(&config).unwrap();
    let catalogue = Catalogue::load(&root, &["genre".into()]).await.unwrap();
    let base = checkpoint::load(&root.model_path("base"), &catalogue, &device).unwrap();
    let conditions = KnownConditions::new(&["genre".into()], &BTreeMap::new(), &catalogue);
    let vocabulary = Arc::new(base.model.vocabulary().with_conditions(conditions));
    let parent = base.sequence_model("fine-tuned").unwrap();
    let taught = SequenceModel::taught(parent, &config.model, &Sft::default(), vocabulary, 1).unwrap();
    let taught = Box::new(taught).into_learner(&config.pretrain, None).unwrap();
    let path = root.model_path("taught");
    checkpoint::save(&path, &*taught, &config, &base.state, &base.lineage, &Value::Null).unwrap();
    workspace
}

/// Small pools suit thirty items.
const SMALL: [&str; 4] = ["--set", "conditions.min_pool=5", "--k", "5"];

fn retrieve<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["retrieve"], args, &SMALL[..]].concat()
}

/// Parses rows, from stdout or a file.
fn rows(lines: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(lines).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap()
}

/// Returns the items of a user's whole history, as `Workspace` writes it.
fn history(user: u32) -> BTreeSet<String> {
    (0..EVENTS_A_USER).map(|i| format!("i{}", 1 + (user * 7 + i * (1 + user % 3)) % 30)).collect()
}

/// Returns an item's genre, as `Workspace` writes it.
fn genre(item: &str) -> &'static str {
    ["Rock", "Jazz", "Folk"][item[1..].parse::<usize>().unwrap() % 3]
}

#[tokio::test]
async fn all_users_get_unseen_items_into_either_kind_of_file() {
    let workspace = models().await;
    let output = workspace.succeed("trainer", &retrieve(&["--model", "base"]));
    let all = rows(&output.stdout);
    assert!(stderr(&output).contains("40 users"), "{}", stderr(&output));
    for user in 0..USERS {
        let id = format!("u{user}");
        let of_user: Vec<&Value> = all.iter().filter(|row| text(row, "user_id") == id).collect();
        assert_eq!(of_user.len(), 5.min(30 - history(user).len()), "{id}");
        for (row, rank) in of_user.iter().zip(1..) {
            assert_eq!((&row["rank"], &row["condition"]), (&Value::from(rank), &Value::Null));
            assert_eq!(text(row, "origin"), "model");
            assert!(!history(user).contains(text(row, "item_id")));
        }
    }
    let out = workspace.path("top.jsonl");
    let args = ["--model", "base", "--json", "--out", out.to_str().unwrap()];
    let report = json(&workspace.succeed("trainer", &retrieve(&args)));
    assert_eq!((&report["users"], &report["rows"]), (&Value::from(USERS), &Value::from(all.len())));
    assert_eq!(rows(&std::fs::read(&out).unwrap()), all);
    let out = workspace.path("top.parquet");
    workspace.succeed("trainer", &retrieve(&["--model", "base", "--out", out.to_str().unwrap()]));
    assert_eq!(&std::fs::read(&out).unwrap()[..4], b"PAR1");
    let approximate = workspace.succeed("trainer", &retrieve(&["--model", "base", "--search", "hnsw"]));
    assert_eq!(rows(&approximate.stdout).len(), all.len());
    assert!(stderr(&approximate).contains("recall@5"), "{}", stderr(&approximate));
}

#[tokio::test]
async fn conditions_limits_and_merging() {
    let workspace = models().await;
    workspace.write("users.txt", "u1\nnobody\n");
    workspace.write("deny.txt", "i3\ni6\n");
    let users = workspace.path("users.txt");
    let deny = workspace.path("deny.txt");
    let args = ["--model", "taught", "--users", users.to_str().unwrap(), "--deny", deny.to_str().unwrap()];
    let asked = [&args[..], &["--conditions", "genre=Rock,genre=Jazz", "--only", "--keep-seen"]].concat();
    let output = workspace.succeed("trainer", &retrieve(&asked));
    let lists = rows(&output.stdout);
    assert_eq!(lists.len(), 2 * 2 * 5);
    for row in &lists {
        assert_eq!(text(row, "condition"), format!("genre={}", genre(text(row, "item_id"))));
        assert!(!["i3", "i6"].contains(&text(row, "item_id")));
        assert_eq!(text(row, "origin"), if text(row, "user_id") == "u1" { "model" } else { "popular" });
    }
    let report = stderr(&output);
    assert!(report.contains("1 (nobody)") && report.contains("CC@5 1.0000"), "{report}");
    for rule in ["round-robin", "score", "weighted"] {
        let merged = workspace.succeed("trainer", &retrieve(&[&asked[..], &["--merge", rule]].concat()));
        let merged = rows(&merged.stdout);
        let of_user: BTreeSet<&str> = merged
            .iter()
            .filter(|row| text(row, "user_id") == "u1")
            .map(|row| text(row, "item_id"))
            .collect();
        assert_eq!((merged.len(), of_user.len()), (10, 5), "{rule}");
    }
    let case = ["--model", "taught", "--case", "u1", "--conditions", "genre=Rock"];
    let case = stderr(&workspace.succeed("trainer", &retrieve(&case)));
    for part in
        ["user u1: 20 visible events", "no condition", "genre=Rock", "Item ", "* also without a condition"]
    {
        assert!(case.contains(part), "{part}: {case}");
    }
}

#[tokio::test]
async fn a_request_at_a_time_sees_what_was_before_it() {
    let workspace = models().await;
    // User 0's events are ten minutes apart, with 50 more after every fourth.
    let start = 1_600_000_000;
    let at = |seconds: u32| {
        let at = chrono(start + seconds);
        let case = ["--model", "base", "--case", "u0", "--at", &at];
        let text = stderr(&workspace.succeed("trainer", &retrieve(&case)));
        text.lines().next().unwrap().to_owned()
    };
    assert!(at(0).contains("0 visible"), "{}", at(0));
    // The fourth event is at 1,800 s; Δτ is 15 minutes and hides the closed interval.
    assert!(at(2_700).contains("3 visible"), "{}", at(2_700));
    assert!(at(2_701).contains("4 visible"), "{}", at(2_701));
}

/// Formats a time in September 2020 as RFC 3339.
fn chrono(seconds: u32) -> String {
    let since = seconds - 1_598_918_400; // The first of September.
    let (day, second) = (since / 86_400, since % 86_400);
    format!("2020-09-{:02}T{:02}:{:02}:{:02}Z", day + 1, second / 3_600, second / 60 % 60, second % 60)
}

#[tokio::test]
async fn lines_are_answered_and_bad_ones_named() {
    let workspace = models().await;
    let run = |lines: &[u8]| {
        let args = retrieve(&["--model", "taught", "--stdin", "--only"]);
        let mut command = workspace.command("trainer", &args);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines).unwrap();
        child.wait_with_output().unwrap()
    };
    let good = r#"{"user_id": "x", "history": [{"item_id": "i2", "ts": 1000}, {"item_id": "gone", "ts": "1970-01-01T00:00:02Z"}], "conditions": ["genre=Folk"]}"#;
    let output = run(format!("{good}\n\n{}\n", r#"{"user_id": "y", "history": []}"#).as_bytes());
    assert!(output.status.success(), "{}", stderr(&output));
    let found = rows(&output.stdout);
    let (x, y) = found.split_at(5);
    assert!(x.iter().all(|row| text(row, "user_id") == "x" && genre(text(row, "item_id")) == "Folk"));
    assert!(x.iter().all(|row| text(row, "item_id") != "i2" && text(row, "origin") == "model"));
    assert!(y.iter().all(|row| text(row, "user_id") == "y" && text(row, "origin") == "popular"));
    assert!(stderr(&output).contains("1 (gone)"), "{}", stderr(&output));
    // A bad line does not affect its neighbours.
    let bad: [(&[u8], Value, &str); 8] = [
        (b"{", Value::Null, "EOF"),
        (b"\xff\xfe{}", Value::Null, "expected value"),
        (b"{\"user_id\": \"\xff\", \"history\": []}", Value::Null, "unicode"),
        (br#"{"user_id": "z"}"#, "z".into(), "history"),
        (br#"{"user_id": "z", "history": [{"item_id": "i1", "ts": "noon"}]}"#, "z".into(), "RFC 3339"),
        (br#"{"user_id": "z", "history": [], "at": 9223372036854775807}"#, "z".into(), "is not a time"),
        (br#"{"user_id": "z", "history": [], "conditions": ["genre=Rok"]}"#, "z".into(), "nearest: Rock"),
        (br#"{"user_id": "z", "history": [], "conditions": ["mood=calm"]}"#, "z".into(), "it knows genre"),
    ];
    let mut lines = Vec::new();
    for (line, ..) in &bad {
        lines.extend([good.as_bytes(), b"\n", line, b"\n"].concat());
    }
    lines.extend(good.as_bytes());
    let output = run(&lines);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("answered by an error: 8"), "{}", stderr(&output));
    let found = rows(&output.stdout);
    assert_eq!(found.len(), 9 * 5 + 8);
    for (i, (_, user, words)) in bad.iter().enumerate() {
        let (good, refusal) = (&found[i * 6..i * 6 + 5], &found[i * 6 + 5]);
        assert!(good.iter().all(|row| row["user_id"] == "x"), "{good:?}");
        assert_eq!((&refusal["line"], &refusal["user_id"]), (&Value::from(2 * i + 2), user));
        assert!(text(refusal, "error").contains(words), "{refusal}");
    }
    // A user who has seen all Folk gets an answer too: no item is left.
    let folk = (1..=30).filter(|i| i % 3 == 2).map(|i| format!(r#"{{"item_id": "i{i}", "ts": {i}}}"#));
    let folk: Vec<String> = folk.collect();
    let all = format!(r#"{{"user_id": "f", "history": [{}], "conditions": ["genre=Folk"]}}"#, folk.join(","));
    let output = run(format!("{good}\n{all}\n{good}\n").as_bytes());
    let found = rows(&output.stdout);
    assert_eq!(
        (found.len(), &found[5]["line"], &found[5]["user_id"]),
        (11, &2.into(), &"f".into()),
        "{found:?}"
    );
    assert!(text(&found[5], "error").contains("no item is left"), "{}", found[5]);
    // A request's own time decides what is visible.
    let event = r#"{"item_id": "i2", "ts": "2026-01-01T00:00:00Z"}"#;
    let at = |time: &str| format!(r#"{{"user_id": "x", "history": [{event}], "at": "{time}"}}"#);
    let lines = [at("2026-01-01T00:10:00Z"), at("2026-01-01T00:20:00Z")].join("\n");
    let origins: Vec<Value> =
        rows(&run(lines.as_bytes()).stdout).into_iter().map(|row| row["origin"].clone()).collect();
    assert_eq!(origins, [vec!["popular"; 5], vec!["model"; 5]].concat());
}

#[tokio::test]
async fn stored_instructions_are_followed_where_the_model_can() {
    let workspace = models().await;
    let root = Root::new(workspace.root().to_str().unwrap()).unwrap();
    let text = workspace.fail("trainer", &retrieve(&["--model", "taught", "--instructions"]), 1);
    assert!(text.contains("pipeline instructions"), "{text}");
    write_instructions(
        &root,
        &[
            ("u1", &[("genre", "Rock", 0.5), ("genre", "Ska", 0.3), ("genre", "Folk", 0.2)]),
            ("u2", &[("mood", "calm", 1.0)]),
        ],
    )
    .await;
    workspace.write("users.txt", "u1\nu2\nu3\n");
    let (users, out) = (workspace.path("users.txt"), workspace.path("out.jsonl"));
    let args = ["--model", "taught", "--instructions", "--users", users.to_str().unwrap(), "--json"];
    let args = [&args[..], &["--out", out.to_str().unwrap()]].concat();
    let report = json(&workspace.succeed("trainer", &retrieve(&args)));
    assert_eq!(report["unknown_instructions"]["count"], 2);
    assert_eq!(report["without_instructions"], 2);
    let all = rows(&std::fs::read(&out).unwrap());
    let conditions = |user: &str| -> BTreeSet<String> {
        let of_user = all.iter().filter(|row| row["user_id"] == user);
        of_user.map(|row| row["condition"].as_str().unwrap_or("none").to_owned()).collect()
    };
    assert_eq!(conditions("u1"), BTreeSet::from(["genre=Folk".into(), "genre=Rock".into()]));
    assert_eq!(conditions("u2"), BTreeSet::from(["none".into()]));
    assert_eq!(conditions("u3"), BTreeSet::from(["none".into()]));
    let small = ["--model", "taught", "--instructions", "--users", users.to_str().unwrap(), "--set"];
    let small = [&["retrieve"], &small[..], &["conditions.min_pool=11"]].concat();
    let text = stderr(&workspace.succeed("trainer", &small));
    assert!(text.contains("too few items carry: 2"), "{text}");
}

/// A user's (attribute, value, weight) triples.
type OfUser<'a> = (&'a str, &'a [(&'a str, &'a str, f32)]);

async fn write_instructions(root: &Root, users: &[OfUser<'_>]) {
    let lists = |column: usize, values: ArrayRef| -> ArrayRef {
        let DataType::List(field) = INSTRUCTIONS_SCHEMA.field(column).data_type() else { unreachable!() };
        let offsets = OffsetBuffer::from_lengths(users.iter().map(|(_, of_user)| of_user.len()));
        Arc::new(ListArray::new(field.clone(), offsets, values, None))
    };
    let all: Vec<_> = users.iter().flat_map(|(_, of_user)| of_user.iter()).collect();
    let as_of = TimestampMillisecondArray::from(vec![0; users.len()]).with_timezone("UTC");
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(users.iter().map(|(user, _)| user))),
        lists(1, Arc::new(StringArray::from_iter_values(all.iter().map(|(attribute, ..)| attribute)))),
        lists(2, Arc::new(StringArray::from_iter_values(all.iter().map(|(_, value, _)| value)))),
        lists(3, Arc::new(Float32Array::from_iter_values(all.iter().map(|(.., weight)| *weight)))),
        Arc::new(as_of),
    ];
    let batch = RecordBatch::try_new(INSTRUCTIONS_SCHEMA.clone(), columns).unwrap();
    let mut writer = ShardWriter::create(root, INSTRUCTIONS, "part", &INSTRUCTIONS_SCHEMA, &[]).unwrap();
    writer.write(&batch).unwrap();
    let shards = [writer.finish().unwrap()];
    let change = Change {
        table: INSTRUCTIONS,
        schema: &INSTRUCTIONS_SCHEMA,
        partition_by: &[],
        mode: CommitMode::Replace,
        shards: &shards,
        properties: BTreeMap::new(),
        read_version: None,
        transactions: BTreeMap::new(),
    };
    commit(root, change).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_asked_is_wrong_usage() {
    let workspace = models().await;
    for (args, words) in [
        (&["--model", "base", "--conditions", "genre=Rock"][..], "trainer sft"),
        (&["--model", "base", "--instructions"], "trainer sft"),
        (&["--model", "taught", "--conditions", "genre=Rok"], "nearest: Rock"),
        (&["--model", "taught", "--conditions", "mood=calm"], "it knows genre"),
        (&["--model", "taught", "--conditions", "genre="], "attribute=value"),
        (&["--model", "taught", "--conditions", "genre=Rock", "--instructions"], "--instructions"),
        (&["--model", "base", "--json"], "--out"),
        (&["--model", "base", "--out", "rows.csv"], ".parquet or .jsonl"),
        (&["--model", "base", "--ef", "9"], "--search hnsw"),
        (&["--model", "base", "--at", "now"], "RFC 3339"),
        (&["--model", "base", "--case", "u100"], "u10"),
    ] {
        let text = workspace.fail("trainer", &retrieve(args), 2);
        assert!(text.contains(words), "{words}: {text}");
    }
    let small = ["retrieve", "--model", "taught", "--conditions", "genre=Rock"];
    let text = workspace.fail("trainer", &small, 2);
    assert!(text.contains("10 items") && text.contains("min_pool = 20"), "{text}");
    let text = workspace.fail("trainer", &["retrieve", "--model", "other"], 1);
    assert!(text.contains("base"), "{text}");
    assert!(!workspace.path("rows.csv").exists());
}
