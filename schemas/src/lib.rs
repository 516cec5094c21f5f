//! The contracts between the parts: what a history means, what the tables hold, what the configuration says.
//!
//! `pipeline` writes the tables and `trainer` reads them; neither knows the other. What both must agree on is here. It reads and
//! writes nothing but the configuration file, and depends on no other crate of the workspace.

pub mod condition;
pub mod config;
pub mod hash;
pub mod history;
pub mod memory;
pub mod names;
pub mod secret;
pub mod tables;
