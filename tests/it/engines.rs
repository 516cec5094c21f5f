//! Other engines read our tables, and our programs read what they wrote: delta-rs, DuckDB, Polars, Spark with Delta.

use std::process::{Command, Output};

use crate::programs::{EVENTS_A_USER, Workspace, json};

const USER: &str = "u3";

/// Runs `engines.py ARGS` with the Python of CLIMBER_PYTHON.
fn python(args: &[&str]) -> Output {
    let python = std::env::var("CLIMBER_PYTHON").unwrap_or_else(|_| "python3".into());
    // Tests run in their crate's directory.
    Command::new(python).arg("it/engines.py").args(args).output().unwrap()
}

fn engine(args: &[&str]) -> String {
    let output = python(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the available engines; prints a notice if there are none.
fn engines(test: &str) -> Vec<String> {
    let output = python(&["have"]);
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.lines().last().unwrap_or("there is no Python");
        let needed = "a Python with deltalake, duckdb, polars and pyarrow, named in CLIMBER_PYTHON";
        testkit::skipped(&format!("{test} ({why})"), needed);
        return Vec::new();
    }
    let have: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    if !have.iter().any(|engine| engine == "spark") {
        let needed = "pyspark 4.0.1 and the directory of delta-spark_2.13-4.0.0.jar and delta-storage-4.0.0.jar, named in \
                      CLIMBER_SPARK_JARS";
        testkit::skipped(&format!("{test}, with Spark"), needed);
    }
    have
}

/// Returns a workspace with all tables, built from two files.
fn built() -> Workspace {
    let workspace = Workspace::new();
    workspace.write("more.csv", "user,item,time\nu1,i1,1600000000\nu1,,1600000001\n");
    workspace.succeed("pipeline", &["ingest"]);
    workspace
        .succeed("pipeline", &["ingest", "--events", "more.csv", "--set", "events.max_dead_letter_rate=1"]);
    let share = ["--set", "sequences.sft_share=0.2", "--set", "conditions.min_pool=5"];
    workspace.succeed("pipeline", &[&["build-sequences"][..], &share].concat());
    workspace.succeed("pipeline", &[&["build-sft", "--condition", "genre"][..], &share].concat());
    workspace.succeed("pipeline", &["instructions"]);
    workspace
}

fn path(workspace: &Workspace, table: &str) -> String {
    workspace.root().join(table).display().to_string()
}

fn rows(workspace: &Workspace, table: &str) -> u64 {
    let report = json(&workspace.succeed("pipeline", &["inspect", table, "--json"]));
    report["tables"][0]["rows"].as_u64().unwrap()
}

#[test]
fn all_tables_are_read_by_others() {
    let have = engines("all_tables_are_read_by_others");
    if have.is_empty() {
        return;
    }
    let workspace = built();
    let root = workspace.root().display().to_string();
    for table in ["events", "items", "dead_letters", "sequences", "sft/genre", "instructions"] {
        let expected: Vec<String> = ["deltalake", "polars", "duckdb", "spark"]
            .iter()
            .filter(|engine| have.iter().any(|there| there == *engine))
            .map(|engine| format!("{engine} {}", rows(&workspace, table)))
            .collect();
        assert_eq!(engine(&["read", &root, table]).lines().collect::<Vec<_>>(), expected, "{table}");
    }
}

#[test]
fn what_others_write_is_read_found_and_built_from() {
    let have = engines("what_others_write_is_read_found_and_built_from");
    if have.is_empty() {
        return;
    }
    let workspace = built();
    let before = rows(&workspace, "events");
    let verify = |table: &str| workspace.succeed("pipeline", &["inspect", "--verify", table]);
    engine(&["rewrite", &path(&workspace, "events"), "event_date"]);
    engine(&["rewrite", &path(&workspace, "items")]);
    engine(&["append", &path(&workspace, "events")]);
    engine(&["checkpoint", &path(&workspace, "events")]);
    assert_eq!(rows(&workspace, "events"), before + 1);
    for table in ["events", "items"] {
        verify(table);
    }
    // The catalogue and the log are read again: nothing is new.
    let again = json(&workspace.succeed("pipeline", &["ingest", "--json"]));
    assert_eq!(again["events"]["accepted"], 0, "{again}");
    workspace.succeed("pipeline", &["build-sequences"]);
    verify("sequences");
    engine(&["delete", &path(&workspace, "events"), "u5"]);
    assert_eq!(rows(&workspace, "events"), before + 1 - u64::from(EVENTS_A_USER));
    workspace.succeed("pipeline", &["compact"]);
    let report = json(&workspace.succeed("pipeline", &["forget", "--user", USER, "--json"]));
    let found = report["tables"].as_array().unwrap().iter().find(|table| table["table"] == "events").unwrap();
    assert_eq!(found["rows"], EVENTS_A_USER, "{report}");
    verify("events");
    if have.iter().any(|engine| engine == "spark") {
        let rest = rows(&workspace, "events");
        engine(&["spark-delete", &path(&workspace, "events"), "u6"]);
        assert_eq!(rows(&workspace, "events"), rest - u64::from(EVENTS_A_USER));
        // Spark writes times of 96 bits.
        verify("events");
        engine(&["spark-append", &path(&workspace, "events")]);
        assert_eq!(rows(&workspace, "events"), rest - u64::from(EVENTS_A_USER) + 1);
        workspace.succeed("pipeline", &["compact"]);
        workspace.succeed("pipeline", &["build-sequences"]);
        verify("sequences");
    }
}

#[test]
fn a_deletion_vector_is_refused_by_its_name() {
    if engines("a_deletion_vector_is_refused_by_its_name").is_empty() {
        return;
    }
    let workspace = built();
    engine(&["vector", &path(&workspace, "events"), USER]);
    for command in [
        &["inspect"][..],
        &["inspect", "--verify"],
        &["ingest"],
        &["build-sequences"],
        &["compact"],
        &["vacuum"],
        &["forget", "--user", USER],
    ] {
        let text = workspace.fail("pipeline", command, 1);
        assert!(text.contains("deletionVectors") && text.contains("`events`"), "{command:?}: {text}");
    }
}
