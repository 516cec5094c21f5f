//! A running `pipeline consume`.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running consumer. Dropping it kills the process.
pub(crate) struct Consumer {
    child: Child,
    /// Stderr of this process and of earlier ones with the same log.
    log: PathBuf,
}

impl Consumer {
    /// Starts the consumer. Stderr is appended to the file `log`; stdout goes to the same name with `.out`.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Self {
        let stderr = File::options().create(true).append(true).open(&log).unwrap();
        let stdout = File::create(log.with_extension("out")).unwrap();
        let child = command.stdout(stdout).stderr(stderr).stdin(Stdio::null()).spawn().unwrap();
        Self { child, log }
    }

    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Asserts that it runs.
    pub(crate) fn check(&mut self) {
        let status = self.child.try_wait().unwrap();
        assert!(status.is_none(), "a consumer ended by itself, {status:?}: {}", self.said());
    }

    /// Waits, while it runs, until `found` returns a value.
    pub(crate) fn wait_for<T>(&mut self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = found(self) {
                return found;
            }
            self.check();
            assert!(begin.elapsed() < Duration::from_secs(120), "{what} does not come: {}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it has failed with exit code 1; returns its stderr.
    pub(crate) fn wait_for_failure(&mut self) -> String {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(1), "{}", self.said());
                return self.said();
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "a consumer does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills the consumer (SIGKILL).
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends the signal `name`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Stops the consumer with SIGTERM: it commits what it has and exits with 0. Returns its report, if started with `--json`.
    pub(crate) fn stop(mut self) -> Value {
        self.check();
        self.signal("TERM");
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "a consumer does not end: {}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        };
        assert_eq!(status.code(), Some(0), "{}", self.said());
        let report = std::fs::read(self.log.with_extension("out")).unwrap();
        if report.is_empty() { Value::Null } else { serde_json::from_slice(&report).unwrap() }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
