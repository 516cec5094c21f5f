//! Days that cannot succeed, future days, and unmeasured models.

use serde_json::Value;

use super::{date, day, published, run_day, service};
use crate::programs::{Workspace, json, stderr};

/// Runs a schedule's command; returns the exit code, the JSON output and stderr.
fn night(workspace: &Workspace, to: &str, more: &[&str]) -> (Option<i32>, Value, String) {
    let args = [&["daily", "--to", to, "--json"][..], more].concat();
    let output = workspace.command("climber", &args).output().unwrap();
    let said = if output.stdout.is_empty() { Value::Null } else { json(&output) };
    (output.status.code(), said, stderr(&output))
}

fn page(workspace: &Workspace, day: &str) -> String {
    std::fs::read_to_string(workspace.root().join(format!("jobs/daily/{day}/report.html"))).unwrap()
}

#[test]
fn a_lost_day_does_not_stop_the_next() {
    let workspace = service(5);
    run_day(&workspace, 1);
    let lost = workspace.path("events/2026-01-02.csv");
    let log = std::fs::read_to_string(&lost).unwrap();
    std::fs::remove_file(&lost).unwrap();
    // Each night tries again, up to the limit.
    let twice = ["--set", "daily.skip_after_tries=2"];
    let (code, _, text) = night(&workspace, "2026-01-03", &twice);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--skip 2026-01-02"), "{text}");
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
    let (code, said, text) = night(&workspace, "2026-01-03", &twice);
    assert_eq!(code, Some(5), "{text}");
    assert_eq!(said["skipped"][0]["date"], "2026-01-02", "{said}");
    assert!(said["skipped"][0]["reason"].as_str().unwrap().contains("2026-01-02.csv"), "{said}");
    assert!(text.contains("2026-01-02 was left out"), "{text}");
    assert_eq!(published(&workspace)["served"], "2026-01-03-sft");
    for shown in ["2026-01-02", "2026-01-03"] {
        assert!(page(&workspace, shown).contains("left out"), "{shown}");
    }
    let status = stderr(&workspace.succeed("climber", &["status"]));
    assert!(status.contains("left out: 2026-01-02"), "{status}");
    // It is reported once; the later nights succeed.
    let (code, said, text) = night(&workspace, "2026-01-04", &twice);
    assert_eq!((code, said["skipped"].as_array().map(Vec::len)), (Some(0), Some(0)), "{text}");
    assert_eq!(published(&workspace)["served"], "2026-01-04-sft");
    // The log comes late: run by hand, the day is learned.
    std::fs::write(&lost, log).unwrap();
    let late = run_day(&workspace, 2);
    assert_eq!(late["publish"]["number"], 4, "{late}");
    assert_eq!(night(&workspace, "2026-01-05", &twice).0, Some(0));
    let status = stderr(&workspace.succeed("climber", &["status"]));
    assert!(!status.contains("left out"), "{status}");
}

#[test]
fn a_day_may_be_left_out_by_name() {
    let workspace = service(3);
    run_day(&workspace, 1);
    let skip = ["--skip", "2026-01-02"];
    let (code, said, text) = night(&workspace, "2026-01-03", &skip);
    assert_eq!(code, Some(5), "{text}");
    assert_eq!(said["skipped"][0]["date"], "2026-01-02", "{said}");
    assert_eq!(published(&workspace)["served"], "2026-01-03-sft");
    // An unreadable record does not stop the later days either.
    let record = workspace.root().join("jobs/daily/2026-01-02/run.json");
    std::fs::write(&record, "{").unwrap();
    assert_eq!(night(&workspace, "2026-01-03", &[]).0, Some(1));
    let (code, said, text) = night(&workspace, "2026-01-03", &skip);
    assert_eq!((code, said["skipped"][0]["date"].as_str()), (Some(5), Some("2026-01-02")), "{text}");
    // A schedule that keeps --skip does not fail, and a finished day is not withdrawn.
    assert_eq!(night(&workspace, "2026-01-03", &skip).0, Some(0));
    assert_eq!(night(&workspace, "2026-01-03", &["--skip", "2026-01-03"]).0, Some(0));
    let text = workspace.fail("climber", &["daily", "--skip", "2026-01-02"], 2);
    assert!(text.contains("--to"), "{text}");
}

#[test]
fn a_later_day_by_hand_does_not_make_every_night_fail() {
    let workspace = service(5);
    run_day(&workspace, 1);
    std::fs::remove_file(workspace.path("events/2026-01-02.csv")).unwrap();
    run_day(&workspace, 3);
    let codes: Vec<_> =
        ["2026-01-03", "2026-01-04", "2026-01-05"].map(|to| night(&workspace, to, &[]).0).into();
    assert_eq!(codes, [Some(5), Some(0), Some(0)]);
    assert_eq!(published(&workspace)["served"], "2026-01-05-sft");
}

#[test]
#[cfg(unix)]
fn a_day_that_is_killed_each_time_is_left_out_too() {
    let workspace = service(3);
    run_day(&workspace, 1);
    for _ in 0..2 {
        super::faults::kill(super::faults::paused(
            &workspace,
            &["daily", "--to", "2026-01-02"],
            "step:sequences",
        ));
    }
    let (code, said, text) = night(&workspace, "2026-01-03", &["--set", "daily.skip_after_kills=2"]);
    assert_eq!(code, Some(5), "{text}");
    let reason = said["skipped"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("killed 2 times in step sequences"), "{said}");
    assert_eq!(published(&workspace)["served"], "2026-01-03-sft");
    // Its events were read, and are learned with those of the next day.
    let learned = said["runs"][0]["prequential"]["targets"].as_u64().unwrap();
    assert!(learned > u64::from(super::USERS * super::EVENTS), "{learned}");
}

