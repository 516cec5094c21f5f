//! A day is killed, starved or fed damaged data: the served model stays loadable, and the next run recovers.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use store::failpoint::PAUSE_AT;

use super::{date, day, published, run_day, service};
use crate::programs::{Workspace, copy, json, stderr};

pub(super) const STEPS: [&str; 13] = [
    "ingest",
    "compact",
    "sequences",
    "sft-sets",
    "instructions",
    "prequential",
    "train",
    "sft",
    "evaluate",
    "gate",
    "publish",
    "retention",
    "report",
];

/// A job that runs or is paused. Dropping it kills the job, also when an assertion fails.
pub(crate) struct Paused(pub(super) Child);

impl Deref for Paused {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Paused {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let killed = self.0.kill().and_then(|()| self.0.wait());
        assert!(killed.is_ok() || std::thread::panicking(), "{killed:?}");
    }
}

/// Starts the job and waits until it pauses at `point`.
pub(crate) fn paused(workspace: &Workspace, args: &[&str], point: &str) -> Paused {
    paused_program(workspace, "climber", args, point)
}

/// [`paused`] for any program.
pub(super) fn paused_program(workspace: &Workspace, program: &str, args: &[&str], point: &str) -> Paused {
    let mut command = workspace.command(program, args);
    command.env(PAUSE_AT, point);
    wait_for_pause(command, point)
}

/// Starts `command`, which pauses at `point`, and waits until it does.
pub(super) fn wait_for_pause(mut command: Command, point: &str) -> Paused {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = Vec::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let found = lines.any(|line| {
        said.push(line.unwrap());
        said.last().unwrap().starts_with("paused at")
    });
    let paused = Paused(child);
    assert!(found, "{point} is never reached: {}", said.join("\n"));
    // Later output needs a reader.
    std::thread::spawn(move || lines.for_each(drop));
    paused
}

pub(crate) fn kill(job: Paused) {
    drop(job);
}

/// Returns the served model's name and weights, which must exist whatever happened.
pub(super) fn served(workspace: &Workspace) -> (String, Vec<u8>) {
    let name = published(workspace)["served"].as_str().unwrap().to_owned();
    let status = json(&workspace.command("climber", &["status", "--json"]).output().unwrap());
    // A publisher that died between its two files has decided, but not yet updated published.json.
    let problem = status["problem"].as_str().unwrap_or_default();
    assert!(problem.is_empty() || problem.contains("published.json"), "{status}");
    let weights =
        std::fs::read(workspace.root().join("models").join(&name).join("model.safetensors")).unwrap();
    (name, weights)
}

/// Returns a day's results, without times.
pub(super) fn outcome(record: &Value) -> BTreeMap<&'static str, Value> {
    let mut outcome = BTreeMap::new();
    for (key, value) in [
        ("read", &record["ingest"]["read"]),
        ("accepted", &record["ingest"]["accepted"]),
        ("publish", &record["publish"]["number"]),
        ("guard", &record["evaluate"]["guard"]),
        ("prequential", &record["prequential"]["metrics"]),
        ("events", &record["ingest"]["events"]),
    ] {
        outcome.insert(key, value.clone());
    }
    outcome
}

#[test]
fn killed_anywhere_the_next_run_goes_on() {
    let undisturbed = service(2);
    run_day(&undisturbed, 1);
    let expected = outcome(&run_day(&undisturbed, 2));
    let weights = served(&undisturbed);

    let workspace = service(2);
    run_day(&workspace, 1);
    let before = served(&workspace);
    // At each boundary, and inside steps wherever one leaves something on disk. (There is nothing to compact yet, and `gate`
    // leaves nothing.)
    let boundaries =
        STEPS.iter().flat_map(|&step| [(step, format!("step:{step}")), (step, format!("step:{step}:done"))]);
    let inside = [
        ("ingest", "commit:items:before-log"),
        ("ingest", "commit:events:before-log"),
        ("ingest", "commit:events:after-log"),
        ("sequences", "shard:sequences:unfinished"),
        ("sequences", "commit:sequences:before-log"),
        ("sequences", "commit:refresh:before-log"),
        ("sft-sets", "commit:sft/genre:before-log"),
        ("instructions", "commit:instructions:before-log"),
        ("prequential", "file:ranks-prequential.parquet"),
        ("prequential", "file:evaluation-prequential.json"),
        ("train", "training:recorded"),
        ("sft", "training:recorded@4"),
        ("evaluate", "file:ranks-validation.parquet"),
        ("evaluate", "file:evaluation-validation.json"),
        ("publish", "file:00000002.json"),
        ("publish", "publish:between"),
        ("retention", "retention:models-deleted"),
        ("report", "file:report.html"),
    ];
    let begun = workspace.path("begun");
    copy(&workspace.root(), &begun);
    for (step, point) in boundaries.chain(inside.map(|(step, point)| (step, point.to_owned()))) {
        std::fs::remove_dir_all(workspace.root()).unwrap();
        copy(&begun, &workspace.root());
        let date = date(2);
        kill(paused(&workspace, &day(&date, &[]), &point));
        let written = !point.ends_with(":done");
        assert_eq!(stands_at(&workspace, &date) == Some(step), written, "{point}");
        let now = served(&workspace);
        assert!(now == before || now == weights, "{point}: another model is served");
        let record = json(&workspace.succeed("climber", &day(&date, &[])));
        assert_eq!(outcome(&record), expected, "{point}");
        assert!(served(&workspace) == weights, "{point}: other weights");
    }
}

