//! Jobs delete and overwrite only what a job made; names decide nothing.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::faults::{kill, paused_program};
use super::refresh::{append, once};
use super::{date, day, published, run_day, service};
use crate::programs::{Workspace, copy, files, json, stderr};

/// Returns name → weights of a person's models.
fn weights(workspace: &Workspace, names: &[&str]) -> BTreeMap<String, Vec<u8>> {
    let read = |name: &str| {
        let path = workspace.root().join("models").join(name).join("model.safetensors");
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    names.iter().map(|&name| (name.to_owned(), read(name))).collect()
}

fn pretrain(workspace: &Workspace, name: &str) {
    workspace
        .succeed("trainer", &["pretrain", "--name", name, "--set", "pretrain.epochs=1", "--set", "seed=7"]);
}

fn models(workspace: &Workspace) -> Vec<String> {
    let entries = std::fs::read_dir(workspace.root().join("models")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        names.filter(|name| !name.starts_with('.') && name != "published.json").collect();
    names.sort();
    names
}

#[test]
fn a_model_named_like_a_refresh_stays() {
    let workspace = service(3);
    run_day(&workspace, 1);
    let next = format!("2026-01-01-p1-e{}", published(&workspace)["learned_events"].as_u64().unwrap() + 1);
    for name in ["beauty-p20-e40", "2026-01-01-p1-e99", &next] {
        pretrain(&workspace, name);
    }
    let models = workspace.root().join("models");
    copy(&models.join("2026-01-01-sft"), &models.join("best-p1-e2"));
    // An unfinished training.
    let mine = ["pretrain", "--name", "mine-p1-e7"];
    kill(paused_program(&workspace, "trainer", &mine, "training:recorded"));
    let names = ["beauty-p20-e40", "2026-01-01-p1-e99", &next, "best-p1-e2"];
    let before = weights(&workspace, &names);

    append(&workspace, 2);
    let refreshed = once(&workspace, &[]);
    assert_eq!(refreshed["outcome"], "published", "{refreshed}");
    assert!(!refreshed["model"].as_str().unwrap().starts_with(&next), "{refreshed}");
    append(&workspace, 3);
    let text = workspace.fail("climber", &["refresh", "--once", "--set", "gate.max_score_shift=0"], 4);
    assert!(text.contains("not published"), "{text}");
    run_day(&workspace, 3);
    assert!(weights(&workspace, &names) == before);
    assert!(models.join(".training/mine-p1-e7").is_dir());
    let outcome = json(&workspace.succeed("trainer", &[&mine[..], &["--json"]].concat()));
    assert_eq!(outcome["status"], "trained");
}

#[test]
fn a_refresh_that_was_stopped_is_tidied_up() {
    let workspace = service(4);
    run_day(&workspace, 1);
    append(&workspace, 2);
    kill(paused_program(&workspace, "climber", &["refresh", "--once"], "refresh:publish"));
    append(&workspace, 3);
    kill(paused_program(&workspace, "climber", &["refresh", "--once"], "training:recorded"));
    append(&workspace, 4);
    assert_eq!(once(&workspace, &[])["outcome"], "published");
    assert_eq!(models(&workspace).len(), 4, "{:?}", models(&workspace));
    let unfinished = files(&workspace.root().join("models/.training"));
    assert!(unfinished.is_empty(), "{:?}", unfinished.iter().map(|file| &file.0).collect::<Vec<_>>());
}

#[test]
fn a_model_with_the_name_of_an_old_run_stays() {
    let workspace = service(5);
    let two = ["--set", "retention.publications=2", "--set", "gate.best_of=0"];
    let run = |number: u32| json(&workspace.succeed("climber", &day(&date(number), &two)));
    for number in 1..=4 {
        run(number);
    }
    assert!(!models(&workspace).contains(&"2026-01-01".to_owned()), "{:?}", models(&workspace));
    // A person reuses the freed names, and replaces the weights of a job's model.
    pretrain(&workspace, "2026-01-01");
    pretrain(&workspace, "2026-01-02-sft");
    let models = workspace.root().join("models");
    std::fs::copy(models.join("2026-01-01/model.safetensors"), models.join("2026-01-03/model.safetensors"))
        .unwrap();
    let names = ["2026-01-01", "2026-01-02-sft", "2026-01-03"];
    let before = weights(&workspace, &names);
    let output = workspace.succeed("climber", &day(&date(5), &two));
    assert!(stderr(&output).contains("`2026-01-03` is not deleted"), "{}", stderr(&output));
    assert!(weights(&workspace, &names) == before);
}

#[test]
fn a_training_of_somebody_with_the_name_of_the_day_goes_on() {
    let workspace = service(1);
    let paths = [workspace.path("events/2026-01-01.csv"), workspace.path("items/2026-01-01.jsonl")];
    let [events, items] = [&paths[0], &paths[1]].map(|path| path.to_str().unwrap());
    workspace.succeed("pipeline", &["ingest", "--events", events, "--items", items]);
    workspace.succeed("pipeline", &["build-sequences"]);
    let mine = ["pretrain", "--name", "2026-01-01", "--set", "pretrain.epochs=5"];
    kill(paused_program(&workspace, "trainer", &mine, "training:recorded@2"));
    assert_eq!(run_day(&workspace, 1)["train"]["model"], "2026-01-01.2");
    let said = stderr(&workspace.succeed("trainer", &mine));
    assert!(said.contains("resuming `2026-01-01`"), "{said}");
}

#[test]
fn names_that_are_paths_delete_nothing() {
    let workspace = service(2);
    run_day(&workspace, 1);
    let keep = workspace.path("keep");
    std::fs::create_dir_all(&keep).unwrap();
    let record = workspace.root().join("jobs/daily/2026-01-01/run.json");
    let text = std::fs::read_to_string(&record).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&text).unwrap();
        change(&mut value);
        std::fs::write(&record, value.to_string()).unwrap();
    };
    let output = |args: &[&str]| workspace.command("climber", args).output().unwrap();
    for path in ["../..", "../../keep", "/", "."] {
        let damages: [&dyn Fn(&mut Value); 3] = [
            &|value| value["models"] = vec![path].into(),
            &|value| value["train"]["model"] = path.into(),
            &|value| value["name"] = path.into(),
        ];
        for damage in damages {
            with(damage);
            let said = stderr(&output(&day(&date(1), &["--force", "retention"])));
            assert!(said.contains("run.json is damaged"), "{said}");
            output(&day(&date(2), &[]));
        }
    }
    std::fs::write(&record, &text).unwrap();
    let publication = workspace.root().join("models/.published/00000001.json");
    // Anyone who writes such a path can leave the hash out.
    let text = std::fs::read_to_string(&publication).unwrap();
    let (text, _) = text.split_once(",\n  \"hash\"").unwrap();
    for path in ["../..", "../../keep"] {
        let damaged = text.replace("\"served\": \"2026-01-01-sft\"", &format!("\"served\": \"{path}\""));
        assert_ne!(damaged, text);
        std::fs::write(&publication, format!("{damaged}\n}}\n")).unwrap();
        output(&day(&date(2), &["--force", "retention"]));
        output(&["refresh", "--once"]);
        output(&["rollback", "--to", "1"]);
    }
    assert!(
        keep.is_dir() && workspace.path("config.toml").is_file() && Path::new(&workspace.root()).is_dir()
    );
}