/// Power cuts, restarts and `kill -9` say nothing about the day.
#[test]
#[cfg(unix)]
fn kills_from_outside_leave_no_sound_day_out() {
    let workspace = service(2);
    run_day(&workspace, 1);
    // Some kills in one step, and more in others.
    for point in
        ["step:ingest", "step:ingest", "step:sequences", "step:train", "step:evaluate", "step:publish"]
    {
        super::faults::kill(super::faults::paused(&workspace, &["daily", "--to", "2026-01-02"], point));
    }
    let limits = ["--set", "daily.skip_after_tries=2", "--set", "daily.skip_after_kills=3"];
    let (code, said, text) = night(&workspace, "2026-01-02", &limits);
    assert_eq!((code, said["skipped"].as_array().map(Vec::len)), (Some(0), Some(0)), "{text}");
    assert_eq!(published(&workspace)["served"], "2026-01-02-sft");
    let record = &said["runs"][0];
    assert_eq!((&record["tries"], &record["begun"]), (&0.into(), &false.into()), "{record}");
}

#[test]
#[cfg(unix)]
fn a_stop_that_was_asked_for_is_no_try() {
    let workspace = service(2);
    run_day(&workspace, 1);
    // Ingest and retention stop at a point of their choice, other steps are dropped.
    workspace.succeed("pipeline", &["forget", "--user", "u7"]);
    for point in ["step:ingest", "step:sequences", "step:retention"] {
        let go_on = workspace.path(&format!("go-on-{}", point.replace(':', "-")));
        let mut command = workspace.command("climber", &["daily", "--date", "2026-01-02"]);
        command.env(store::failpoint::PAUSE_AT, point).env(store::failpoint::RESUME, &go_on);
        let mut child = super::faults::wait_for_pause(command, point);
        let pid = child.id().to_string();
        assert!(std::process::Command::new("kill").arg(&pid).status().unwrap().success());
        std::thread::sleep(std::time::Duration::from_millis(500));
        std::fs::write(&go_on, "").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{point}");
        let record = std::fs::read(workspace.root().join("jobs/daily/2026-01-02/run.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        assert_eq!((&record["tries"], &record["failure"]["stopped"]), (&0.into(), &true.into()), "{record}");
        assert_eq!((&record["begun"], &record["kills"]), (&false.into(), &Value::Null), "{record}");
        assert!(page(&workspace, "2026-01-02").contains("stopped in step"), "{point}");
    }
    run_day(&workspace, 2);
}

#[test]
fn days_that_are_still_to_come_are_refused() {
    let workspace = service(1);
    for args in [
        &["--date", "2062-01-01"][..],
        &["--to", "2062-01-01"],
        &["--from", "2062-01-01", "--to", "2062-01-02"],
        &["--to", "yesterday", "--skip", "2062-01-01"],
        &["--date", "9999-12-31"],
    ] {
        let text = workspace.fail("climber", &[&["daily"][..], args].concat(), 2);
        assert!(text.contains("still to come"), "{text}");
    }
    // An experiment may not take the name of another day either: it would block that day's run.
    let args = ["daily", "--date", "2026-01-01", "--name", "2026-01-02"];
    assert!(workspace.fail("climber", &args, 2).contains("another name"));
    assert!(!workspace.root().join("jobs").exists());
}

#[test]
fn a_catalogue_of_the_day_is_read_as_that_of_yesterday() {
    let workspace = service(1);
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    workspace.write("config.toml", config.replace("events/{date}.csv", "events/2026-01-01.csv"));
    let text = workspace.fail("climber", &["daily"], 1);
    let yesterday = (chrono::Utc::now().date_naive() - chrono::Days::new(1)).to_string();
    assert!(text.contains(&format!("items/{yesterday}.jsonl")), "{text}");
}

#[test]
fn what_is_not_measured_is_not_published() {
    let workspace = service(2);
    let first = date(1);
    for (settings, says) in [
        (&["--set", "gate.min_targets=100000"][..], "fewer than gate.min_targets"),
        (&["--force", "sequences", "--set", "sequences.guard_share=0"], "nothing is held out"),
    ] {
        let text = workspace.fail("climber", &day(&first, settings), 4);
        assert!(text.contains("not measured") && text.contains(says), "{text}");
        assert!(page(&workspace, &first).contains("not measured"));
    }
    assert!(!workspace.root().join("models/published.json").exists());
    let settings =
        ["--force", "gate", "--set", "gate.unmeasured=publish", "--set", "gate.min_targets=100000"];
    workspace.succeed("climber", &day(&first, &settings));
    assert_eq!(published(&workspace)["number"], 1);
}

#[test]
#[cfg(unix)]
fn what_was_taken_back_is_not_published_by_a_run_that_goes_on() {
    use super::faults::{kill, paused};
    let workspace = service(2);
    run_day(&workspace, 1);
    let second = date(2);
    // The publication exists, but its run could not record it.
    kill(paused(&workspace, &day(&second, &[]), "publish:between"));
    workspace.succeed("climber", &["rollback"]);
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
    let output = workspace.succeed("climber", &day(&second, &[]));
    assert!(stderr(&output).contains("was taken back"), "{}", stderr(&output));
    assert_eq!(published(&workspace)["served"], "2026-01-01-sft");
}