/// Returns the first step that the day's record does not hold as done.
fn stands_at(workspace: &Workspace, date: &str) -> Option<&'static str> {
    let path = workspace.root().join("jobs/daily").join(date).join("run.json");
    let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    STEPS.into_iter().find(|step| record[step.replace('-', "_")].is_null())
}

#[test]
fn two_runs_do_not_meet() {
    let workspace = service(1);
    let date = date(1);
    let first = paused(&workspace, &day(&date, &[]), "step:sequences");
    let text = workspace.fail("climber", &day(&date, &[]), 1);
    assert!(text.contains("running already") && text.contains(&format!("process {}", first.id())), "{text}");
    let status = json(&workspace.command("climber", &["status", "--json"]).output().unwrap());
    assert_eq!(status["running"][0]["pid"], first.id());
    // A dead holder's lock blocks no run.
    kill(first);
    run_day(&workspace, 1);
}

/// Returns the first file in `directory` whose name has this ending.
fn first(directory: &Path, ending: &str) -> PathBuf {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries.into_iter().find(|path| path.to_str().unwrap().ends_with(ending)).unwrap()
}

#[test]
fn a_damaged_shard_is_built_again() {
    let workspace = service(2);
    run_day(&workspace, 1);
    for table in ["sequences", "sft/genre"] {
        let date = date(2);
        let point = if table == "sequences" { "step:prequential" } else { "step:sft" };
        kill(paused(&workspace, &day(&date, &["--force", "sequences"]), point));
        let shards = workspace.root().join(table);
        // The newest shards belong to the version that the run reads.
        let mut shards: Vec<PathBuf> = std::fs::read_dir(&shards)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|ending| ending == "parquet"))
            .collect();
        shards.sort_by_key(|path| path.metadata().unwrap().modified().unwrap());
        let shard = shards.last().unwrap();
        let mut bytes = std::fs::read(shard).unwrap();
        bytes.fill(0);
        std::fs::write(shard, bytes).unwrap();
        let text = workspace.fail("climber", &day(&date, &[]), 1);
        assert!(text.contains("damaged"), "{table}: {text}");
        served(&workspace);
        workspace.succeed("climber", &day(&date, &[]));
        served(&workspace);
    }
}

#[test]
fn a_damaged_base_leads_to_a_full_training() {
    let workspace = service(2);
    run_day(&workspace, 1);
    let weights = workspace.root().join("models/2026-01-01/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let record = run_day(&workspace, 2);
    assert_eq!(record["plan"]["training"]["kind"], "full", "{}", record["plan"]);
    assert_eq!(served(&workspace).0, "2026-01-02-sft");
}

#[test]
fn a_damaged_served_model_is_reported_and_replaced() {
    let workspace = service(2);
    run_day(&workspace, 1);
    let weights = workspace.root().join("models/2026-01-01-sft/model.safetensors");
    std::fs::write(&weights, b"nothing").unwrap();
    let text = workspace.fail("climber", &["status"], 1);
    assert!(text.contains("problem"), "{text}");
    let record = run_day(&workspace, 2);
    assert!(record["evaluate"]["not_compared"].is_string(), "{record}");
    assert_eq!(served(&workspace).0, "2026-01-02-sft");
}

#[test]
fn a_catalogue_without_its_column_stops_the_day_and_nothing_else() {
    let workspace = service(2);
    run_day(&workspace, 1);
    let before = served(&workspace);
    let items = std::fs::read_to_string(workspace.path("items/2026-01-02.jsonl")).unwrap();
    workspace.write("items/2026-01-02.jsonl", items.replace("item_id", "id"));
    let date = date(2);
    let output = workspace.command("climber", &day(&date, &[])).output().unwrap();
    let text = stderr(&output);
    assert!(!output.status.success() && text.contains("item_id"), "{text}");
    assert!(served(&workspace) == before);
    workspace.write("items/2026-01-02.jsonl", items);
    run_day(&workspace, 2);
}

#[test]
fn a_root_that_cannot_be_written_says_so() {
    let workspace = service(1);
    let root = workspace.root();
    std::fs::create_dir_all(&root).unwrap();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o555)).unwrap();
    let probe = root.join("probe");
    if std::fs::write(&probe, "").is_ok() {
        testkit::skipped("a_root_that_cannot_be_written_says_so", "user who may not write anywhere");
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
        return;
    }
    let text = workspace.fail("climber", &day(&date(1), &[]), 1);
    assert!(text.contains("daily.lock") && text.contains("ermission"), "{text}");
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
    run_day(&workspace, 1);
}

