//! Every command escapes ids, titles and records that would steer a terminal or turn a page around.

use std::process::Output;

use serde_json::Value;
use terminal::shown::steers;

use crate::programs::{Workspace, json, stderr};

/// Escape sequences, C1 controls, bidirectional controls, a line's end.
const NASTY: &str = "\u{1b}[2J\u{1b}]0;x\u{7}\u{9b}31m\u{202e}txt\u{2066}\r.";

/// Returns a workspace with a log and a catalogue full of [`NASTY`] texts.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    let config = config
        .replace("paths = [\"log.csv\"]", "paths = [\"log*.csv\"]\nmax_dead_letter_rate = 0.5")
        .replace("ts = \"time\"", "ts = \"time\", event_id = \"id\", action = \"kind\"")
        .replace("shards = 2", "shards = 2\nsplit = \"none\"\nguard_share = 0.2\nsft_share = 0.2");
    workspace.write(
        "config.toml",
        format!("{config}\n[conditions]\nmin_pool = 5\n\n[sft]\nconditions = [\"genre\"]\nepochs = 1\nbatch_size = 16\n"),
    );
    let log = std::fs::read_to_string(workspace.path("log.csv")).unwrap();
    std::fs::remove_file(workspace.path("log.csv")).unwrap();
    let mut nasty = String::from("user,item,time,id,kind\n");
    for (n, line) in log.lines().skip(1).enumerate() {
        let (user, rest) = line.split_once(',').unwrap();
        let (item, time) = rest.split_once(',').unwrap();
        // All events of one user, and all of one item.
        let user = if user == "u3" { format!("\"{user}{NASTY}\"") } else { user.into() };
        let item = if item == "i7" { format!("\"{item}{NASTY}\"") } else { item.into() };
        nasty.push_str(&format!("{user},{item},{time},\"e{n}{NASTY}\",\"view{NASTY}\"\n"));
    }
    nasty.push_str(&format!("u1,i1,never{},e,view\nu1,\u{1b}[31mi1\n", NASTY.trim_end()));
    workspace.write(&format!("log{}.csv", NASTY.replace(['\r', '/'], "")), nasty);
    let items = std::fs::read_to_string(workspace.path("items.jsonl")).unwrap();
    let mut catalogue = String::new();
    for line in items.lines() {
        let mut item: Value = serde_json::from_str(line).unwrap();
        for key in ["item_id", "title", "genre"] {
            if key != "item_id" || item[key] == "i7" {
                item[key] = format!("{}{NASTY}", item[key].as_str().unwrap()).into();
            }
        }
        catalogue.push_str(&format!("{item}\n"));
    }
    workspace.write("items.jsonl", catalogue);
    workspace
}

/// Asserts that neither stream contains a character that steers the terminal.
fn harmless(output: &Output, what: &str) {
    for written in [&output.stdout, &output.stderr] {
        let text = std::str::from_utf8(written).unwrap();
        let found = text.chars().find(|&c| steers(c) && c != '\n' && c != '\t');
        assert!(found.is_none() && !text.contains("panicked"), "{what}: {found:?} in {text:?}");
    }
}

#[test]
fn nothing_that_is_printed_steers() {
    let workspace = workspace();
    let user = format!("u3{NASTY}");
    let run = |program: &str, args: &[&str]| {
        let output = workspace.command(program, args).output().unwrap();
        harmless(&output, &format!("{program} {args:?}"));
        output
    };
    let succeed = |program: &str, args: &[&str]| {
        let output = run(program, args);
        assert!(output.status.success(), "{program} {args:?}: {}", stderr(&output));
        output
    };
    succeed("climber", &["daily", "--date", "2020-09-20", "--name", "d", "--publish", "--json"]);
    succeed("pipeline", &["ingest", "--json"]);
    succeed("pipeline", &["build-sequences", "--json"]);
    succeed("pipeline", &["inspect", "--json", "--html", "page.html"]);
    let shown = stderr(&succeed("pipeline", &["inspect", "dead_letters"]));
    assert!(shown.contains("\\u{1b}"), "{shown}");
    succeed("pipeline", &["inspect", "--verify", "--json"]);
    let drawn = succeed("pipeline", &["inspect", "--user", &user, "--json", "--html", "user.html"]);
    assert_eq!(json(&drawn)["user"], user.as_str(), "JSON is the same JSON");
    let titled = json(&drawn)["entries"]
        .as_array()
        .unwrap()
        .iter()
        .any(|entry| entry["title"].as_str().is_some_and(|title| title.ends_with(NASTY)));
    assert!(titled, "{}", json(&drawn));
    for page in ["page.html", "user.html"] {
        let text = std::fs::read_to_string(workspace.path(page)).unwrap();
        assert!(!text.chars().any(|c| steers(c) && c != '\n'), "{page}");
        assert!(text.contains("\\u{202e}") && text.contains("Content-Security-Policy"), "{page}");
    }
    let report = workspace.root().join("jobs/daily/2020-09-20/report.html");
    if let Ok(text) = std::fs::read_to_string(&report) {
        assert!(!text.chars().any(|c| steers(c) && c != '\n'));
    }
    let condition = format!("genre=Rock{NASTY}");
    let case = succeed("trainer", &["retrieve", "--case", &user, "--conditions", &condition, "--k", "5"]);
    assert!(stderr(&case).contains("\\u{202e}"), "{}", stderr(&case));
    let rows = String::from_utf8(succeed("trainer", &["retrieve", "--k", "30"]).stdout).unwrap();
    let users = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["user_id"].clone());
    assert!(users.into_iter().any(|id| id == user.as_str()));
    succeed("trainer", &["export", "--out", "export", "--json"]);
    succeed("pipeline", &["instructions", "--json"]);
    succeed("climber", &["status", "--json"]);
    succeed("climber", &["history", "--json"]);
    succeed("pipeline", &["compact", "--json"]);
    succeed("pipeline", &["vacuum", "--dry-run", "--json"]);
    // Errors quote what they were given.
    run("pipeline", &["inspect", "--user", &format!("nobody{NASTY}")]);
    run("trainer", &["retrieve", "--case", &format!("nobody{NASTY}")]);
    run("trainer", &["retrieve", "--case", &user, "--conditions", &format!("genre={NASTY}")]);
    run("pipeline", &["ingest", "--set", &format!("events.columns.item_id={NASTY}")]);
    run("pipeline", &["ingest", "--events", &format!("missing{NASTY}.csv")]);
    succeed("pipeline", &["forget", "--user", &user, "--json"]);
}

/// A closed stderr does not stop a program.
#[test]
fn a_closed_stderr_stops_nothing() {
    let workspace = Workspace::new();
    let mut command = workspace.command("climber", &["daily", "--date", "2020-09-20"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    let status = json(&workspace.succeed("climber", &["status", "--json"]));
    assert_eq!(status["intact"], true, "{status}");
}
