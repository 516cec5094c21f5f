//! The likeliest mistakes: each gives a message that names the file and the field, and the right exit code.

use crate::programs::{Workspace, json, program, stderr};

fn assert_mentions(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn an_unknown_key_names_file_line_and_key() {
    let workspace = Workspace::new();
    let text = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    workspace.write("config.toml", text.replace("max_len", "max_length"));
    for (name, args) in [
        ("pipeline", vec!["ingest"]),
        ("pipeline", vec!["build-sequences"]),
        ("trainer", vec!["pretrain", "--name", "m"]),
        ("climber", vec!["daily"]),
    ] {
        assert_mentions(&workspace.fail(name, &args, 2), &["config.toml", "line", "`max_length`"]);
    }
    assert!(!workspace.root().exists());
}

#[test]
fn a_wrong_override_and_wrong_usage_exit_with_2() {
    let workspace = Workspace::new();
    let text = workspace.fail("climber", &["daily", "--set", "model.heads=3"], 2);
    assert_mentions(&text, &["model.heads", "d = 8"]);
    let text = workspace.fail("trainer", &["pretrain"], 2);
    assert_mentions(&text, &["--name"]);
    let text = workspace.fail("trainer", &["pretrain", "--name", "team/base"], 2);
    assert_mentions(&text, &["--name", "`team/base`"]);
    workspace.fail("pipeline", &["digest"], 2);
}

#[test]
fn a_missing_column_names_the_file_and_the_columns_there_are() {
    let workspace = Workspace::new();
    let text = workspace.fail("pipeline", &["ingest", "--set", "events.columns.item_id=movie"], 1);
    assert_mentions(&text, &["log.csv", "movie", "user", "item", "time"]);
    assert!(!workspace.root().join("events").exists());
}

#[test]
fn a_file_that_is_not_what_its_name_says() {
    let workspace = Workspace::new();
    workspace.write("log.csv.gz", "user,item,time\nu1,i1,1600000000\n");
    workspace.write("log.parquet", "user,item,time\nu1,i1,1600000000\n");
    for name in ["log.csv.gz", "log.parquet"] {
        let path = workspace.path(name);
        assert_mentions(
            &workspace.fail("pipeline", &["ingest", "--events", path.to_str().unwrap()], 1),
            &[name],
        );
    }
}

#[test]
fn an_empty_or_missing_log() {
    let workspace = Workspace::new();
    workspace.write("empty.csv", "user,item,time\n");
    for name in ["empty.csv", "absent.csv", "absent-*.csv"] {
        let path = workspace.path(name);
        assert_mentions(
            &workspace.fail("pipeline", &["ingest", "--events", path.to_str().unwrap()], 1),
            &[name],
        );
    }
}

#[test]
fn bad_records_are_dead_letters_with_their_position_and_the_sum_is_printed() {
    let workspace = Workspace::new();
    let mut log = std::fs::read(workspace.path("log.csv")).unwrap();
    log.extend_from_slice(b"u1,,1600000000\nu1,i1,yesterday\nu1,i1\nu1,i\xff,1600000000\nu0,i1,1600000000\n");
    workspace.write("log.csv", &log);
    let output = workspace.succeed("pipeline", &["ingest", "--json"]);
    let report = json(&output);
    let of = |key: &str| report["events"][key].as_u64().unwrap();
    assert_eq!(of("dead_letters"), 4);
    assert_eq!(of("accepted") + of("duplicates") + of("dead_letters"), of("read"));
    let dead = json(&workspace.succeed("pipeline", &["inspect", "dead_letters", "--json"])).to_string();
    for reason in ["missing_field", "invalid_time", "wrong_type", "invalid_utf8"] {
        assert!(dead.contains(reason), "{reason}: {dead}");
    }
    // Too many of them stop the run, and nothing is stored.
    let other = workspace.path("other");
    let args = ["ingest", "--max-dead-letter-rate", "0.001", "--root", other.to_str().unwrap()];
    assert_mentions(&workspace.fail("pipeline", &args, 1), &["4 of 805", "0.10 %", "row 801"]);
    assert!(!other.join("events").exists());
}

#[test]
fn steps_out_of_order_name_the_command_that_is_missing() {
    let workspace = Workspace::new();
    assert_mentions(&workspace.fail("pipeline", &["build-sequences"], 1), &["`events`", "pipeline ingest"]);
    workspace.succeed("pipeline", &["ingest"]);
    let text = workspace.fail("trainer", &["pretrain", "--name", "m"], 1);
    assert_mentions(&text, &["`sequences`", "pipeline build-sequences"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    workspace.succeed("trainer", &["pretrain", "--name", "m"]);
    assert_mentions(
        &workspace.fail("trainer", &["evaluate", "--model", "n"], 1),
        &["models/n", "models here: m"],
    );
}

#[test]
fn a_condition_that_cannot_be_learned() {
    let workspace = Workspace::new();
    workspace.succeed("pipeline", &["ingest"]);
    let share = ["--set", "sequences.sft_share=0.2", "--set", "conditions.min_pool=10"];
    let build = |condition: &'static str| [&["build-sft", "--condition", condition][..], &share].concat();
    assert_mentions(&workspace.fail("pipeline", &build("gerne"), 2), &["--condition", "`gerne`", "genre"]);
    let text = workspace.fail("pipeline", &["build-sft", "--condition", "genre"], 2);
    assert_mentions(&text, &["sequences.sft_share", "is 0"]);
    let args = [&build("genre")[..], &["--set", "conditions.min_pool=11"]].concat();
    let text = workspace.fail("pipeline", &args, 1);
    assert_mentions(&text, &["conditions.min_pool = 11", "Folk 10", "Jazz 10", "Rock 10"]);
    assert!(!workspace.root().join("sft").exists());

    let report = json(&workspace.succeed("pipeline", &[&build("genre")[..], &["--json"]].concat()));
    let table = &report["tables"][0];
    assert_eq!((table["table"].as_str(), table["unchanged"].as_bool()), (Some("sft/genre"), Some(false)));
    assert!(table["counts"]["examples"]["sft"].as_u64().unwrap() > 0, "{table}");
    let shown = stderr(&workspace.succeed("pipeline", &["inspect", "sft/genre"]));
    assert_mentions(&shown, &["examples by role", "Jazz (10)", "condition = genre"]);
    workspace.succeed("pipeline", &[&["build-sequences"][..], &share].concat());
    workspace.succeed("pipeline", &[&["inspect", "--verify"][..], &share].concat());
    // With everything used for pre-training, the model would learn the examples' targets.
    workspace.succeed("pipeline", &["build-sequences"]);
    let text = workspace.fail("pipeline", &[&["inspect", "--verify", "sft/genre"][..], &share].concat(), 3);
    assert_mentions(&text, &["table `sft/genre`", "shard part-", "user `u", "pre-training target"]);
}

#[test]
fn a_checkpoint_of_another_vocabulary_is_refused() {
    let workspace = Workspace::new();
    workspace.succeed("climber", &["daily", "--name", "m"]);
    // The same items in another order have other indexes.
    let items = std::fs::read_to_string(workspace.path("items.jsonl")).unwrap();
    let reversed: Vec<&str> = items.lines().rev().collect();
    workspace.write("items.jsonl", reversed.join("\n"));
    let other = workspace.path("other");
    let root = ["--root", other.to_str().unwrap()];
    workspace.succeed("pipeline", &[&["ingest"][..], &root].concat());
    workspace.succeed("pipeline", &[&["build-sequences"][..], &root].concat());
    for (name, contents) in crate::programs::files(&workspace.root().join("models/m")) {
        let copy = other.join("models/m").join(name);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(copy, contents).unwrap();
    }
    let text = workspace.fail("trainer", &[&["evaluate", "--model", "m"][..], &root].concat(), 1);
    assert_mentions(&text, &["models/m", "another catalogue"]);
}

#[test]
fn a_damaged_checkpoint_names_the_file() {
    let workspace = Workspace::new();
    workspace.succeed("climber", &["daily", "--name", "m"]);
    let path = workspace.root().join("models/m/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let text = workspace.fail("trainer", &["evaluate", "--model", "m"], 1);
    assert_mentions(&text, &["model.safetensors", "damaged"]);
}

#[test]
fn help_says_what_each_command_does() {
    for (name, commands) in [
        ("pipeline", &["ingest", "build-sequences", "build-sft", "inspect"][..]),
        ("trainer", &["pretrain", "evaluate"]),
        ("climber", &["daily"]),
    ] {
        let output = program(name).arg("--help").output().unwrap();
        assert!(output.status.success());
        let help = String::from_utf8(output.stdout).unwrap();
        for command in commands {
            assert!(help.contains(command), "{help}");
            let output = program(name).args([command, "--help"]).output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            assert_mentions(
                &String::from_utf8(output.stdout).unwrap(),
                &["--config", "--set", "--root", "--json"],
            );
        }
    }
}
