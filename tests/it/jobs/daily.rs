//! `climber daily`: the whole path in one command.

use serde_json::Value;

use super::{hit_rate, mean, ranks};
use crate::programs::{EVENTS_A_USER, USERS, Workspace, files, json, stderr};

#[test]
fn one_command_goes_from_log_to_results() {
    let workspace = Workspace::new();
    let output = workspace.succeed("climber", &["daily", "--date", "2026-01-31", "--json"]);
    let report = json(&output);
    let text = stderr(&output);

    let read = u64::from(USERS * EVENTS_A_USER);
    assert_eq!(report["ingest"]["read"], read, "{report}");
    assert_eq!(report["ingest"]["accepted"], read);
    assert_eq!(report["plan"]["training"]["kind"], "full");
    for step in ["[1/13] ingest", "[3/13] sequences", "[7/13] train", "[11/13] publish", "as publication 1"] {
        assert!(text.contains(step), "{text}");
    }

    // The model and both baselines, under two protocols, with and without seen items.
    let model = workspace.root().join("models/2026-01-31");
    let evaluation: Value =
        serde_json::from_slice(&std::fs::read(model.join("evaluation-test.json")).unwrap()).unwrap();
    let results = evaluation["results"].as_array().unwrap();
    assert_eq!(results.len(), 12);
    for result in results {
        let number = |key: &str| result[key].as_f64().unwrap();
        assert!(["2026-01-31", "popularity", "co-occurrence"].contains(&result["model"].as_str().unwrap()));
        assert_eq!(result["split"], "test");
        assert_eq!(number("targets") + number("no_history") + number("left_out"), f64::from(USERS));
        assert!(number("hr@10") <= number("hr@20") && number("hr@20") <= number("hr@50"));
        assert!(number("ndcg@10") <= number("hr@10"));
        assert!(result["condition"].is_null());
        if result["model"] != "2026-01-31" {
            continue;
        }
        // The figures are those of the stored ranks.
        let (protocol, filtered) = (result["protocol"].as_str().unwrap(), result["filter_seen"] == true);
        let ranks = ranks(&workspace, "2026-01-31", "test", protocol, filtered);
        assert_eq!(number("targets"), ranks.len() as f64);
        for (key, k) in [("hr@10", 10), ("hr@20", 20), ("hr@50", 50)] {
            assert!((number(key) - hit_rate(&ranks, k)).abs() < 1e-9, "{key}: {result}");
        }
        let gain = |rank: u32| if rank <= 10 { 1.0 / f64::from(rank + 1).log2() } else { 0.0 };
        assert!((number("ndcg@10") - mean(&ranks, gain)).abs() < 1e-9, "{result}");
        if protocol == "as-served" && filtered {
            assert_eq!(report["evaluate"]["test"]["hr@10"], result["hr@10"], "{report}");
        }
    }

    let names: Vec<String> = files(&model).into_iter().map(|(name, _)| name).collect();
    let (events, names): (Vec<String>, Vec<String>) =
        names.into_iter().partition(|name| name.starts_with("tensorboard/events.out.tfevents."));
    assert_eq!(events.len(), 1);
    assert_eq!(
        names,
        [
            "config.toml",
            "evaluation-test.json",
            "evaluation-validation.json",
            "lineage.json",
            "metrics.json",
            "metrics.jsonl",
            "model.safetensors",
            "optimizer.safetensors",
            "ranks-test.parquet",
            "ranks-validation.parquet",
            "trainer_state.json",
            "vocabulary.json"
        ]
    );

    // A second run finds everything done.
    let before = files(&workspace.root().join("models"));
    let again = json(&workspace.succeed("climber", &["daily", "--date", "2026-01-31", "--json"]));
    assert_eq!(again, report);
    assert_eq!(files(&workspace.root().join("models")), before);
}

#[test]
fn two_runs_give_the_same_model() {
    let [a, b] = [(); 2].map(|()| {
        let workspace = Workspace::new();
        workspace.succeed("climber", &["daily", "--name", "m"]);
        let files = files(&workspace.root().join("models/m"));
        files.into_iter().filter(|(name, _)| name.ends_with(".safetensors")).collect::<Vec<_>>()
    });
    assert_eq!(a.len(), 2);
    assert!(a == b, "the same seed and log gave different weights");
}

#[test]
fn each_mask_and_loss_trains_and_evaluates() {
    let workspace = Workspace::new();
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    for mask in ["gather", "row", "none"] {
        for loss in ["full", "sampled"] {
            let name = format!("{mask}-{loss}");
            let (mask, loss) = (format!("model.mask={mask}"), format!("pretrain.loss={loss}"));
            let outcome = json(
                &workspace.succeed(
                    "trainer",
                    &[
                        &["pretrain", "--name", &name, "--json", "--set", &mask, "--set", &loss][..],
                        &["--set", "pretrain.uniform_negatives=8", "--set", "pretrain.epochs=10"],
                    ]
                    .concat(),
                ),
            );
            let losses: Vec<f64> =
                outcome["epochs"].as_array().unwrap().iter().map(|e| e["loss"].as_f64().unwrap()).collect();
            assert!(losses[losses.len() - 1] < 0.9 * losses[0], "{name}: {losses:?}");
            let report = json(&workspace.succeed("trainer", &["evaluate", "--model", &name, "--json"]));
            assert!(
                report["results"].as_array().unwrap().iter().any(|result| result["model"] == name.as_str())
            );
        }
    }
}
