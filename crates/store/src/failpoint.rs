//! Points at which a test pauses a program and kills it.
//!
//! A build with debug assertions prints `paused at <name>` to stderr at the point that `CLIMBER_PILOT_PAUSE_AT` names (`name`, or
//! `name@3` for its third pass), and sleeps until the file that `CLIMBER_PILOT_RESUME` names exists. After ten minutes the
//! program exits with 1, so that it does not outlive its test. In other builds [`reach`] does nothing.

use std::fmt::Display;

/// Environment variable that names a file system call to simulate as unsupported: `exchange` (of two names) or `link`.
pub const WITHOUT: &str = "CLIMBER_PILOT_WITHOUT";

/// Returns true if a test simulates a file system without `what`; always false in builds without debug assertions.
pub fn is_without(what: &str) -> bool {
    cfg!(debug_assertions) && std::env::var_os(WITHOUT).is_some_and(|without| without == what)
}

/// Environment variable that names the point to pause at.
pub const PAUSE_AT: &str = "CLIMBER_PILOT_PAUSE_AT";

/// Environment variable that names the file which ends the pause.
pub const RESUME: &str = "CLIMBER_PILOT_RESUME";

/// Marks a point. `name` is formatted only if a pause is requested.
pub fn reach(name: impl Display) {
    #[cfg(debug_assertions)]
    pause::at(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
mod pause {
    use std::fmt::Display;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    pub(super) struct Point {
        name: String,
        /// Passes left before the one that pauses.
        left: AtomicU64,
    }

    impl Point {
        pub(super) fn new(text: &str) -> Self {
            let counted =
                text.rsplit_once('@').and_then(|(name, nth)| Some((name, nth.parse::<u64>().ok()?)));
            let (name, nth) = counted.unwrap_or((text, 1));
            Self { name: name.into(), left: AtomicU64::new(nth.saturating_sub(1)) }
        }

        /// Counts a pass of `name`; returns true if this one pauses.
        pub(super) fn stops(&self, name: &str) -> bool {
            let one_less = |left: u64| left.checked_sub(1);
            name == self.name
                && self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_err()
        }
    }

    static POINT: LazyLock<Option<Point>> =
        LazyLock::new(|| std::env::var(super::PAUSE_AT).ok().map(|text| Point::new(&text)));

    pub(super) fn at(name: impl Display) {
        if let Some(point) = &*POINT {
            let name = name.to_string();
            if point.stops(&name) {
                eprintln!("paused at {name}");
                let resume = std::env::var_os(super::RESUME).map(std::path::PathBuf::from);
                let since = std::time::Instant::now();
                while !resume.as_ref().is_some_and(|file| file.exists()) {
                    if since.elapsed() > std::time::Duration::from_secs(600) {
                        std::process::exit(1);
                    }
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            }
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::pause::Point;

    #[test]
    fn a_point_stops_the_time_that_was_asked_for() {
        let point = Point::new("commit:events:before-log");
        assert!(!point.stops("commit:items:before-log"));
        assert!(point.stops("commit:events:before-log"));
        let point = Point::new("spilled@3");
        assert_eq!([(); 3].map(|()| point.stops("spilled")), [false, false, true]);
    }
}
