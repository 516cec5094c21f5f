//! Access rights of what the programs write.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::jobs;
use crate::programs::{Workspace, stderr};

/// Collects the rights of all files and directories below `path`, by name.
fn modes(path: &Path, found: &mut BTreeMap<String, u32>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let mode = path.symlink_metadata().unwrap().permissions().mode() & 0o777;
        found.insert(path.display().to_string(), mode);
        if path.is_dir() {
            modes(&path, found);
        }
    }
}

/// Runs a command in a process whose umask removes no right.
fn open_to_all(workspace: &Workspace, program: &str, args: &[&str]) {
    let inner = workspace.command(program, args);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.current_dir(workspace.path("")).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", stderr(&output));
}

/// Returns a workspace with everything that all programs write.
fn everything(access: &str) -> Workspace {
    let workspace = jobs::service(1);
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    workspace.write("config.toml", format!("file_access = \"{access}\"\n{config}"));
    let run = |program, args: &[&str]| open_to_all(&workspace, program, args);
    run("climber", &["daily", "--date", "2026-01-01"]);
    run("climber", &["refresh", "--once"]);
    run("trainer", &["retrieve", "--out", "rows.parquet"]);
    run("trainer", &["retrieve", "--out", "rows.jsonl"]);
    run("trainer", &["evaluate", "--model", "2026-01-01", "--split", "validation"]);
    run("trainer", &["export", "--out", "export"]);
    run("pipeline", &["inspect", "--html", "page.html"]);
    run("pipeline", &["inspect", "--user", "u2", "--html", "user.html"]);
    run("pipeline", &["forget", "--user", "u1"]);
    run("pipeline", &["compact"]);
    run(
        "pipeline",
        &[
            "simulate",
            "--out",
            "simulated",
            "--events",
            "300",
            "--users",
            "20",
            "--items",
            "10",
            "--days",
            "2",
        ],
    );
    workspace
}

/// Returns the names and rights of what the programs wrote, without the test's own files.
fn written(workspace: &Workspace) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    modes(&workspace.path(""), &mut found);
    let inputs =
        ["config.toml", "log.csv", "items.jsonl", "events", "items"].map(|name| workspace.path(name));
    found.retain(|path, _| !inputs.iter().any(|input| Path::new(path).starts_with(input)));
    assert!(found.len() > 50, "{found:?}");
    found
}

#[test]
fn with_owner_nobody_else_may_read_anything() {
    for (path, mode) in written(&everything("owner")) {
        assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
    }
}

#[test]
fn with_group_the_group_may_read_and_others_nothing() {
    let workspace = everything("group");
    for (path, mode) in written(&workspace) {
        // The key's directories belong to the owner alone.
        let key = Path::new(&path).starts_with(workspace.path("state"));
        assert_eq!(mode & 0o027, 0, "{path}: {mode:o}");
        assert!(key || mode & 0o040 != 0, "{path}: {mode:o}");
    }
}

#[test]
fn without_it_the_umask_decides_and_the_key_is_its_owners() {
    let workspace = everything("umask");
    let mut keys = 0;
    for (path, mode) in written(&workspace) {
        if path.contains("erasure-keys") {
            keys += 1;
            assert_eq!(mode & 0o077, 0, "{path}: {mode:o}");
        } else if Path::new(&path).is_file() {
            assert_eq!(mode, 0o666, "{path}: {mode:o}");
        }
    }
    assert_eq!(keys, 2, "the directory and the key");
    // Exported files have equal rights, whatever the model's rights are.
    std::fs::remove_dir_all(workspace.path("export")).unwrap();
    let model = workspace.root().join("models/2026-01-01-sft");
    for entry in std::fs::read_dir(&model).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        }
    }
    workspace.succeed("trainer", &["export", "--out", "export"]);
    let mut exported = BTreeMap::new();
    modes(&workspace.path("export"), &mut exported);
    let modes: std::collections::BTreeSet<u32> = exported.values().copied().collect();
    assert_eq!(modes.len(), 1, "{exported:?}");
}

/// A list is written under an unguessable name: a link at a guessable one has no effect.
#[test]
fn lists_follow_no_links() {
    let workspace = jobs::service(1);
    jobs::run_day(&workspace, 1);
    workspace.write("victim", "victim");
    for name in ["rows.jsonl", "rows.parquet"] {
        symlink(workspace.path("victim"), workspace.path(&format!("{name}.writing"))).unwrap();
        workspace.succeed("trainer", &["retrieve", "--out", name]);
        assert_eq!(std::fs::read(workspace.path("victim")).unwrap(), b"victim");
        assert!(workspace.path(name).metadata().unwrap().len() > 100);
    }
}
