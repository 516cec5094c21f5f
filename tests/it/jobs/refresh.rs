//! `climber refresh`, between two daily jobs.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::Value;
use store::failpoint::{PAUSE_AT, RESUME};

use super::faults::{Paused, kill, paused};
use super::{date, published, run_day, service};
use crate::programs::{Workspace, json, stderr};

/// Appends a file of events, as a consumer would.
pub(super) fn append(workspace: &Workspace, day: u32) {
    let file = workspace.path(&format!("events/{}.csv", date(day)));
    workspace.succeed("pipeline", &["ingest", "--events", file.to_str().unwrap(), "--set", "items.paths=[]"]);
}

pub(super) fn once(workspace: &Workspace, more: &[&str]) -> Value {
    json(&workspace.succeed("climber", &[&["refresh", "--once", "--json"][..], more].concat()))
}

#[test]
fn new_events_become_a_served_model_that_still_follows() {
    let workspace = service(4);
    let text = workspace.fail("climber", &["refresh", "--once"], 1);
    assert!(text.contains("climber daily"), "{text}");
    run_day(&workspace, 1);
    assert_eq!(once(&workspace, &[])["outcome"], "nothing-new");

    append(&workspace, 2);
    assert_eq!(once(&workspace, &["--set", "near_real_time.min_events=1000"])["outcome"], "nothing-new");
    let refreshed = once(&workspace, &[]);
    assert_eq!((&refreshed["outcome"], &refreshed["new_events"]), (&"published".into(), &240.into()));
    let now = published(&workspace);
    assert_eq!((&now["kind"], &now["daily"], &now["number"]), (&"refresh".into(), &1.into(), &2.into()));
    let served = now["served"].as_str().unwrap().to_owned();
    assert!(served.starts_with("2026-01-01-p1-e") && served.ends_with("-sft"), "{served}");
    let lineage = workspace.root().join("models").join(&served).join("lineage.json");
    let lineage: Value = serde_json::from_slice(&std::fs::read(lineage).unwrap()).unwrap();
    assert_eq!(lineage["taught_by"], "2026-01-01-sft", "the conditions begin where the daily job left them");
    // The second refresh continues the first.
    append(&workspace, 3);
    let base = now["base"].as_str().unwrap().to_owned();
    once(&workspace, &[]);
    let now = published(&workspace);
    let lineage = workspace.root().join("models").join(now["base"].as_str().unwrap()).join("lineage.json");
    let lineage: Value = serde_json::from_slice(&std::fs::read(lineage).unwrap()).unwrap();
    assert_eq!(lineage["parent"], base);

    // The daily job starts from the last daily job, and learns all events since.
    let daily = run_day(&workspace, 4);
    assert_eq!(daily["plan"]["training"]["from"], "2026-01-01");
    assert_eq!(daily["prequential"]["model"], "2026-01-01-sft");
    assert_eq!(daily["evaluate"]["published"][0]["number"], 3);
    let now = published(&workspace);
    assert_eq!((&now["kind"], &now["parent"], &now["number"]), (&"daily".into(), &3.into(), &4.into()));
    assert_eq!(once(&workspace, &[])["outcome"], "nothing-new");
    let status = stderr(&workspace.succeed("climber", &["status"]));
    assert!(status.contains("last refresh") && status.contains("2026-01-04-sft"), "{status}");
}

