//! A model without gradients works everywhere the others do.

use serde_json::Value;

use crate::jobs::{date, run_day, service};
use crate::programs::{Workspace, json, stderr};

/// Returns a service of three days whose model counts which item follows which.
fn counting() -> Workspace {
    let workspace = service(3);
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    let config = config.replace("conditions = [\"genre\"]", "conditions = []");
    let model = "[model]\narchitecture = \"co-occurrence\"";
    workspace.write("config.toml", config.replace("[model]", model));
    workspace
}

/// Returns HR@10 of `model` by protocol, seen items filtered.
fn hr_10(report: &Value, model: &str) -> Vec<f64> {
    let rows = report["results"].as_array().unwrap().iter();
    let rows = rows.filter(|row| row["model"] == model && row["filter_seen"] == true);
    rows.map(|row| row["hr@10"].as_f64().unwrap()).collect()
}

#[test]
fn the_daily_job_trains_refreshes_publishes_and_serves_it() {
    let workspace = counting();
    for day in 1..=3 {
        let record = run_day(&workspace, day);
        let training = if day == 1 { "full" } else { "refresh" };
        assert_eq!(record["plan"]["training"]["kind"], training, "{}", record["plan"]);
        assert_eq!(record["train"]["model"], date(day));
        assert_eq!(record["publish"]["number"], day, "{}", record["gate"]);
        let model = workspace.root().join("models").join(date(day));
        let lineage: Value =
            serde_json::from_slice(&std::fs::read(model.join("lineage.json")).unwrap()).unwrap();
        let parent = if day == 1 { Value::Null } else { date(day - 1).into() };
        assert_eq!(lineage["parent"], parent);
    }
    let lists = workspace.succeed("trainer", &["retrieve", "--k", "5"]);
    let lists: Vec<Value> = String::from_utf8(lists.stdout)
        .unwrap()
        .lines()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    assert!(lists.len() > 20 && lists.iter().all(|row| row["origin"] == "model"), "{lists:?}");
    let text = workspace.fail("trainer", &["retrieve", "--search", "hnsw"], 2);
    assert!(text.contains("--search") && text.contains("co-occurrence"), "{text}");
    let text = workspace.fail("trainer", &["export", "--out", "exported"], 1);
    assert!(text.contains("co-occurrence") && text.contains("cannot be exported"), "{text}");
}

#[test]
fn an_unknown_kind_is_refused_before_anything_is_done() {
    let workspace = counting();
    for command in [&["daily", "--date", &date(1)][..], &["refresh", "--once"]] {
        let unknown = ["--set", "model.architecture=climber-pilto"];
        let text = workspace.fail("climber", &[command, &unknown].concat(), 2);
        assert!(text.contains("model.architecture") && text.contains("climber-pilot, "), "{text}");
    }
    assert!(!workspace.root().join("events").exists());
}

#[test]
fn it_is_judged_beside_the_others() {
    let workspace = counting();
    workspace.write("config.toml", {
        let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
        config
            .replace("split = \"none\"\nguard_share = 0.2\nsft_share = 0.2", "")
            .replace("{date}", "2026-01-0*")
    });
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    let pretrain = ["pretrain", "--name", "counted"];
    let first = workspace.succeed("trainer", &pretrain);
    assert!(stderr(&first).contains("epoch"), "{}", stderr(&first));
    // A second run changes nothing, and another run gives the same bytes.
    let text = stderr(&workspace.succeed("trainer", &[&pretrain[..], &["--json"]].concat()));
    assert!(!text.contains("epoch   1"), "{text}");
    workspace.succeed("trainer", &["pretrain", "--name", "again"]);
    let weights =
        |name: &str| std::fs::read(workspace.root().join("models").join(name).join("model.safetensors"));
    assert_eq!(weights("counted").unwrap(), weights("again").unwrap());

    let report = json(&workspace.succeed("trainer", &["evaluate", "--model", "counted", "--json"]));
    assert!(
        hr_10(&report, "counted")
            .iter()
            .zip(hr_10(&report, "popularity"))
            .all(|(ours, theirs)| *ours >= theirs)
    );
    workspace.succeed("trainer", &["evaluate", "--model", "again"]);
    let compared = json(&workspace.succeed("trainer", &["compare", "counted", "again", "--json"]));
    assert!(compared.to_string().contains("counted"), "{compared}");

    let wrong = ["pretrain", "--name", "x", "--set", "model.architecture=co-occurence"];
    let text = workspace.fail("trainer", &wrong, 2);
    assert!(text.contains("climber-pilot, sasrec, hstu, co-occurrence"), "{text}");
}
