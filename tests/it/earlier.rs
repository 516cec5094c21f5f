//! A checkpoint of an earlier version opens, serves, can be evaluated and goes on learning.
//!
//! `tests/data/checkpoint-0.1` is a model that version 0.1 trained on the log of [`Workspace`], with its lists and figures.
//! `CLIMBER_PILOT_FIXTURE=write` writes it anew, with the programs under test.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::programs::{Workspace, json, sources};

const MODEL: &str = "earlier";
const RETRIEVE: [&str; 5] = ["retrieve", "--model", MODEL, "--k", "5"];
const EVALUATE: [&str; 4] = ["evaluate", "--model", MODEL, "--json"];

fn fixture() -> PathBuf {
    sources().join("data/checkpoint-0.1")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn rows(text: &[u8]) -> Vec<Value> {
    String::from_utf8_lossy(text).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn figures(report: &Value) -> Vec<(String, f64)> {
    let rows = report["results"].as_array().unwrap().iter().filter(|row| row["model"] == MODEL);
    rows.map(|row| (format!("{} {}", row["protocol"], row["filter_seen"]), row["hr@10"].as_f64().unwrap()))
        .collect()
}

#[test]
fn a_checkpoint_of_version_0_1_opens_serves_and_learns() {
    let workspace = Workspace::new();
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    let model = workspace.root().join("models").join(MODEL);
    if std::env::var("CLIMBER_PILOT_FIXTURE").is_ok_and(|value| value == "write") {
        workspace.succeed("trainer", &["pretrain", "--name", MODEL]);
        copy(&model, &fixture().join("model"));
        let lists = workspace.succeed("trainer", &RETRIEVE).stdout;
        std::fs::write(fixture().join("lists.jsonl"), lists).unwrap();
        let report = json(&workspace.succeed("trainer", &EVALUATE));
        std::fs::write(fixture().join("evaluation.json"), serde_json::to_vec_pretty(&report).unwrap())
            .unwrap();
        return;
    }
    copy(&fixture().join("model"), &model);

    // Scores on another processor may differ in their last bits, and so may the order of near ties.
    let expected = rows(&std::fs::read(fixture().join("lists.jsonl")).unwrap());
    let served = rows(&workspace.succeed("trainer", &RETRIEVE).stdout);
    assert_eq!(served.len(), expected.len());
    let mut other_items = 0;
    for (served, expected) in served.iter().zip(&expected) {
        assert_eq!((&served["user_id"], &served["rank"]), (&expected["user_id"], &expected["rank"]));
        let apart = served["score"].as_f64().unwrap() - expected["score"].as_f64().unwrap();
        assert!(apart.abs() < 1e-4, "{served} {expected}");
        other_items += usize::from(served["item_id"] != expected["item_id"]);
    }
    assert!(other_items * 50 <= expected.len(), "{other_items} of {} items are others", expected.len());

    let report = json(&workspace.succeed("trainer", &EVALUATE));
    let expected: Value =
        serde_json::from_slice(&std::fs::read(fixture().join("evaluation.json")).unwrap()).unwrap();
    let (found, expected) = (figures(&report), figures(&expected));
    assert_eq!(found.len(), 4);
    for ((key, found), (_, expected)) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 0.03, "{key}: {found} {expected}");
    }

    let day = "user,item,time\nu1,i3,1610000000\nu1,i4,1610003600\nu2,i9,1610000000\nnew,i1,1610000000\nnew,i2,1610009000\n";
    workspace.write("monday.csv", day);
    workspace.succeed("pipeline", &["ingest", "--events", "monday.csv"]);
    workspace.succeed("pipeline", &["build-sequences", "--since", "0"]);
    let refresh = ["refresh", "--name", "next", "--from", MODEL, "--json"];
    assert_eq!(json(&workspace.succeed("trainer", &refresh))["status"], "trained");
    let lists = rows(&workspace.succeed("trainer", &["retrieve", "--model", "next", "--k", "5"]).stdout);
    assert!(!lists.is_empty());
}
