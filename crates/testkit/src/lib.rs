//! What tests of several crates share, and no program contains.

mod random_bytes;
mod skips;

pub use random_bytes::{INPUTS, drive};
pub use skips::{SKIPS, skipped};
