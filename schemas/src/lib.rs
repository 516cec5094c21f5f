//! The contracts between the parts: what a history means, what the tables hold, what the configuration says.
//!
//! `pipeline` writes the tables and `trainer` reads them; neither knows the other. What both must agree on
//! is here, and this crate depends on neither.

pub mod cli;
pub mod condition;
pub mod config;
pub mod delta;
pub mod failpoint;
pub mod files;
pub mod hash;
pub mod history;
pub mod memory;
pub mod names;
pub mod publication;
pub mod tables;
