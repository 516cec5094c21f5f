//! Whole-program tests: each command runs as a user runs it, on a small log.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where, and stops")]

mod architecture;
mod bad_input;
mod earlier;
mod engines;
mod export;
mod forget;
mod inspect;
mod jobs;
#[cfg(unix)]
mod kafka;
#[cfg(unix)]
mod kills;
mod kinds;
mod names;
mod paths;
#[cfg(unix)]
mod permissions;
#[cfg(unix)]
mod pins;
mod programs;
#[cfg(unix)]
mod random_faults;
mod readme;
mod refresh;
mod resume;
mod retrieve;
mod scratch;
#[cfg(unix)]
mod secrets;
mod sft;
mod simulate;
mod terminal;
