//! Whole-program tests: each command run as a user runs it, on a small log.

mod bad_input;
mod daily;
mod programs;
mod resume;
