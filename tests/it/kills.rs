//! A program killed at any commit and run again leaves the same tables as an undisturbed run.
//!
//! The kill is real: the program stops at a named point (`store::failpoint`) and gets SIGKILL there, so no destructor and no
//! clean-up runs.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use arrow::util::display::array_value_to_string;
use schemas::tables::{DEAD_LETTERS, EVENTS, ITEMS, SEQUENCES};
use store::Root;
use store::failpoint::PAUSE_AT;

const SFT_GENRE: &str = "sft/genre";

use crate::programs::{Workspace, copy};

/// Table → its rows as text, sorted, without values that a second run cannot repeat; missing tables have no entry.
type Contents = BTreeMap<&'static str, Vec<String>>;

async fn contents(root: &Path) -> Contents {
    let root = Root::new(root.to_str().unwrap()).unwrap();
    let mut tables = Contents::new();
    for table in [EVENTS, ITEMS, DEAD_LETTERS, SEQUENCES, SFT_GENRE] {
        let Some(snapshot) = root.snapshot(table).await.unwrap() else { continue };
        let schema = snapshot.delta().snapshot().unwrap().snapshot().arrow_schema();
        let columns: Vec<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let mut rows = Vec::new();
        for shard in snapshot.shards() {
            let stored: Vec<&str> = columns
                .iter()
                .map(String::as_str)
                .filter(|&column| column != "rejected_at" && !shard.partition.contains_key(column))
                .collect();
            for batch in snapshot.read_shard(shard, &stored).await.unwrap() {
                for row in 0..batch.num_rows() {
                    let values = batch.columns().iter().map(|c| array_value_to_string(c, row).unwrap());
                    rows.push(format!("{:?} {}", shard.partition, values.collect::<Vec<_>>().join(" | ")));
                }
            }
        }
        rows.sort();
        tables.insert(table, rows);
    }
    tables
}

/// One command, and the tables it starts from.
struct Scene<'a> {
    workspace: &'a Workspace,
    args: &'a [&'a str],
    /// Root that every run gets a copy of.
    before: &'a Path,
}

impl Scene<'_> {
    fn args<'a>(&'a self, root: &'a Path) -> Vec<&'a str> {
        [self.args, &["--root", root.to_str().unwrap()]].concat()
    }

    fn start(&self, name: &str) -> std::path::PathBuf {
        let root = self.workspace.path(name);
        let _ = std::fs::remove_dir_all(&root);
        if self.before.exists() {
            copy(self.before, &root);
        }
        root
    }

    /// Runs the command up to `point` and kills it there.
    fn kill_at(&self, point: &str, root: &Path, scratch: &Path) {
        let mut command = self.workspace.command("pipeline", &self.args(root));
        command.env(PAUSE_AT, point).env("TMPDIR", scratch).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = Vec::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let paused = lines.any(|line| {
            said.push(line.unwrap());
            said.last().unwrap().starts_with("paused at")
        });
        assert!(paused, "{:?} never reaches {point}: {}", self.args, said.join("\n"));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills the command at each point, runs it again, and compares the tables with those of an undisturbed run.
    async fn check(&self, points: &[&str]) {
        let undisturbed = self.start("undisturbed");
        let before = contents(&undisturbed).await;
        self.workspace.succeed("pipeline", &self.args(&undisturbed));
        let after = contents(&undisturbed).await;
        assert_ne!(before, after);
        for point in points {
            let (root, scratch) = (self.start("killed"), self.workspace.path("scratch"));
            std::fs::create_dir_all(&scratch).unwrap();
            self.kill_at(point, &root, &scratch);
            // Each commit is there as a whole or not at all.
            for (table, rows) in contents(&root).await {
                let whole = Some(&rows) == before.get(table) || Some(&rows) == after.get(table);
                assert!(whole, "{table} after a kill at {point}: {rows:?}");
            }
            let mut left = std::fs::read_dir(&scratch).unwrap().map(|entry| entry.unwrap().file_name());
            assert!(left.next().is_none(), "{left:?} after a kill at {point}");
            self.workspace.succeed("pipeline", &self.args(&root));
            let repaired = contents(&root).await;
            for (table, rows) in &after {
                let found = repaired.get(table).unwrap();
                let pair = rows.iter().zip(found).find(|(a, b)| a != b);
                assert!(rows == found, "{table} after a kill at {point}: {pair:?}");
            }
        }
    }
}

/// Returns a workspace whose log has bad records and an item without a catalogue entry, and a second log.
fn workspace() -> Workspace {
    let workspace = Workspace::new();
    let mut log = std::fs::read_to_string(workspace.path("log.csv")).unwrap();
    log.push_str("u1,i1\nu1,,1600000000\nu1,unlisted,1600000000\n");
    workspace.write("log.csv", &log);
    let more: String = log.lines().skip(700).map(|line| format!("{line}\n")).collect();
    workspace.write(
        "more.csv",
        format!("user,item,time\n{more}u2,i3,soon\nu1,new,1600000001\nu2,i2,1500000000\n"),
    );
    workspace
}

const INGEST_POINTS: &[&str] = &[
    "shard:events:unfinished",
    "shard:events:unfinished@2",
    "shard:items:unfinished",
    "shard:dead_letters:unfinished",
    "ingest:before-commits",
    "commit:dead_letters:before-log",
    "commit:dead_letters:after-log",
    "commit:items:before-log",
    "commit:items:after-log",
    "commit:events:before-log",
    "commit:events:after-log",
];