#[test]
fn an_experiment_is_not_published_unless_it_is_asked_for() {
    let workspace = service(2);
    run_day(&workspace, 1);
    let before = published(&workspace);
    // On the same root and log, where nothing is new.
    let seed = |seed: &str, more: &[&str]| {
        let setting = format!("seed={seed}");
        let name = format!("s{seed}");
        let args = ["daily", "--date", "2026-01-01", "--name", &name, "--set", &setting, "--json"];
        json(&workspace.succeed("climber", &[&args[..], more].concat()))
    };
    for number in ["2", "3"] {
        let record = seed(number, &[]);
        assert_eq!(record["plan"]["training"]["kind"], "full", "{record}");
        assert!(
            record["evaluate"]["test"]["hr@10"].is_number()
                || record["evaluate"]["guard"]["hr@10"].is_number()
        );
    }
    assert_eq!(published(&workspace), before);
    let all = weights(&workspace, &["2026-01-01", "s2", "s3"]);
    assert!(all["s2"] != all["s3"] && all["s2"] != all["2026-01-01"]);
    let history = stderr(&workspace.succeed("climber", &["history"]));
    assert!(history.contains("s2") && history.contains("experiment"), "{history}");
    // The next day continues the served model, and leaves the experiments unchanged.
    let second = run_day(&workspace, 2);
    assert_eq!(second["plan"]["training"]["from"], "2026-01-01");
    assert!(weights(&workspace, &["2026-01-01", "s2", "s3"]) == all);

    let args = ["--publish", "--set", "gate.unmeasured=publish"];
    let args = ["daily", "--date", "2026-01-02", "--name", "s4", "--set", "seed=4", "--full", "--json"]
        .iter()
        .chain(&args)
        .copied()
        .collect::<Vec<_>>();
    let output = workspace.command("climber", &args).output().unwrap();
    assert!([Some(0), Some(4)].contains(&output.status.code()), "{}", stderr(&output));
    if output.status.success() {
        assert_eq!(published(&workspace)["base"], "s4");
    }
}
