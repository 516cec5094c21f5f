//! A full disk at each step of a job: no file can grow (`RLIMIT_FSIZE`), so every write fails as on a full disk. The served model
//! stays, and the next run recovers.

use std::process::{Command, ExitStatus};

use store::failpoint::{PAUSE_AT, RESUME};

use super::faults::{STEPS, outcome, served, wait_for_pause};
use super::refresh::{append, once};
use super::{date, day, published, run_day, service};
use crate::programs::{Workspace, copy, json, stderr};

/// Runs the job with a disk that is full from `point` on; `None` if no disk can be made full.
fn on_a_full_disk(workspace: &Workspace, args: &[&str], point: &str) -> Option<ExitStatus> {
    let go_on = workspace.path("go-on");
    let _ = std::fs::remove_file(&go_on);
    let program = workspace.command("climber", args);
    // A shell ignores the signal before the program begins, so that writes fail as on a full disk.
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(program.get_args());
    command.current_dir(program.get_current_dir().unwrap());
    command.env(PAUSE_AT, point).env(RESUME, &go_on);
    let mut child = wait_for_pause(command, point);
    let pid = child.id().to_string();
    let limited = Command::new("prlimit").args(["--fsize=0", "--pid", &pid]).status();
    if !limited.as_ref().is_ok_and(|status| status.success()) {
        testkit::skipped(&format!("a full disk at each step ({limited:?})"), "prlimit");
        return None;
    }
    std::fs::write(&go_on, "").unwrap();
    Some(child.wait().unwrap())
}

#[test]
fn a_full_disk_at_each_step() {
    let workspace = service(2);
    run_day(&workspace, 1);
    let begun = workspace.path("begun");
    copy(&workspace.root(), &begun);
    let before = served(&workspace);
    let second = date(2);
    let expected = outcome(&run_day(&workspace, 2));
    let after = served(&workspace);
    for step in STEPS {
        std::fs::remove_dir_all(workspace.root()).unwrap();
        copy(&begun, &workspace.root());
        let status = on_a_full_disk(&workspace, &day(&second, &[]), &format!("step:{step}"));
        let Some(status) = status else { return };
        assert_eq!(status.code(), Some(1), "{step}: {status}");
        let now = served(&workspace);
        assert!(now == before || now == after, "{step}: another model is served");
        let output = workspace.command("climber", &day(&second, &[])).output().unwrap();
        assert!(output.status.success(), "{step}: {}", stderr(&output));
        assert_eq!(outcome(&json(&output)), expected, "{step}");
        assert!(served(&workspace) == after, "{step}: other weights");
    }
}

#[test]
fn a_full_disk_at_each_step_of_a_refresh() {
    let workspace = service(2);
    run_day(&workspace, 1);
    append(&workspace, 2);
    let begun = workspace.path("begun");
    copy(&workspace.root(), &begun);
    let before = served(&workspace);
    assert_eq!(once(&workspace, &[])["outcome"], "published");
    let after = served(&workspace);
    for step in ["build", "train", "sft", "gate", "publish", "retention", "write-down"] {
        std::fs::remove_dir_all(workspace.root()).unwrap();
        copy(&begun, &workspace.root());
        let status = on_a_full_disk(&workspace, &["refresh", "--once"], &format!("refresh:{step}"));
        let Some(status) = status else { return };
        // Deleting needs no space, and a published model is not withdrawn because it cannot be recorded.
        assert_eq!(status.code(), Some(1), "{step}: {status}");
        let now = served(&workspace);
        let is_published = matches!(step, "retention" | "write-down");
        assert!(
            now == if is_published { after.clone() } else { before.clone() },
            "{step}: another model is served"
        );
        let again = once(&workspace, &[]);
        assert_eq!(
            again["outcome"],
            if is_published { "nothing-new" } else { "published" },
            "{step}: {again}"
        );
        assert!(served(&workspace) == after, "{step}: other weights");
        assert_eq!(published(&workspace)["number"], 2, "{step}");
    }
}
