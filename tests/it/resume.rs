//! An interrupted and resumed training ends in the same weights as an uninterrupted one.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use schemas::config::Config;
use store::Root;
use store::failpoint::{PAUSE_AT, RESUME};
use terminal::Interrupt;
use trainer::learn::{Status, TrainOptions, TrainOutcome, pretrain};
use trainer::records::{self, EpochMetrics};

use crate::programs::{Workspace, files, stderr};

/// Returns what training produced: weights and optimiser, bit for bit, and its course.
fn trained(workspace: &Workspace, name: &str) -> Vec<(String, Vec<u8>)> {
    files(&workspace.root().join("models").join(name))
        .into_iter()
        .filter(|(name, _)| name.ends_with(".safetensors") || name == "trainer_state.json")
        .collect()
}

fn tables() -> Workspace {
    let workspace = Workspace::new();
    workspace.succeed("pipeline", &["ingest"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    workspace
}

async fn pretrain(config: &Config, name: &str, stop_after: Option<u64>) -> TrainOutcome {
    let root = Root::new(&config.root).unwrap();
    let options =
        TrainOptions { name, fresh: false, interrupt: &Interrupt::default(), stop_after, job: None };
    pretrain::run(config, &root, options).await.unwrap()
}

#[tokio::test]
async fn a_run_cut_into_pieces_ends_in_the_same_weights() {
    let workspace = tables();
    let overrides = ["pretrain.loss=sampled".to_owned(), "pretrain.warmup_steps=4".to_owned()];
    let config = Config::load(&workspace.path("config.toml"), &overrides).unwrap();
    let whole = pretrain(&config, "whole", None).await;
    assert_eq!(whole.status, Status::Trained);
    assert!(whole.steps > 12, "{whole:?}");

    // One step, then four at a time: stops inside epochs and across them.
    let mut stops = 0;
    let mut outcome = pretrain(&config, "pieces", Some(1)).await;
    while outcome.status == Status::Interrupted {
        stops += 1;
        assert!(!workspace.root().join("models/pieces").exists(), "a model appears when it is finished");
        outcome = pretrain(&config, "pieces", Some(4)).await;
    }
    assert!(stops >= 3);
    assert_eq!((outcome.steps, &outcome.best, &outcome.epochs), (whole.steps, &whole.best, &whole.epochs));
    assert!(trained(&workspace, "whole") == trained(&workspace, "pieces"));
    let leftovers = files_below(&workspace.root().join("models/.training"));
    assert_eq!(leftovers, 0, "a finished run leaves nothing behind");
}

fn files_below(directory: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}

#[tokio::test]
async fn an_unfinished_run_with_other_settings_is_refused() {
    let workspace = tables();
    let config = Config::load(&workspace.path("config.toml"), &[]).unwrap();
    pretrain(&config, "m", Some(1)).await;
    let text = workspace.fail("trainer", &["pretrain", "--name", "m", "--set", "seed=2"], 1);
    assert!(text.contains("seed = 1") && text.contains("--fresh"), "{text}");
    workspace.succeed("trainer", &["pretrain", "--name", "m", "--set", "seed=2", "--fresh"]);
}

#[tokio::test]
async fn a_kill_between_publishing_and_tidying_up_is_repaired() {
    let workspace = tables();
    let config = Config::load(&workspace.path("config.toml"), &[]).unwrap();
    pretrain(&config, "m", None).await;
    // What such a kill leaves: the published model, and the checkpoint to resume from, without the best one.
    let before = files(&workspace.root().join("models/m"));
    let latest = workspace.root().join("models/.training/m/latest");
    std::fs::create_dir_all(&latest).unwrap();
    for (name, contents) in &before {
        std::fs::create_dir_all(latest.join(name).parent().unwrap()).unwrap();
        std::fs::write(latest.join(name), contents).unwrap();
    }
    assert_eq!(pretrain(&config, "m", None).await.status, Status::Unchanged);
    assert!(files(&workspace.root().join("models/m")) == before);
    assert_eq!(files_below(&workspace.root().join("models/.training")), 0);
}

#[cfg(unix)]
#[test]
fn a_killed_run_resumes_from_its_last_epoch() {
    let workspace = tables();
    let long = ["--set", "pretrain.epochs=60", "--set", "pretrain.patience=60"];
    let args = [&["pretrain", "--name", "m"][..], &long].concat();
    let mut command = workspace.command("trainer", &args);
    let mut child = command.env(PAUSE_AT, "training:recorded@4").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("paused at"))));
    child.kill().unwrap();
    child.wait().unwrap();
    // It was killed while it trained. Resuming is checked too: a new start would end in the same weights.
    assert!(!workspace.root().join("models/m").exists());
    let output = workspace.succeed("trainer", &args);
    assert!(stderr(&output).contains("resuming `m`"), "{}", stderr(&output));
    workspace.succeed("trainer", &[&["pretrain", "--name", "whole"][..], &long].concat());
    assert!(trained(&workspace, "whole") == trained(&workspace, "m"));
    assert!(recorded(&workspace, "whole") == recorded(&workspace, "m"));
}

