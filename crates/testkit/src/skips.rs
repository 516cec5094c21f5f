//! Reports of tests that cannot run on this machine; `.ci/run` lists them at its end.

use std::fs::File;
use std::io::Write as _;

/// Environment variable with the path of the file to which skips are appended, one line each: tool, tab, test.
pub const SKIPS: &str = "CLIMBER_PILOT_SKIPS";

/// Reports on stderr and in the file of [`SKIPS`] that `test` is skipped because `tool` is missing.
pub fn skipped(test: &str, tool: &str) {
    eprintln!("skipped: {test}: there is no {tool} here");
    let file =
        std::env::var_os(SKIPS).and_then(|path| File::options().create(true).append(true).open(path).ok());
    if let Some(mut file) = file {
        let _ = file.write_all(format!("{tool}\t{test}\n").as_bytes());
    }
}
