//! Temporary files are written where the configuration says, and nowhere else.

use std::fmt::Write as _;

use crate::programs::{Workspace, stderr};

#[test]
fn temporary_files_lie_where_the_configuration_says() {
    let workspace = Workspace::new();
    let mut log = String::from("user,item,time\n");
    for event in 0..60_000u32 {
        let time = 1_600_000_000 + event * 60;
        writeln!(log, "u{},i{},{time}", event % 500, 1 + event * 7 % 30).unwrap();
    }
    workspace.write("log.csv", log);
    let scratch = workspace.path("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let nowhere = workspace.path("nowhere");
    let here = format!("scratch={}", scratch.display());
    let run = |args: &[&str], setting: Option<&str>| {
        let more = setting.map_or(vec![], |setting| vec!["--set", setting]);
        let mut command = workspace.command("pipeline", &[args, &more].concat());
        command.env("TMPDIR", &nowhere).output().unwrap()
    };
    // The first two need more memory than they get.
    let steps: [&[&str]; 4] = [
        &["ingest", "--memory", "1MiB"],
        &["build-sequences", "--memory", "1MiB"],
        &["instructions", "--memory", "16MiB", "--set", "conditions.min_pool=1"],
        &["compact"],
    ];
    for (n, args) in steps.into_iter().enumerate() {
        if n < 2 {
            let output = run(args, None);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            let directory = nowhere.display().to_string();
            assert!(said.contains(&directory) && said.contains("`scratch` in the configuration"), "{said}");
        }
        let output = run(args, Some(&here));
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "{args:?}");
    }
    let output = run(steps[0], Some("scratch=missing"));
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("scratch") && said.contains("missing is not a directory"), "{said}");
}
