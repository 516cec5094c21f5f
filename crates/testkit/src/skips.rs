//! Tests that cannot run on a machine: each says so, and `.ci/run` lists them at its end.

use std::fs::File;
use std::io::Write as _;

/// The variable that names the file to which skips are appended.
pub const SKIPS: &str = "CLIMBER_PILOT_SKIPS";

/// Says that `test` is skipped for want of `tool`.
pub fn skipped(test: &str, tool: &str) {
    eprintln!("skipped: {test}: there is no {tool} here");
    let file =
        std::env::var_os(SKIPS).and_then(|path| File::options().create(true).append(true).open(path).ok());
    if let Some(mut file) = file {
        let _ = file.write_all(format!("{tool}\t{test}\n").as_bytes());
    }
}