#[test]
fn a_refused_refresh_leaves_nothing_behind() {
    let workspace = service(2);
    run_day(&workspace, 1);
    append(&workspace, 2);
    let before = published(&workspace);
    let text = workspace.fail("climber", &["refresh", "--once", "--set", "gate.max_score_shift=0"], 4);
    assert!(text.contains("not published"), "{text}");
    assert_eq!(published(&workspace), before);
    let models: Vec<String> = std::fs::read_dir(workspace.root().join("models"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.') && name != "published.json")
        .collect();
    assert_eq!(models.len(), 2, "{models:?}");
}

#[test]
fn a_refresh_that_was_overtaken_starts_again_from_there() {
    let workspace = service(3);
    run_day(&workspace, 1);
    append(&workspace, 2);
    let go_on = workspace.path("go-on");
    let mut command = workspace.command("climber", &["refresh", "--once", "--json"]);
    command.env(PAUSE_AT, "refresh:publish").env(RESUME, &go_on);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut child = Paused(child);
    assert!(lines.any(|line| line.unwrap().starts_with("paused at")));
    // The daily job learns the refresh's events, and more.
    run_day(&workspace, 3);
    std::fs::write(&go_on, "").unwrap();
    let said: Vec<String> = lines.map(|line| line.unwrap()).collect();
    assert!(child.wait().unwrap().success(), "{said:?}");
    assert!(said.iter().any(|line| line.contains("starting again")), "{said:?}");
    assert_eq!(published(&workspace)["served"], "2026-01-03-sft");
}

#[test]
fn the_loop_follows_the_log_and_ends_when_it_is_asked_to() {
    let workspace = service(3);
    run_day(&workspace, 1);
    let mut command =
        workspace.command("climber", &["refresh", "--set", "near_real_time.poll_interval=50ms"]);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut child = Paused(child);
    for day in [2, 3] {
        append(&workspace, day);
        let told = lines.any(|line| line.unwrap().starts_with(&format!("publication {day}:")));
        assert!(told, "the loop has ended");
        assert_eq!(published(&workspace)["number"], day);
    }
    let text = workspace.fail("climber", &["refresh", "--once"], 1);
    assert!(text.contains("running already"), "{text}");
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn killed_anywhere_a_refresh_leaves_what_is_served() {
    let workspace = service(2);
    run_day(&workspace, 1);
    append(&workspace, 2);
    for point in ["commit:refresh:before-log", "training:recorded", "refresh:publish"] {
        kill(paused(&workspace, &["refresh", "--once"], point));
        workspace.succeed("climber", &["status"]);
        assert_eq!(published(&workspace)["number"], 1, "{point}");
    }
    // Between its two files, a publication is decided but not yet served.
    kill(paused(&workspace, &["refresh", "--once"], "publish:between"));
    assert_eq!(published(&workspace)["number"], 1);
    assert_eq!(once(&workspace, &[])["outcome"], "nothing-new");
    assert_eq!(published(&workspace)["number"], 2);
}

#[test]
fn the_loop_does_not_undo_a_rollback() {
    let workspace = service(3);
    run_day(&workspace, 1);
    append(&workspace, 2);
    once(&workspace, &[]);
    workspace.succeed("climber", &["rollback"]);
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
    let mut command =
        workspace.command("climber", &["refresh", "--set", "near_real_time.poll_interval=50ms"]);
    command.env(PAUSE_AT, "refresh:looked@100");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let child = Paused(child);
    assert!(lines.any(|line| line.unwrap().contains("waiting for the next daily job")));
    append(&workspace, 3);
    // The loop has looked a hundred times, also at the new events.
    assert!(lines.any(|line| line.unwrap().starts_with("paused at")));
    assert_eq!(published(&workspace)["number"], 3);
    kill(child);
    // A scheduled refresh waits as well, however often it runs.
    for _ in 0..2 {
        assert_eq!(once(&workspace, &[])["outcome"], "waiting");
        assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
    }
    // With --after-rollback it continues, under another name than the withdrawn model.
    let refreshed = once(&workspace, &["--after-rollback"]);
    assert_eq!(refreshed["outcome"], "published");
    assert!(refreshed["model"].as_str().unwrap().starts_with("2026-01-01-p3-e"), "{refreshed}");
}

#[test]
fn a_refresh_that_a_rollback_overtakes_does_not_undo_it() {
    let workspace = service(3);
    run_day(&workspace, 1);
    append(&workspace, 2);
    once(&workspace, &[]);
    append(&workspace, 3);
    let go_on = workspace.path("go-on");
    let mut command =
        workspace.command("climber", &["refresh", "--set", "near_real_time.poll_interval=50ms"]);
    command.env(PAUSE_AT, "refresh:publish").env(RESUME, &go_on);
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let child = Paused(child);
    assert!(lines.any(|line| line.unwrap().starts_with("paused at")));
    workspace.succeed("climber", &["rollback"]);
    std::fs::write(&go_on, "").unwrap();
    assert!(lines.any(|line| line.unwrap().contains("waiting for the next daily job")));
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
    kill(child);
}

#[test]
fn nobody_who_was_forgotten_comes_back_by_older_tables() {
    let workspace = service(3);
    run_day(&workspace, 1);
    append(&workspace, 2);
    let in_ranks = || {
        let models = workspace.root().join("models");
        crate::programs::files(&models).into_iter().any(|(name, _)| {
            name.ends_with(".parquet")
                && trainer::judge::stored::read_ranks(&models.join(&name))
                    .is_ok_and(|rows| rows.unwrap_or_default().iter().any(|row| guards(&row.user_id)))
        })
    };
    assert!(in_ranks());
    // All held-out users: their ranks are stored.
    let users: Vec<String> =
        (0..super::USERS).map(|user| format!("u{user}")).filter(|user| guards(user)).collect();
    let named: Vec<&str> = users.iter().flat_map(|user| ["--user", user]).collect();
    workspace.succeed("pipeline", &[&["forget"][..], &named].concat());
    assert!(!in_ranks());
    // A refresh reads the last daily job's tables as they were.
    once(&workspace, &[]);
    assert!(!in_ranks(), "a refresh has brought somebody back");
    // All held-out users are gone.
    let unmeasured = ["daily", "--date", "2026-01-03", "--set", "gate.unmeasured=publish"];
    let said = stderr(&workspace.succeed("climber", &unmeasured));
    assert!(said.contains("who were forgotten were swept out"), "{said}");
    assert!(!in_ranks());
}

/// True for some of the users, guards among them.
fn guards(user: &str) -> bool {
    ["u1", "u2", "u3", "u4", "u5", "u6", "u7", "u8", "u9"].iter().any(|begin| user.starts_with(begin))
}

/// Another engine, or a vacuum that ignored the publication, has cleaned the log of `events`.
#[tokio::test]
async fn where_the_log_tells_nothing_new_a_refresh_waits_for_the_next_day() {
    let workspace = service(4);
    run_day(&workspace, 1);
    append(&workspace, 2);
    append(&workspace, 3);
    let root = store::Root::new(workspace.root().to_str().unwrap()).unwrap();
    let events = root.snapshot("events").await.unwrap().unwrap();
    deltalake::checkpoints::create_checkpoint(events.delta(), None).await.unwrap();
    store::clean::clean_log(&root, "events", events.version()).unwrap();
    let output = workspace.succeed("climber", &["refresh", "--once"]);
    assert!(stderr(&output).contains("the next daily job trains from scratch"), "{}", stderr(&output));
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
    assert_eq!(run_day(&workspace, 4)["plan"]["training"]["kind"], "full");
}