#[tokio::test]
async fn an_ingest_into_an_empty_root() {
    let workspace = workspace();
    let args = ["ingest", "--max-dead-letter-rate", "0.1"];
    let scene = Scene { workspace: &workspace, args: &args, before: &workspace.path("nothing") };
    scene.check(INGEST_POINTS).await;
}

#[tokio::test]
async fn an_ingest_into_tables_that_hold_half_of_it() {
    let workspace = workspace();
    workspace.succeed("pipeline", &["ingest", "--max-dead-letter-rate", "0.1"]);
    let args = ["ingest", "--max-dead-letter-rate", "0.1", "--events", "log.csv", "more.csv"];
    let scene = Scene { workspace: &workspace, args: &args, before: &workspace.root() };
    scene.check(INGEST_POINTS).await;
}

#[tokio::test]
async fn an_ingest_that_spills() {
    let workspace = workspace();
    let args =
        ["ingest", "--max-dead-letter-rate", "0.1", "--memory", "1KiB", "--events", "log.csv", "more.csv"];
    let scene = Scene { workspace: &workspace, args: &args, before: &workspace.path("nothing") };
    scene.check(&["ingest:spilled", "ingest:spilled@2", "commit:events:before-log"]).await;
}

#[tokio::test]
async fn a_build_of_sequences() {
    let workspace = workspace();
    workspace.succeed("pipeline", &["ingest", "--max-dead-letter-rate", "0.1"]);
    // Without this table, the build gives the items their indexes.
    std::fs::remove_dir_all(workspace.root().join(ITEMS)).unwrap();
    let scene = Scene { workspace: &workspace, args: &["build-sequences"], before: &workspace.root() };
    let points = [
        "shard:items:unfinished",
        "commit:items:before-log",
        "commit:items:after-log",
        "shard:sequences:unfinished",
        "shard:sequences:unfinished@2",
        "commit:sequences:before-log",
        "commit:sequences:after-log",
    ];
    scene.check(&points).await;
}

#[tokio::test]
async fn a_build_that_replaces_another() {
    let workspace = workspace();
    workspace.succeed("pipeline", &["ingest", "--max-dead-letter-rate", "0.1"]);
    workspace.succeed("pipeline", &["build-sequences"]);
    let args = ["build-sequences", "--set", "sequences.max_len=8"];
    let scene = Scene { workspace: &workspace, args: &args, before: &workspace.root() };
    scene
        .check(&["shard:sequences:unfinished", "commit:sequences:before-log", "commit:sequences:after-log"])
        .await;
}

#[tokio::test]
async fn a_build_of_examples() {
    let workspace = workspace();
    workspace.succeed("pipeline", &["ingest", "--max-dead-letter-rate", "0.1"]);
    let limits = ["--set", "sequences.sft_share=0.2", "--set", "conditions.min_pool=10"];
    let args = [&["build-sft", "--condition", "genre"][..], &limits].concat();
    let scene = Scene { workspace: &workspace, args: &args, before: &workspace.root() };
    let points = [
        "shard:sft/genre:unfinished",
        "shard:sft/genre:unfinished@2",
        "commit:sft/genre:before-log",
        "commit:sft/genre:after-log",
    ];
    scene.check(&points).await;
}

/// A compaction changes no row: the tables after a kill, and after a second run, equal those before.
#[tokio::test]
async fn a_compaction() {
    let workspace = workspace();
    let log = std::fs::read_to_string(workspace.path("log.csv")).unwrap();
    let (header, lines) = log.split_once('\n').unwrap();
    for (part, name) in ["even.csv", "odd.csv"].into_iter().enumerate() {
        let lines = lines.lines().skip(part).step_by(2).map(|line| format!("{line}\n"));
        workspace.write(name, format!("{header}\n{}", lines.collect::<String>()));
        workspace.succeed("pipeline", &["ingest", "--max-dead-letter-rate", "0.1", "--events", name]);
    }
    let before = workspace.root();
    let scene = Scene { workspace: &workspace, args: &["compact"], before: &before };
    let rows = contents(&before).await;
    let points = [
        "shard:events:unfinished",
        "shard:events:unfinished@2",
        "commit:events:before-log",
        "commit:events:before-log@2",
        "commit:events:after-log",
        "shard:dead_letters:unfinished",
        "commit:dead_letters:before-log",
        "commit:dead_letters:after-log",
    ];
    for point in points {
        let (root, scratch) = (scene.start("killed"), workspace.path("scratch"));
        std::fs::create_dir_all(&scratch).unwrap();
        scene.kill_at(point, &root, &scratch);
        assert_eq!(contents(&root).await, rows, "after a kill at {point}");
        workspace.succeed("pipeline", &scene.args(&root));
        assert_eq!(contents(&root).await, rows, "after a kill at {point}");
        let said = workspace.succeed("pipeline", &[&scene.args(&root)[..], &["--json"]].concat());
        let said = crate::programs::json(&said);
        assert_eq!(said["tables"][0]["shards_before"], said["tables"][0]["shards_after"], "{said}");
        workspace.succeed("pipeline", &["inspect", "--verify", "events", "--root", root.to_str().unwrap()]);
    }
}
