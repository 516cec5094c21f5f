//! Helpers shared by the tests of several crates. Programs link them only with ragged's `emulator` feature.

#![expect(clippy::disallowed_macros, reason = "a test prints to whoever runs it")]

mod random_bytes;
mod skips;

pub use random_bytes::{INPUTS, drive};
pub use skips::{SKIPS, skipped};
