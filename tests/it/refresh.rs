//! New events for an existing model: `build-sequences --since`, `trainer refresh`.

use std::collections::HashMap;
use std::fmt::Write as _;

use schemas::config::Config;
use serde_json::Value;
use store::Root;
use terminal::Interrupt;
use trainer::data::{ItemIndex, SequencesTable};
use trainer::learn::{Status, TrainOptions, TrainOutcome, refresh};

use crate::programs::{Workspace, files, json, stderr};

/// Returns a workspace with a model `base`, and after it a second day: old users meet two new items, and users are new.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    workspace.succeed("trainer", &["pretrain", "--name", "base"]);
    let mut log = String::from("user,item,time\n");
    for user in 0..50 {
        for i in 0..8 {
            let (item, time) = (28 + (user + i) % 5, 1_610_000_000 + user * 1_000 + i * 3_600);
            writeln!(log, "u{user},i{item},{time}").unwrap();
        }
    }
    workspace.write("monday.csv", &log);
    let items = [31, 32].map(|i| format!(r#"{{"item_id": "i{i}", "title": "New {i}", "genre": "Rock"}}"#));
    workspace.write("monday.jsonl", &(items.join("\n") + "\n"));
    workspace.succeed("pipeline", &["ingest", "--events", "monday.csv", "--items", "monday.jsonl"]);
    workspace
}

fn model(workspace: &Workspace, name: &str, file: &str) -> Vec<u8> {
    std::fs::read(workspace.root().join("models").join(name).join(file)).unwrap()
}

fn lineage(workspace: &Workspace, name: &str) -> Value {
    serde_json::from_slice(&model(workspace, name, "lineage.json")).unwrap()
}

#[test]
fn a_model_goes_on_learning() {
    let workspace = workspace();
    let refresh = ["refresh", "--name", "monday", "--from", "base", "--json"];
    let missing = workspace.fail("trainer", &refresh, 1);
    assert!(missing.contains("build-sequences --since"), "{missing}");

    workspace.succeed("pipeline", &["build-sequences", "--since", "0"]);
    let output = workspace.succeed("trainer", &refresh);
    assert_eq!(json(&output)["status"], "trained");
    let said = stderr(&output);
    assert!(said.contains("2 of them new ones") && said.contains("new targets"), "{said}");
    let from = lineage(&workspace, "monday");
    assert_eq!((&from["parent"], &from["fresh"]["since_version"]), (&"base".into(), &"0".into()));
    // Each user's last event of the first day was held out then, and learned on the second.
    assert!(said.contains("what is held out there is learned here"), "{said}");
    let output = workspace.succeed("trainer", &["evaluate", "--model", "monday", "--json"]);
    assert_eq!(json(&output)["learned_events"], 1);
    assert!(stderr(&output).contains("may have learned that since"), "{}", stderr(&output));
    let output = workspace.succeed("trainer", &["evaluate", "--model", "base", "--json"]);
    assert!(json(&output).get("learned_events").is_none() && !stderr(&output).contains("warning"));

    // A second run has nothing to do; with --fresh, it gives the same weights.
    let weights = model(&workspace, "monday", "model.safetensors");
    assert_eq!(json(&workspace.succeed("trainer", &refresh))["status"], "unchanged");
    workspace.succeed("trainer", &[&refresh[..], &["--fresh"]].concat());
    assert!(model(&workspace, "monday", "model.safetensors") == weights);
    assert!(model(&workspace, "base", "model.safetensors") != weights);

    // Only a model from before can be evaluated on new events.
    workspace.fail("trainer", &["evaluate", "--model", "base", "--split", "prequential"], 1);
    workspace.succeed("pipeline", &["build-sequences"]);
    let ask = |model: &'static str| ["evaluate", "--model", model, "--split", "prequential", "--json"];
    let report = json(&workspace.succeed("trainer", &ask("base")));
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), 4);
    for result in results {
        let count = |key: &str| result[key].as_u64().unwrap();
        assert_eq!((&result["split"], &result["model"]), (&"prequential".into(), &"base".into()));
        assert_eq!(count("targets") + count("no_history") + count("left_out"), 50 * 8);
    }
    let learned = workspace.fail("trainer", &ask("monday"), 1);
    assert!(learned.contains("after version 0") && learned.contains("may have learned"), "{learned}");

    // A full build in between changes the source of the old targets, and a refreshed model continues like any other.
    let output =
        workspace.succeed("trainer", &["refresh", "--name", "tuesday", "--from", "monday", "--json"]);
    assert!(stderr(&output).contains("0 of them new ones"), "{}", stderr(&output));
    let state: Value = serde_json::from_slice(&model(&workspace, "tuesday", "trainer_state.json")).unwrap();
    let before: Value = serde_json::from_slice(&model(&workspace, "monday", "trainer_state.json")).unwrap();
    let steps = |state: &Value, key: &str| state[key].as_u64().unwrap();
    assert!(steps(&before, "inherited_steps") > 0);
    assert_eq!(
        steps(&state, "inherited_steps"),
        steps(&before, "inherited_steps") + steps(&before, "steps"),
        "the optimiser's steps go on"
    );
}

