//! Roots whose paths mean something else to those who take them for addresses.

use crate::programs::{Workspace, json};

#[test]
fn a_root_may_have_any_name() {
    for name in ["100%", "x%zz", "a b#c?d&e", "ü ß", "a+b=c"] {
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
        // Nothing came to lie anywhere else.
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

#[test]
fn a_root_that_would_be_taken_for_another_one_is_refused() {
    let workspace = Workspace::new();
    let root = workspace.path("a%20b");
    let said = workspace.fail("pipeline", &["ingest", "--root", root.to_str().unwrap()], 1);
    assert!(said.contains("`%20`") && said.contains("rename"), "{said}");
    assert!(!root.exists() && !workspace.path("a b").exists());
}
