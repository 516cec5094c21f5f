//! The programs under test, and a small log for them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Returns the directory of these tests' sources. A path fixed at build time would be wrong for a clone that shares the build.
pub(crate) fn sources() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| ".".into(), PathBuf::from)
}

/// Returns the built program `name`. `cargo test --workspace` builds the programs beside the tests.
pub(crate) fn program(name: &str) -> Command {
    let mut path: PathBuf = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(path.exists(), "{} is not built: cargo build --workspace", path.display());
    let mut command = Command::new(&path);
    // Erasure keys belong to the test, not to the user who runs it.
    command.env("XDG_STATE_HOME", path.with_file_name("tests-state"));
    command
}

/// A directory with a log, a catalogue and a configuration for a model that trains in a second.
pub(crate) struct Workspace {
    directory: TempDir,
}

pub(crate) const USERS: u32 = 40;
pub(crate) const EVENTS_A_USER: u32 = 20;
const ITEMS: u32 = 30;

impl Workspace {
    pub(crate) fn new() -> Self {
        let workspace = Self { directory: tempfile::tempdir().unwrap() };
        let mut log = String::from("user,item,time\n");
        for user in 0..USERS {
            for i in 0..EVENTS_A_USER {
                // Users walk through the catalogue from different starts; some steps are within 15 minutes.
                let item = 1 + (user * 7 + i * (1 + user % 3)) % ITEMS;
                let time = 1_600_000_000 + user * 100_000 + i * 600 + (i / 4) * 3_000;
                writeln!(log, "u{user},i{item},{time}").unwrap();
            }
        }
        workspace.write("log.csv", &log);
        let mut catalogue = String::new();
        for item in 1..=ITEMS {
            let genre = ["Rock", "Jazz", "Folk"][item as usize % 3];
            writeln!(catalogue, r#"{{"item_id": "i{item}", "title": "Item {item}", "genre": "{genre}"}}"#)
                .unwrap();
        }
        workspace.write("items.jsonl", &catalogue);
        workspace.write(
            "config.toml",
            r#"
root = "root"

[events]
paths = ["log.csv"]
columns = { user_id = "user", item_id = "item", ts = "time" }
ts_format = "s"

[items]
paths = ["items.jsonl"]
columns = { item_id = "item_id", title = "title" }

[items.attributes.genre]

[sequences]
max_len = 12
shards = 2

[model]
d = 8
layers = 1
heads = 2
feed_forward = 2
attributes = ["genre"]
max_distance = 8
hash_buckets = 4

[pretrain]
epochs = 3
batch_size = 16
learning_rate = 1e-2

[gate]
min_targets = 10
"#,
        );
        workspace
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("root")
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), contents).unwrap();
    }

    /// Returns the command `PROGRAM ARGS --config config.toml`.
    pub(crate) fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = program(name);
        command.args(args).arg("--config").arg(self.path("config.toml")).current_dir(self.directory.path());
        command.env("XDG_STATE_HOME", self.path("state"));
        command
    }

    /// Runs the command and asserts success.
    pub(crate) fn succeed(&self, name: &str, args: &[&str]) -> Output {
        let output = self.command(name, args).output().unwrap();
        assert!(output.status.success(), "{name} {args:?}: {}", stderr(&output));
        output
    }

    /// Runs the command, asserts this exit code, and returns stderr.
    pub(crate) fn fail(&self, name: &str, args: &[&str], code: i32) -> String {
        let output = self.command(name, args).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{name} {args:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        text
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Parses the one JSON object that a command wrote to stdout.
pub(crate) fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stdout)))
}

/// Returns the files below `directory` with their contents; names are relative to it.
pub(crate) fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    let entries = std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    for entry in entries.map(|entry| entry.unwrap()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() {
            files.extend(
                self::files(&entry.path()).into_iter().map(|(n, bytes)| (format!("{name}/{n}"), bytes)),
            );
        } else {
            files.push((name, std::fs::read(entry.path()).unwrap()));
        }
    }
    files.sort();
    files
}

/// Copies a directory with its content.
#[cfg(unix)]
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}
