//! A process of `tests/kafka/broker.sh` that never outlives the tests.

use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

fn script() -> Command {
    Command::new(crate::programs::sources().join("kafka/broker.sh"))
}

/// True if the jars are available; fetches them if necessary. If they cannot be fetched, continuous integration (`CI=true`)
/// fails; elsewhere the reason is printed and the test is skipped.
pub(crate) fn available(what: &[&str]) -> bool {
    let output = script().arg("fetch").args(what).stderr(Stdio::inherit()).output().unwrap();
    if output.status.success() {
        return true;
    }
    let ci = std::env::var("CI").is_ok_and(|ci| !["", "0", "false"].contains(&ci.as_str()));
    assert!(!ci, "Kafka's tests need Java 17 and Maven; what is wrong, broker.sh says above");
    let what = if what.is_empty() { "a broker" } else { what[0] };
    testkit::skipped(
        &format!("tests of Kafka with {what} (the reason is above; CI=true makes it a failure)"),
        "mvn",
    );
    false
}

/// Claims a port while this process lives, by a lock that other test runs also ask for: no other process gets it between the
/// search for a free port and the service's start.
fn claimed(port: u16) -> bool {
    static CLAIMED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    let path = std::env::temp_dir().join(format!("climber-pilot-port-{port}"));
    let Ok(file) = File::create(path) else { return false };
    let free = file.try_lock().is_ok();
    if free {
        CLAIMED.lock().unwrap().push(file);
    }
    free
}

/// Returns two neighbouring free ports, below those that the system gives to clients: a client that tries to reach a killed
/// broker must not get the broker's own port.
pub(crate) fn free_ports() -> (u16, u16) {
    let mut random = super::produce::Random::new();
    (0..1000)
        .map(|_| 20_000 + 2 * (random.below(5_500) as u16))
        .filter(|&port| claimed(port))
        .map(|port| (port, port + 1))
        .find(|&(a, b)| [a, b].iter().all(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok()))
        .expect("no free port between 20000 and 31000")
}

/// A running process. Dropping it kills the process; if the tests themselves are killed, its standard input ends, and so does the
/// process.
pub(crate) struct Service {
    name: &'static str,
    data: PathBuf,
    child: Child,
    tie: Option<ChildStdin>,
}

impl Service {
    /// Starts `broker.sh COMMAND ARGS --data DATA`, with the log `DATA/NAME.log`.
    pub(crate) fn launch(name: &'static str, data: &Path, command: &str, args: &[String]) -> Self {
        let log = File::create(data.join(format!("{name}.log"))).unwrap();
        let mut script = script();
        script.args([command, "--tied", "--data", data.to_str().unwrap()]).args(args);
        script.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let mut child = script.spawn().unwrap();
        let tie = child.stdin.take();
        Self { name, data: data.to_owned(), child, tie }
    }

    /// Waits until it is ready, at most two minutes: Java on a busy machine takes its time.
    pub(crate) fn wait(&mut self, mut ready: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !ready() {
            let status = self.child.try_wait().unwrap();
            let late = begin.elapsed() > Duration::from_secs(120);
            assert!(
                status.is_none() && !late,
                "the {} does not start: {status:?}\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Kills the process (SIGKILL). The data stay.
    pub(crate) fn kill(&mut self) {
        if let Some(mut tie) = self.tie.take() {
            // A dead service reads nothing.
            let _ = tie.write_all(b"\n");
        }
        self.child.wait().unwrap();
    }

    /// Returns the end of its log.
    pub(crate) fn log(&self) -> String {
        let log = std::fs::read(self.data.join(format!("{}.log", self.name))).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(4_000)..]).into_owned()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
