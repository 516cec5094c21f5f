//! Checks that ARCHITECTURE.md names existing files.

use std::path::Path;

const ROOMS: [&str; 8] = ["config", "crates", "fuzz", "jobs", "pipeline", "schemas", "tests", "trainer"];

/// Expands `a/{b,c}.rs` to `a/b.rs` and `a/c.rs`.
fn expanded(path: &str) -> Vec<String> {
    match path.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?))) {
        None => vec![path.to_owned()],
        Some((before, (names, after))) => {
            names.split(',').map(|name| format!("{before}{name}{after}")).collect()
        }
    }
}

#[test]
fn every_path_is_there() {
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("..");
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let paths: Vec<String> = quoted
        .filter(|quoted| quoted.split_once('/').is_some_and(|(room, _)| ROOMS.contains(&room)))
        .filter(|quoted| !quoted.contains(['<', ' ']))
        .flat_map(expanded)
        .collect();
    assert!(paths.len() > 50, "{paths:?}");
    // A module without a folder is a file: `jobs/src/{record,own}`.
    let is_there = |path: &str| root.join(path).exists() || root.join(format!("{path}.rs")).exists();
    let gone: Vec<&String> = paths.iter().filter(|path| !is_there(path)).collect();
    assert!(gone.is_empty(), "ARCHITECTURE.md names {gone:?}");
    assert!(text.lines().count() <= 120, "ARCHITECTURE.md is two screens long");
}