#[test]
fn what_cannot_be_refreshed_is_said() {
    let workspace = workspace();
    workspace.succeed("pipeline", &["build-sequences", "--since", "0"]);
    workspace.succeed("trainer", &["refresh", "--name", "monday", "--from", "base"]);
    workspace.succeed("pipeline", &["build-sequences", "--since", "1"]);
    let refresh =
        |name, from, code| workspace.fail("trainer", &["refresh", "--name", name, "--from", from], code);
    let nothing = refresh("next", "monday", 1);
    assert!(nothing.contains("after version 1") && nothing.contains("nothing to learn"), "{nothing}");
    let gap = refresh("next", "base", 1);
    assert!(gap.contains("never be learned") && gap.contains("--since 0"), "{gap}");
    assert!(refresh("base", "base", 2).contains("another name"));
    assert!(refresh("next", "bass", 1).contains("models here: base"));
    // Rows of another split.
    workspace.succeed("pipeline", &["build-sequences", "--since", "0", "--set", "sequences.sft_share=0.3"]);
    let other = refresh("next", "base", 1);
    assert!(other.contains("table refresh") && other.contains("may have learned"), "{other}");
    // Rows of an older log than the held-out ones.
    workspace.succeed("pipeline", &["build-sequences", "--since", "0"]);
    workspace.write("tuesday.csv", "user,item,time\nu1,i1,1620000000\n");
    workspace.succeed("pipeline", &["ingest", "--events", "tuesday.csv"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    let old = refresh("next", "base", 1);
    assert!(old.contains("version 1") && old.contains("`sequences` from version 2"), "{old}");
    assert!(!workspace.root().join("models/next").exists());
}

/// A user's rows in memory.
type Rows<'a> = Vec<(&'a [ItemIndex], &'a [i64], &'a [u32], &'a [u32], u32, bool)>;

fn by_user(sequences: &SequencesTable) -> HashMap<&str, Rows<'_>> {
    let mut rows: HashMap<&str, Rows<'_>> = HashMap::new();
    for row in 0..sequences.rows() {
        let user = sequences.users[sequences.user[row] as usize].as_str();
        let positions = sequences.row(row);
        rows.entry(user).or_default().push((
            &sequences.items[positions.clone()],
            &sequences.ts[positions.clone()],
            &sequences.visible[positions.clone()],
            &sequences.places[positions],
            sequences.target_from[row],
            sequences.leaves_out[row],
        ));
    }
    rows
}

#[tokio::test]
async fn users_drawn_by_lot_are_whole_and_drawn_alike() {
    let workspace = Workspace::new();
    let mut log = String::from("user,item,time\n");
    // Every tenth user has several windows.
    let users: u32 = 4_000;
    for user in 0..users {
        for i in 0..if user % 10 == 0 { 40 } else { 5 } {
            writeln!(log, "u{user},i{},{}", 1 + (user + i) % 30, 1_600_000_000 + i * 3_600).unwrap();
        }
    }
    workspace.write("log.csv", &log);
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    let root = Root::new(workspace.root().to_str().unwrap()).unwrap();
    let whole = SequencesTable::load(&root, 30).await.unwrap();
    let all = by_user(&whole);
    assert!(whole.rows() > 5_000 && all.len() == users as usize);
    let draw = async |seed| {
        let mut lot = trainer::random::generator(seed, "lot", 0);
        SequencesTable::sample(&root, 30, &mut lot, |read, draws| read.rows() > 0 && draws >= 8)
            .await
            .unwrap()
    };
    let seeds = 40;
    let (mut light, mut heavy) = (0, 0);
    let mut drawn: HashMap<String, u32> = HashMap::new();
    for seed in 0..seeds {
        let some = draw(seed).await;
        assert!(some.rows() < whole.rows() && some.source == whole.source);
        for (user, rows) in by_user(&some) {
            assert_eq!(rows, all[user], "{user}");
            *drawn.entry(user.to_owned()).or_default() += 1;
            *if rows.len() > 1 { &mut heavy } else { &mut light } += 1;
        }
    }
    // Each draw takes eight of some twelve runs; users with more rows are not more likely.
    assert_eq!(drawn.len(), users as usize);
    let share = |n: u32, of: u32| f64::from(n) / f64::from(of * seeds as u32);
    let (light, heavy) = (share(light, users * 9 / 10), share(heavy, users / 10));
    assert!((0.55..0.8).contains(&light) && (light - heavy).abs() < 0.05, "{light} {heavy}");
    let (again, once) = (draw(3).await, draw(3).await);
    assert!(again.items == once.items && again.users == once.users, "the same lot draws the same users");
}

#[test]
fn a_checkpoint_of_an_earlier_version_opens() {
    let workspace = workspace();
    let path = workspace.root().join("models/base/config.toml");
    let now = std::fs::read_to_string(&path).unwrap();
    let (first, rest) = now.split_once('\n').unwrap();
    assert_eq!(first, "# checkpoint format 2");
    // No format line, a key with an older name, and two removed keys.
    let before =
        rest.replace("score_temperature", "temperature").replace("[model]", "[model]\nrotary = true");
    std::fs::write(&path, before + "\n[cluster]\nworkers = 4\n").unwrap();
    let said = stderr(&workspace.succeed("trainer", &["evaluate", "--model", "base"]));
    for part in [
        "earlier version",
        "`model.temperature` is `model.score_temperature` now",
        "`model.rotary`",
        "`cluster`",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    workspace.succeed("pipeline", &["build-sequences", "--since", "0"]);
    workspace.succeed("trainer", &["refresh", "--name", "monday", "--from", "base"]);
    let refreshed = std::fs::read_to_string(workspace.root().join("models/monday/config.toml")).unwrap();
    assert!(
        refreshed.starts_with(first)
            && refreshed.contains("score_temperature")
            && !refreshed.contains("rotary")
    );
    std::fs::write(&path, now.replace("format 2", "format 99")).unwrap();
    let newer = workspace.fail("trainer", &["evaluate", "--model", "base"], 1);
    assert!(newer.contains("newer version (format 99"), "{newer}");
}

#[tokio::test]
async fn a_refresh_cut_into_pieces_ends_in_the_same_weights() {
    let workspace = workspace();
    workspace.succeed("pipeline", &["build-sequences", "--since", "0"]);
    let overrides = ["refresh.batch_size=8".to_owned(), "refresh.replay=0.5".to_owned()];
    let config = Config::load(&workspace.path("config.toml"), &overrides).unwrap();
    let whole = continued(&config, "whole", None).await;
    assert!(whole.status == Status::Trained && whole.steps > 6, "{whole:?}");
    let mut outcome = continued(&config, "pieces", Some(2)).await;
    while outcome.status == Status::Interrupted {
        outcome = continued(&config, "pieces", Some(3)).await;
    }
    let trained = |name: &str| {
        let all = files(&workspace.root().join("models").join(name)).into_iter();
        all.filter(|(name, _)| name.ends_with(".safetensors") || name == "trainer_state.json")
            .collect::<Vec<_>>()
    };
    assert!(trained("whole") == trained("pieces"));
}

async fn continued(config: &Config, name: &str, stop_after: Option<u64>) -> TrainOutcome {
    let root = Root::new(&config.root).unwrap();
    let options =
        TrainOptions { name, fresh: false, interrupt: &Interrupt::default(), stop_after, job: None };
    refresh::run(config, &root, "base", options).await.unwrap()
}
