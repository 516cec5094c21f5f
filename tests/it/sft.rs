//! Instructions from the log to the lists: `build-sft`, `instructions`, `sft`, `evaluate --condition`, `retrieve`, `export`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;
use store::Root;
use trainer::data::conditions::KnownConditions;
use trainer::data::{Catalogue, ConditionRow, Examples, ItemIndex};

use crate::programs::{Workspace, files, json, stderr};

/// A third of the events are instruction examples; thirty items make small pools.
const SETTINGS: [&str; 8] = [
    "--set",
    "sequences.sft_share=0.3",
    "--set",
    "conditions.min_pool=5",
    "--set",
    "sft.conditions=[\"genre\"]",
    "--set",
    "sft.epochs=2",
];

fn with<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [args, &SETTINGS[..]].concat()
}

/// Returns a workspace with tables and a pre-trained model `base`.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &with(&["build-sequences"]));
    workspace.succeed("pipeline", &with(&["build-sft", "--condition", "genre"]));
    workspace.succeed("trainer", &with(&["pretrain", "--name", "base"]));
    workspace
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {value}"))
}

#[test]
fn a_model_learns_to_follow_instructions() {
    let workspace = workspace();
    let sft = with(&["sft", "--name", "guided", "--from", "base", "--json"]);
    let output = workspace.succeed("trainer", &sft);
    let outcome = json(&output);
    assert_eq!((&outcome["status"], &outcome["model"]), (&Value::from("trained"), &Value::from("guided")));
    assert!(number(&outcome, "examples") > 0.0);
    assert!(stderr(&output).contains("without instructions, HR@10 on validation"), "{}", stderr(&output));

    // A second run has nothing to do; --fresh trains again, to the same weights.
    let weights = workspace.root().join("models/guided/model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    assert_eq!(json(&workspace.succeed("trainer", &sft))["status"], "unchanged");
    assert_eq!(std::fs::read(&weights).unwrap(), before);
    workspace.succeed("trainer", &[&sft[..], &["--fresh"]].concat());
    assert!(std::fs::read(&weights).unwrap() == before, "the same run gives the same weights");

    for model in ["base", "guided"] {
        let evaluate = with(&["evaluate", "--model", model, "--condition", "genre", "--json"]);
        let report = json(&workspace.succeed("trainer", &evaluate));
        let results = report["results"].as_array().unwrap();
        let under: Vec<&Value> = results.iter().filter(|m| m["condition"] == "genre").collect();
        // Two protocols, with and without seen items, with and without a filter.
        assert_eq!(under.len(), 8);
        for m in under {
            // Ten of the thirty items carry a genre, and a list has all unseen items, in any order.
            let (filtered, kept) = (m["condition_filter"] == true, m["filter_seen"] == false);
            assert_eq!(m["condition_from"], "target");
            match (kept, filtered) {
                (true, true) => {
                    for (key, places) in [("cc@10", 10.0), ("cc@20", 20.0), ("cc@50", 50.0)] {
                        assert!((number(m, key) - 10.0 / places).abs() < 1e-9, "{key}: {m}");
                    }
                    assert_eq!(number(m, "hr@10"), 1.0, "the target carries its own condition");
                }
                (true, false) => {
                    assert!((number(m, "cc@50") - 0.2).abs() < 1e-9 && number(m, "hr@50") == 1.0, "{m}");
                    assert!(number(m, "cc@10") < 1.0 && number(m, "hr@10") < 1.0, "{m}");
                }
                (false, _) => assert!(number(m, "cc@50") < 0.2, "{m}"),
            }
        }
    }
    let evaluate =
        with(&["evaluate", "--model", "guided", "--condition", "genre", "--instructions", "--json"]);
    let output = workspace.succeed("trainer", &evaluate);
    let report = json(&output);
    let results = report["results"].as_array().unwrap();
    let own: Vec<&Value> = results.iter().filter(|m| m["condition_from"] == "instructions").collect();
    assert_eq!(own.len(), 4);
    assert!(own.iter().all(|m| number(m, "targets") > 0.0 && m["filter_seen"] == true));
    // With a filter, only carriers of the user's own instructions are listed.
    for m in own {
        let listed = number(m, "cc@50") * 50.0;
        assert!(listed > 0.0 && (m["condition_filter"] == false || listed < 30.0), "{m}");
    }
    assert_eq!(report["diversity"].as_array().unwrap().len(), 2 * 3);
    assert!(stderr(&output).contains("different values among the first 20"), "{}", stderr(&output));

    let compare = ["compare", "--condition", "genre", "base", "guided"];
    let text = stderr(&workspace.succeed("trainer", &with(&compare)));
    assert!(text.contains("CC@10") && text.contains("against the first"), "{text}");

    let quota = ["--set", "instructions.quota={ genre = 2 }"];
    workspace.succeed("pipeline", &with(&[&["instructions"], &quota[..]].concat()));
    let retrieve =
        ["retrieve", "--model", "guided", "--instructions", "--only", "--k", "5", "--merge", "weighted"];
    let output = workspace.succeed("trainer", &with(&retrieve));
    assert!(stderr(&output).contains("CC@5 1.0000"), "{}", stderr(&output));
    let export = ["export", "--model", "guided", "--out", "exported"];
    workspace.succeed("trainer", &with(&export));
    let exported = files(&workspace.path("exported"));
    let conditions: Value = serde_json::from_slice(&exported[0].1).unwrap();
    assert!(conditions.to_string().contains("Rock"), "{conditions}");
}

#[test]
fn what_cannot_be_taught_says_why() {
    let workspace = workspace();
    let fail = |args: &[&str], code| workspace.fail("trainer", &with(args), code);
    let sft = ["sft", "--name", "m", "--from", "base"];
    let text = workspace.fail("trainer", &["sft", "--name", "m", "--from", "base"], 2);
    assert!(text.contains("sft.conditions: is empty"), "{text}");
    let text = workspace.fail("trainer", &[&sft[..], &["--set", "sft.conditions=[\"gnre\"]"]].concat(), 2);
    assert!(text.contains("did you mean genre?"), "{text}");
    let text = fail(&["sft", "--name", "m", "--from", "bse"], 1);
    assert!(text.contains("models here: base"), "{text}");
    let text = fail(&["sft", "--name", "base", "--from", "base"], 2);
    assert!(text.contains("give the fine-tuned one another name"), "{text}");
    workspace.succeed("trainer", &with(&["pretrain", "--name", "row", "--set", "model.mask=row"]));
    let text = fail(&["sft", "--name", "m", "--from", "row"], 2);
    assert!(text.contains("mask = \"row\" cannot be fine-tuned"), "{text}");
    let text = fail(&["evaluate", "--model", "base", "--condition", "gnre"], 2);
    assert!(text.contains("did you mean genre?"), "{text}");
    // Other settings of the split: an example may have been learned in pre-training.
    workspace.succeed("pipeline", &["build-sequences", "--set", "sequences.sft_share=0.5"]);
    let rebuilt = [
        "build-sft",
        "--condition",
        "genre",
        "--set",
        "sequences.sft_share=0.5",
        "--set",
        "conditions.min_pool=5",
    ];
    workspace.succeed("pipeline", &rebuilt);
    let text = fail(&sft, 1);
    assert!(text.contains("the other may have learned"), "{text}");
    let classic = [&sft[..], &["--set", "sft.conditions=[\"classic\"]"]].concat();
    let text = workspace.fail("trainer", &classic, 1);
    assert!(text.contains("pipeline build-sft --condition"), "{text}");
}

/// Returns each user's examples, as (target, condition's row, length of the history), by the time of the user's first event.
fn by_user(examples: &Examples) -> BTreeMap<i64, Vec<(ItemIndex, ConditionRow, usize)>> {
    let mut users: BTreeMap<i64, Vec<(ItemIndex, ConditionRow, usize)>> = BTreeMap::new();
    for (example, &history) in examples.history.iter().enumerate() {
        // A user's first event has nothing before it.
        let Some(&first) = examples.histories[history as usize].ts.first() else { continue };
        let seen = examples.flags(example).len();
        users.entry(first).or_default().push((examples.targets[example], examples.conditions[example], seen));
    }
    users
}

#[tokio::test]
async fn examples_by_lot_are_those_of_whole_users() {
    let workspace = Workspace::new();
    let mut log = String::from("user,item,time\n");
    for user in 0..4_000u32 {
        for i in 0..6 {
            writeln!(log, "u{user},i{},{}", 1 + (user + i) % 30, 1_600_000_000 + user + i * 3_600).unwrap();
        }
    }
    workspace.write("log.csv", &log);
    let settings = [&SETTINGS[2..], &["--set", "sequences.sft_share=0.9"]].concat();
    let run = |program: &str, args: &[&str]| workspace.succeed(program, &[args, &settings[..]].concat());
    run("pipeline", &["ingest"]);
    run("pipeline", &["build-sequences"]);
    run("pipeline", &["build-sft", "--condition", "genre"]);
    let root = Root::new(workspace.root().to_str().unwrap()).unwrap();
    let catalogue = Catalogue::load(&root, &["genre".into()]).await.unwrap();
    let conditions = KnownConditions::new(&["genre".into()], &BTreeMap::new(), &catalogue);
    let load = async |wanted: Option<(usize, u64)>| {
        let mut lot = wanted.map(|(wanted, seed)| (wanted, trainer::random::generator(seed, "lot", 0)));
        let lot = lot.as_mut().map(|(wanted, lot)| (*wanted, lot));
        Examples::load(&root, &conditions, catalogue.items(), lot).await.unwrap()
    };
    let whole = load(None).await;
    let all = by_user(&whole);
    assert!(whole.len() > 10_000, "{}", whole.len());
    let (mut drawn, mut read) = (BTreeSet::new(), 0);
    for seed in 0..10 {
        let some = load(Some((5_000, seed))).await;
        // Runs of 512 rows, and the last user's rows beyond one.
        assert!((5_000..5_700).contains(&some.len()), "{}", some.len());
        assert_eq!(some.weights.iter().sum::<f32>().round() as usize, some.len());
        for (user, examples) in by_user(&some) {
            assert_eq!(examples, all[&user]);
            drawn.insert(user);
            read += 1;
        }
    }
    let share = read as f64 / (10 * all.len()) as f64;
    assert!((share - 5_250.0 / whole.len() as f64).abs() < 0.05, "{share}");
    assert!(drawn.len() as f64 > 0.95 * all.len() as f64, "{} of {}", drawn.len(), all.len());
    let (once, again) = (load(Some((5_000, 3))).await, load(Some((5_000, 3))).await);
    assert!(once.targets == again.targets && once.history == again.history, "the same lot, other examples");

    // As a run uses it: the draw depends on the parent, and other settings make another run.
    run("trainer", &["pretrain", "--name", "base", "--set", "pretrain.epochs=1"]);
    let sft = ["sft", "--name", "guided", "--from", "base", "--json", "--set", "sft.examples=5000"];
    let outcome = json(&run("trainer", &sft));
    assert!((4_000..5_700).contains(&(number(&outcome, "examples") as usize)), "{outcome}");
    assert_eq!(json(&run("trainer", &sft))["status"], "unchanged");
    let outcome = json(&run("trainer", &[&sft[..6], &["--set", "sft.examples=6000"]].concat()));
    assert_eq!(outcome["status"], "trained");
}