#[cfg(unix)]
#[test]
fn a_kill_between_records_and_checkpoint_doubles_no_line() {
    let workspace = tables();
    let args = ["pretrain", "--name", "m", "--set", "pretrain.checkpoint_steps=1"];
    // The records of a step or an epoch are on disk, the checkpoint after them is not.
    let mut command = workspace.command("trainer", &args);
    command.env(PAUSE_AT, "training:recorded@9").stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("paused at training:recorded"))));
    child.kill().unwrap();
    child.wait().unwrap();
    workspace.succeed("trainer", &args);
    workspace.succeed("trainer", &["pretrain", "--name", "whole", "--set", "pretrain.checkpoint_steps=1"]);
    assert!(recorded(&workspace, "whole") == recorded(&workspace, "m"));
}

/// (tag, value)
type Scalars = Vec<(String, f32)>;

/// Returns what a run recorded, without times.
fn recorded(workspace: &Workspace, name: &str) -> (Vec<EpochMetrics>, Vec<(u64, Scalars)>) {
    let model = workspace.root().join("models").join(name);
    let mut lines = records::read(&model.join(records::METRICS)).unwrap().unwrap();
    for (line, epoch) in lines.iter_mut().zip(1..) {
        assert_eq!(line.epoch, epoch);
        (line.seconds, line.targets_per_s) = (0.0, 0.0);
    }
    let events: Vec<_> = std::fs::read_dir(model.join(records::TENSORBOARD)).unwrap().collect();
    assert_eq!(events.len(), 1);
    let events = records::read_events(&events[0].as_ref().unwrap().path()).unwrap().into_iter();
    let scalars = events.map(|event| {
        let timeless = event.scalars.into_iter().filter(|(tag, _)| tag != "epoch/targets_per_s");
        (event.step, timeless.collect())
    });
    (lines, scalars.collect())
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_after_a_step_and_the_same_command_resumes() {
    let workspace = tables();
    let args = ["pretrain", "--name", "m", "--set", "pretrain.epochs=20", "--set", "pretrain.patience=20"];
    let resume = workspace.path("resume");
    let mut command = workspace.command("trainer", &args);
    command.env(PAUSE_AT, "training:recorded@2").env(RESUME, &resume).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("paused at"))));
    let killed = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    // The program notices the signal before it goes on.
    assert!(lines.any(|line| line.is_ok_and(|line| line.contains("press Ctrl-C again"))));
    std::fs::write(&resume, "").unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:?}");
    assert!(rest.last().unwrap().contains("the same command resumes there"), "{rest:?}");

    let output = workspace.succeed("trainer", &args);
    assert!(stderr(&output).contains("resuming `m`"), "{}", stderr(&output));
    let uninterrupted =
        ["pretrain", "--name", "whole", "--set", "pretrain.epochs=20", "--set", "pretrain.patience=20"];
    workspace.succeed("trainer", &uninterrupted);
    assert!(trained(&workspace, "whole") == trained(&workspace, "m"));
}

/// A model is trained again under its name: wherever the program dies, the name belongs to the old or the new model, and the same
/// command ends with the new one.
#[test]
#[cfg(target_os = "linux")]
fn a_model_that_is_replaced_is_the_old_or_the_new_one() {
    use store::failpoint::WITHOUT;

    let workspace = tables();
    let models = workspace.root().join("models");
    let weights = |directory: &std::path::Path| std::fs::read(directory.join("model.safetensors")).unwrap();
    let pretrain = |seed: &'static str, more: &[&'static str]| {
        workspace.command("trainer", &[&["pretrain", "--name", "m", "--set", seed][..], more].concat())
    };
    let succeed = |mut command: std::process::Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
    };
    succeed(pretrain("seed=2", &["--fresh"]));
    let new = weights(&models.join("m"));
    // The names change in one step where the file system can do that, and in two elsewhere.
    for (point, without, stands) in
        [("checkpoint:m:exchanged", "nothing", "m"), ("checkpoint:m:aside", "exchange", "m.previous")]
    {
        succeed(pretrain("seed=1", &["--fresh"]));
        let old = weights(&models.join("m"));
        assert!(old != new);
        let mut command = pretrain("seed=2", &[]);
        command.env(PAUSE_AT, point).env(WITHOUT, without).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("paused at")), "{point}");
        child.kill().unwrap();
        child.wait().unwrap();
        let found = trainer::checkpoint::find(&models.join("m")).unwrap();
        assert_eq!(found, models.join(stands), "{point}");
        assert!(weights(&found) == if stands == "m" { new.clone() } else { old }, "{point}");
        // Every reader finds it.
        workspace.succeed("trainer", &["evaluate", "--model", "m"]);
        succeed(pretrain("seed=2", &[]));
        assert!(weights(&models.join("m")) == new, "{point}");
        assert!(!models.join("m.previous").exists());
        assert_eq!(files_below(&models.join(".training")), 0, "{point}");
    }
}
