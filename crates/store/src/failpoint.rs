//! Places where a test can stop a program and kill it.
//!
//! A build with debug assertions sleeps at the point that the environment variable
//! `CLIMBER_PILOT_PAUSE_AT` names (`name`, or `name@3` for the third time it is reached), once it has printed
//! `paused at name` to stderr; until the file is there that `CLIMBER_PILOT_RESUME` names. After ten minutes the test is gone, and
//! so is the program. In other builds [`reach`] is empty.

use std::fmt::Display;

/// The environment variable that names what a test takes away from a program: `exchange` of two names, `link` of a file.
pub const WITHOUT: &str = "CLIMBER_PILOT_WITHOUT";

/// Whether a test takes `what` away, as some file systems do. Never in builds without debug assertions.
pub fn is_without(what: &str) -> bool {
    cfg!(debug_assertions) && std::env::var_os(WITHOUT).is_some_and(|without| without == what)
}

/// The environment variable that names a point.
pub const PAUSE_AT: &str = "CLIMBER_PILOT_PAUSE_AT";

/// The environment variable that names a file which ends a pause.
pub const RESUME: &str = "CLIMBER_PILOT_RESUME";

/// Marks a point. Its name is only put together where a pause is asked for.
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
        /// How often it may still be passed.
        left: AtomicU64,
    }

    impl Point {
        pub(super) fn new(text: &str) -> Self {
            let counted =
                text.rsplit_once('@').and_then(|(name, nth)| Some((name, nth.parse::<u64>().ok()?)));
            let (name, nth) = counted.unwrap_or((text, 1));
            Self { name: name.into(), left: AtomicU64::new(nth.saturating_sub(1)) }
        }

        /// Whether this is the time to stop.
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
