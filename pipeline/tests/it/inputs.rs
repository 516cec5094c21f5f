//! `pipeline ingest --events -`: what comes through a pipe is read as a file of the same bytes.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const LOG: &str = "user_id,item_id,ts\nu,i,1700000000\nu,j,1700000001\nu,,1700000002\n";

/// Runs `pipeline ingest --events -` in `directory` on `bytes`.
fn ingest(directory: &Path, format: &str, bytes: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_pipeline"))
        .args(["ingest", "--root", "root", "--events", "-", "--json", "--max-dead-letter-rate", "1"])
        .args(["--set", &format!("events.format={format}")])
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A run that refuses its input does not read it to the end.
    let _ = stdin.write_all(bytes);
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Accepted events, duplicates and dead letters.
fn counts(output: &Output) -> [u64; 3] {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["files"][0]["source"], "stdin");
    ["accepted", "duplicates", "dead_letters"].map(|key| report["events"][key].as_u64().unwrap())
}

#[test]
fn standard_input_is_a_file_of_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(counts(&ingest(dir.path(), "csv", LOG.as_bytes())), [2, 0, 1]);
    let again = ingest(dir.path(), "csv", LOG.as_bytes());
    assert_eq!(counts(&again), [0, 2, 1], "a second run adds nothing");
    // It has no name to say that it is packed.
    let packed = zstd::encode_all(format!("{LOG}u,k,1700000003\n").as_bytes(), 1).unwrap();
    assert_eq!(counts(&ingest(dir.path(), "csv", &packed)), [1, 2, 1]);
    let wrong = ingest(dir.path(), "parquet", LOG.as_bytes());
    let text = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(1) && text.contains("stdin: is not Parquet"), "{text}");
}
