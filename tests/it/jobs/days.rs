//! Consecutive days: refreshes, kept instructions, the gate, rollbacks.

use serde_json::Value;

use super::{EVENTS, USERS, date, day, hit_rate, published, ranks, run_day, service};
use crate::programs::{files, json, stderr};

fn metric(record: &Value, step: &str, name: &str) -> f64 {
    record[step]["metrics"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {record}"))
}

#[test]
fn each_day_goes_on_from_the_one_before() {
    let workspace = service(4);
    let first = run_day(&workspace, 1);
    assert_eq!(first["plan"]["training"]["kind"], "full");
    assert_eq!(first["publish"]["number"], 1);
    assert_eq!(first["ingest"]["accepted"], USERS * EVENTS);
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");

    let second = run_day(&workspace, 2);
    assert_eq!(second["plan"]["training"]["kind"], "refresh");
    assert_eq!(second["plan"]["training"]["from"], "2026-01-01");
    // The model of the day before predicted the new events.
    assert_eq!(second["prequential"]["model"], "2026-01-01-sft");
    let ranks = ranks(&workspace, "2026-01-01-sft", "prequential", "as-served", true);
    let predicted = metric(&second, "prequential", "hr@10");
    assert!((predicted - hit_rate(&ranks, 10)).abs() < 1e-9, "{predicted}");
    let asked = second["prequential"]["targets"].as_u64().unwrap();
    assert_eq!(asked, ranks.len() as u64);
    assert!(asked > 0 && asked <= u64::from(USERS * EVENTS), "{asked}");
    let now = published(&workspace);
    assert_eq!((&now["base"], &now["served"]), (&"2026-01-02".into(), &"2026-01-02-sft".into()));
    assert_eq!((&now["number"], &now["parent"]), (&2.into(), &1.into()));
    assert_eq!(now["full_training"], "2026-01-01");
    // The gate compared both models on users that neither learns from.
    assert_eq!(second["evaluate"]["published"][0]["model"], "2026-01-01-sft");
    assert!(second["evaluate"]["guard"]["cc@10 genre"].is_number(), "{second}");

    // A second run of a finished day does nothing.
    let before = files(&workspace.root());
    let output = workspace.succeed("climber", &day(&date(2), &[]));
    assert_eq!(json(&output), second);
    let same = |(name, _): &(String, Vec<u8>)| !name.ends_with("daily.lock");
    let kept = |files: Vec<(String, Vec<u8>)>| files.into_iter().filter(same).collect::<Vec<_>>();
    assert!(kept(files(&workspace.root())) == kept(before), "a finished day was changed");

    // A range runs the missing days in order, and leaves finished ones unchanged.
    let range = json(
        &workspace.succeed("climber", &["daily", "--from", "2026-01-01", "--to", "2026-01-04", "--json"]),
    );
    let runs = range["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 4);
    assert_eq!(runs[1], second);
    assert_eq!(published(&workspace)["served"], "2026-01-04-sft");

    let page = std::fs::read_to_string(workspace.root().join("jobs/daily/2026-01-04/report.html")).unwrap();
    for part in
        ["Daily job of 2026-01-04", "published, as publication 4", "prequential", "genre", "<svg", "Gate"]
    {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("<script"));

    // Any day can be restored, and the next one continues from there.
    assert!(stderr(&workspace.succeed("climber", &["rollback"])).contains("`2026-01-03-sft`"));
    workspace.succeed("climber", &["rollback", "--to", "2"]);
    assert_eq!(published(&workspace)["served"], "2026-01-02-sft");
    let status = json(&workspace.succeed("climber", &["status", "--json"]));
    assert_eq!((&status["intact"], &status["published"]["restores"]), (&true.into(), &2.into()));
    let again = json(&workspace.succeed("climber", &day(&date(4), &["--force", "ingest"])));
    assert_eq!(again["plan"]["training"]["from"], "2026-01-02");
    assert_eq!(published(&workspace)["base"], "2026-01-04.2");
    // Retrieval loads the served model by default.
    let told = stderr(&workspace.succeed("trainer", &["retrieve", "--out", "top.jsonl"]));
    assert!(told.contains("`2026-01-04.2-sft`, served by publication 7"), "{told}");
    let history = json(&workspace.succeed("climber", &["history", "--json"]));
    let numbers: Vec<u64> =
        history["publications"].as_array().unwrap().iter().map(|p| p["number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [7, 6, 5, 4, 3, 2, 1]);
    let message = workspace.fail("climber", &["rollback", "--to", "99"], 1);
    assert!(message.contains("99") && message.contains("climber history"), "{message}");
}

#[test]
fn a_model_that_the_gate_refuses_is_not_served() {
    let workspace = service(3);
    run_day(&workspace, 1);
    let before = published(&workspace);
    let strict = day("2026-01-02", &["--set", "gate.max_score_shift=0"]);
    let output = workspace.command("climber", &strict).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("not published") && text.contains("scores"), "{text}");
    assert_eq!(published(&workspace), before);
    let page = std::fs::read_to_string(workspace.root().join("jobs/daily/2026-01-02/report.html")).unwrap();
    assert!(page.contains("not published"), "{page}");
    // The exit code stays the same until a person decides otherwise.
    assert_eq!(workspace.command("climber", &strict).output().unwrap().status.code(), Some(4));
    workspace.succeed("climber", &day("2026-01-02", &["--force", "gate"]));
    assert_eq!(published(&workspace)["served"], "2026-01-02-sft");
}

#[test]
fn the_next_day_learns_what_a_refused_one_did_not_pass_on() {
    let workspace = service(3);
    run_day(&workspace, 1);
    let learned = published(&workspace)["learned_events"].clone();
    workspace.fail("climber", &day("2026-01-02", &["--set", "gate.max_score_shift=0"]), 4);
    let third = run_day(&workspace, 3);
    assert_eq!(third["plan"]["training"]["since"], learned);
    let asked = third["prequential"]["targets"].as_u64().unwrap();
    assert!(asked > u64::from(USERS * EVENTS), "both days are new to the model: {asked}");
}

#[test]
fn a_day_without_events_changes_nothing_and_says_so() {
    let workspace = service(3);
    run_day(&workspace, 1);
    let before = published(&workspace);
    // An empty day is hardly right: the job fails.
    let log = std::fs::read_to_string(workspace.path("events/2026-01-02.csv")).unwrap();
    workspace.write("events/2026-01-02.csv", "user,item,time\n");
    let text = workspace.fail("climber", &day("2026-01-02", &[]), 1);
    assert!(text.contains("2026-01-02.csv") && text.contains("empty"), "{text}");
    std::fs::remove_file(workspace.path("events/2026-01-02.csv")).unwrap();
    let text = workspace.fail("climber", &day("2026-01-02", &[]), 1);
    assert!(text.contains("2026-01-02.csv"), "{text}");
    assert_eq!(published(&workspace), before);
    // The next day continues, and a late day is learned late.
    run_day(&workspace, 3);
    workspace.write("events/2026-01-02.csv", log);
    let late = run_day(&workspace, 2);
    assert_eq!(late["plan"]["training"]["from"], "2026-01-03");
    assert_eq!(late["ingest"]["accepted"], USERS * EVENTS);

    // Events that were read before are not new.
    std::fs::copy(workspace.path("events/2026-01-03.csv"), workspace.path("events/2026-01-04.csv")).unwrap();
    std::fs::copy(workspace.path("items/2026-01-03.jsonl"), workspace.path("items/2026-01-04.jsonl"))
        .unwrap();
    let output = workspace.succeed("climber", &day("2026-01-04", &[]));
    assert!(stderr(&output).contains("nothing new, what is served stays"), "{}", stderr(&output));
    assert_eq!(published(&workspace)["served"], "2026-01-02-sft");
}

#[test]
fn a_full_training_is_made_when_it_is_due() {
    let workspace = service(3);
    run_day(&workspace, 1);
    run_day(&workspace, 2);
    let due = json(&workspace.succeed("climber", &day("2026-01-03", &["--set", "daily.full_every_days=2"])));
    assert_eq!(due["plan"]["training"]["kind"], "full", "{}", due["plan"]);
    assert_eq!(published(&workspace)["full_training"], "2026-01-03");

    // A log that has doubled since is another reason.
    let workspace = service(2);
    run_day(&workspace, 1);
    let due = json(&workspace.succeed("climber", &day("2026-01-02", &["--set", "daily.full_growth=2"])));
    assert_eq!(due["plan"]["training"]["kind"], "full", "{}", due["plan"]);
    assert!(due["plan"]["reason"].as_str().unwrap().contains("full_growth"), "{}", due["plan"]);
}

#[test]
fn another_architecture_is_trained_from_scratch() {
    let workspace = service(2);
    run_day(&workspace, 1);
    let other = json(&workspace.succeed("climber", &day("2026-01-02", &["--set", "model.layers=2"])));
    assert_eq!(other["plan"]["training"]["kind"], "full");
    assert!(other["plan"]["reason"].as_str().unwrap().contains("[model]"), "{}", other["plan"]);
}

#[test]
fn a_schedule_makes_up_for_days_that_are_missing() {
    let workspace = service(4);
    // The first run has nothing to make up for.
    let runs = |to: &str| {
        let output = workspace.command("climber", &["daily", "--to", to, "--json"]).output().unwrap();
        let ran: Vec<String> = match output.status.success() {
            true => json(&output)["runs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| r["name"].as_str().unwrap().into())
                .collect(),
            false => vec!["failed".into()],
        };
        ran
    };
    assert_eq!(runs("2026-01-01"), ["2026-01-01"]);
    assert_eq!(runs("2026-01-01"), Vec::<String>::new());
    // One night is missed, and on another the log comes late.
    let log = std::fs::read_to_string(workspace.path("events/2026-01-03.csv")).unwrap();
    std::fs::remove_file(workspace.path("events/2026-01-03.csv")).unwrap();
    assert_eq!(runs("2026-01-03"), ["failed"]);
    assert_eq!(published(&workspace)["served"], "2026-01-02-sft");
    workspace.write("events/2026-01-03.csv", log);
    assert_eq!(runs("2026-01-04"), ["2026-01-03", "2026-01-04"]);
    // A day without a record, before finished ones, is made up for too.
    let late = workspace.path("jobs-late");
    std::fs::rename(workspace.root().join("jobs/daily/2026-01-02"), &late).unwrap();
    assert_eq!(runs("2026-01-04")[0], "2026-01-02");
    let text = workspace.fail("climber", &["daily", "--date", "tomorrow"], 2);
    assert!(text.contains("yesterday"), "{text}");
}

#[test]
fn what_is_served_is_never_written_over() {
    let workspace = service(2);
    run_day(&workspace, 1);
    run_day(&workspace, 2);
    let weights = |name: &str| {
        std::fs::read(workspace.root().join("models").join(name).join("model.safetensors")).unwrap()
    };
    let before = [weights("2026-01-02"), weights("2026-01-02-sft")];
    // The base stays; the model tuned from it gets another name.
    let again =
        json(&workspace.succeed("climber", &day("2026-01-02", &["--force", "sft", "--set", "sft.epochs=1"])));
    assert_eq!(
        (&again["train"]["model"], &again["sft"]["model"]),
        (&"2026-01-02".into(), &"2026-01-02.2-sft".into())
    );
    assert_eq!(published(&workspace)["served"], "2026-01-02.2-sft");
    assert!([weights("2026-01-02"), weights("2026-01-02-sft")] == before);
    // A person's model with the name of the day is not overwritten either.
    let workspace = service(1);
    workspace.succeed(
        "pipeline",
        &[
            "ingest",
            "--events",
            workspace.path("events/2026-01-01.csv").to_str().unwrap(),
            "--items",
            workspace.path("items/2026-01-01.jsonl").to_str().unwrap(),
        ],
    );
    workspace.succeed("pipeline", &["build-sequences"]);
    workspace.succeed("trainer", &["pretrain", "--name", "2026-01-01", "--set", "pretrain.epochs=1"]);
    assert_eq!(run_day(&workspace, 1)["train"]["model"], "2026-01-01.2");
}

#[test]
fn a_run_that_was_begun_with_other_settings_begins_anew() {
    let workspace = service(1);
    // The run stops in the middle of a training.
    let child = super::faults::paused(&workspace, &day("2026-01-01", &[]), "training:recorded@2");
    super::faults::kill(child);
    let output = workspace.succeed("climber", &day("2026-01-01", &["--set", "pretrain.learning_rate=2e-2"]));
    assert!(stderr(&output).contains("training begins anew"), "{}", stderr(&output));
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
}
