//! Roots whose paths mean something else when parsed as URLs.

use crate::programs::{Workspace, json};

/// The jobs, and the models that they make.
#[test]
fn jobs_run_in_a_root_of_any_name() {
    let workspace = crate::jobs::service(2);
    let root = workspace.path("a%20b%2F");
    let root = root.to_str().unwrap();
    let run =
        |args: &[&str]| json(&workspace.succeed("climber", &[args, &["--root", root, "--json"]].concat()));
    assert_eq!(run(&["daily", "--date", "2026-01-01"])["publish"]["number"], 1);
    let log = workspace.path("events/2026-01-02.csv");
    let ingest = ["ingest", "--events", log.to_str().unwrap(), "--set", "items.paths=[]", "--root", root];
    workspace.succeed("pipeline", &ingest);
    assert_eq!(run(&["refresh", "--once"])["outcome"], "published");
    assert_eq!(run(&["daily", "--date", "2026-01-02"])["publish"]["number"], 3);
    assert_eq!(run(&["status"])["problem"], serde_json::Value::Null);
    workspace.succeed(
        "trainer",
        &["evaluate", "--model", "2026-01-02-sft", "--split", "validation", "--root", root],
    );
    workspace.succeed("trainer", &["retrieve", "--case", "u1", "--root", root]);
    workspace.succeed("pipeline", &["inspect", "--verify", "--root", root]);
    assert!(!workspace.path("a b").exists() && !workspace.root().exists());
}

#[test]
fn a_root_may_have_any_name() {
    for name in ["100%", "x%zz", "a%20b", "%2525", "%2e%2E", "%FF", "a b#c?d&e", "ü ß", "a+b=c"] {
        let workspace = Workspace::new();
        let root = workspace.path(name);
        let root = root.to_str().unwrap();
        let run = |args: &[&str]| {
            json(&workspace.succeed("pipeline", &[args, &["--root", root, "--json"]].concat()))
        };
        let first = run(&["ingest"]);
        assert_eq!(first["events"]["accepted"], 800, "{name}");
        assert_eq!(run(&["ingest"])["events"]["duplicates"], 800, "{name}");
        workspace.write("more.csv", "user,item,time\nu1,i2,1600000001\nu1,i3,1600000002\n");
        assert_eq!(run(&["ingest", "--events", "more.csv"])["events"]["accepted"], 2, "{name}");
        assert_eq!(run(&["build-sequences"])["table"], "sequences", "{name}");
        let settings = ["--set", "sequences.sft_share=0.5", "--set", "conditions.min_pool=5"];
        run(&["build-sequences", settings[0], settings[1]]);
        run(&[&["build-sft", "--condition", "genre"][..], &settings].concat());
        run(&["instructions", "--set", "conditions.min_pool=1"]);
        run(&["compact"]);
        run(&["forget", "--user", "u1"]);
        run(&["vacuum"]);
        run(&["inspect"]);
        run(&["inspect", "events"]);
        workspace.succeed("pipeline", &["inspect", "--verify", "events", "--root", root]);
        assert_eq!(run(&["ingest"])["events"]["forgotten"], 20, "{name}");
        // Nothing was written anywhere else.
        let mut names: Vec<String> = std::fs::read_dir(workspace.path("."))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = vec!["config.toml", "items.jsonl", "log.csv", "more.csv", "state", name];
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}
