//! The contracts between the parts: what a history means, what the tables hold, what the configuration says.
//!
//! `pipeline` writes the tables and `trainer` reads them; neither knows the other. What both must agree on
//! is here, and this crate depends on neither.

// First: its `eprintln!` is that of all the others.
#[macro_use]
pub mod shown;

pub mod boxed;
pub mod clean;
pub mod cli;
pub mod condition;
pub mod config;
pub mod delta;
pub mod failpoint;
pub mod files;
#[doc(hidden)]
pub mod fuzzing;
pub mod hash;
pub mod history;
pub mod memory;
pub mod names;
pub mod publication;
pub mod scratch;
pub mod sealed;
pub mod secret;
#[doc(hidden)]
pub mod skips;
pub mod tables;
