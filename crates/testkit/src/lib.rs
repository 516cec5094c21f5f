//! What tests of several crates share. A program has it only with the emulator of kernels.

#![expect(clippy::disallowed_macros, reason = "a test prints to whoever runs it")]

mod random_bytes;
mod skips;

pub use random_bytes::{INPUTS, drive};
pub use skips::{SKIPS, skipped};
