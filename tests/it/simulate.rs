//! `pipeline simulate`: a log with known counts, through the programs.

use std::path::Path;
use std::process::Output;

use crate::programs::{json, program, stderr};

fn run(directory: &Path, args: &[&str]) -> Output {
    program("pipeline").args(args).current_dir(directory).output().unwrap()
}

#[test]
fn a_simulated_log_goes_through_the_commands_that_it_names() {
    let directory = tempfile::tempdir().unwrap();
    let simulate = ["simulate", "--out", "log", "--events", "6000", "--days", "5", "--json"];
    let rates =
        ["--late-rate", "0.1", "--duplicate-rate", "0.05", "--bad-rate", "0.02", "--compress", "gzip"];
    let output = run(directory.path(), &[&simulate[..], &rates].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let report = json(&output);
    let number = |key: &str| report[key].as_u64().unwrap();
    assert!(number("late") > 0 && number("duplicates") > 0, "{report}");
    assert_eq!(report["files"], 5);

    // The commands as printed.
    let text = stderr(&output);
    let commands: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pipeline "))
        .map(|line| line.split_whitespace().chain(["--json"]).collect())
        .collect();
    assert_eq!(commands.len(), 2, "{text}");
    let reports: Vec<_> = commands
        .iter()
        .map(|args| {
            let output = run(directory.path(), args);
            assert!(output.status.success(), "{args:?}: {}", stderr(&output));
            json(&output)
        })
        .collect();
    assert_eq!(reports[0]["events"]["read"], report["records"]);
    assert_eq!(reports[0]["events"]["accepted"], report["events"]);
    assert_eq!(reports[0]["events"]["duplicates"], report["duplicates"]);
    assert_eq!(reports[0]["dead_letters"], report["bad"]);

    let again = run(directory.path(), &simulate);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("log is not empty"), "{}", stderr(&again));
    let wrong = run(directory.path(), &["simulate", "--out", "other", "--events", "0"]);
    assert_eq!(wrong.status.code(), Some(2));
}