#[test]
fn the_record_itself_may_be_torn() {
    let workspace = service(1);
    run_day(&workspace, 1);
    let path = first(&workspace.root().join("jobs/daily/2026-01-01"), "run.json");
    std::fs::write(&path, "{\"name\": ").unwrap();
    let text = workspace.fail("climber", &day(&date(1), &[]), 1);
    assert!(text.contains("run.json") && text.contains("remove it"), "{text}");
    let text = workspace.fail("climber", &["history"], 1);
    assert!(text.contains("run.json is damaged"), "{text}");
    std::fs::remove_file(&path).unwrap();
    let text = workspace.fail("climber", &["history"], 1);
    assert!(text.contains("run.json is gone"), "{text}");
    // Published models are not overwritten: the new run's models have other names.
    let record = run_day(&workspace, 1);
    assert_eq!(record["publish"]["number"], 2, "{record}");
    assert_eq!(served(&workspace).0, "2026-01-01.2-sft");
    workspace.succeed("climber", &["history"]);
    std::fs::remove_file(workspace.root().join("models/.published/00000001.json")).unwrap();
    let text = workspace.fail("climber", &["history"], 1);
    assert!(text.contains("publication 1 is gone"), "{text}");
}

#[test]
fn a_damaged_publication_stops_no_day() {
    let workspace = service(5);
    run_day(&workspace, 1);
    run_day(&workspace, 2);
    let file = |number: u32| workspace.root().join(format!("models/.published/{number:08}.json"));
    let damage = |number: u32| {
        let whole = std::fs::read(file(number)).unwrap();
        std::fs::write(file(number), &whole[..whole.len() / 2]).unwrap();
        whole
    };
    // The newest publication is also in published.json.
    let whole = damage(2);
    run_day(&workspace, 3);
    assert!(std::fs::read(file(2)).unwrap() == whole);
    // A damaged old publication may need any model: the job deletes no model and goes on.
    damage(1);
    let output = workspace.succeed("climber", &["daily", "--date", &date(4)]);
    assert!(stderr(&output).contains("00000001.json is damaged"), "{}", stderr(&output));
    assert_eq!(published(&workspace)["served"], "2026-01-04-sft");
    assert!(workspace.fail("climber", &["history"], 1).contains("00000001.json"));
    // If the newest publication restores a daily one that is damaged, a model is trained from scratch.
    let rolled_back = json(&workspace.succeed("climber", &["rollback", "--json"]));
    damage(rolled_back["daily"].as_u64().unwrap() as u32);
    let last = run_day(&workspace, 5);
    assert_eq!(last["plan"]["training"]["kind"], "full", "{last}");
    assert_eq!(published(&workspace)["served"], "2026-01-05-sft");
}

#[test]
fn a_run_that_another_day_has_overtaken_goes_on_from_there() {
    let workspace = service(3);
    run_day(&workspace, 1);
    let second = date(2);
    kill(paused(&workspace, &day(&second, &[]), "step:evaluate"));
    run_day(&workspace, 3);
    let learned = published(&workspace)["learned_events"].as_u64().unwrap();
    // The third day's model has learned all of its events.
    let output = workspace.succeed("climber", &day(&second, &[]));
    assert!(stderr(&output).contains("nothing new"), "{}", stderr(&output));
    assert_eq!(published(&workspace)["learned_events"], learned);
    assert_eq!(published(&workspace)["served"], "2026-01-03-sft");
}
