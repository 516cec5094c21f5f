//! Contracts between the programs: the meaning of a history, the columns of the tables, the keys of the configuration.
//!
//! `pipeline` writes the tables and `trainer` reads them; they share only this crate. It does no input or output besides reading
//! configuration and secret files and the machine's memory limits, and depends on no other crate of the workspace.

pub mod condition;
pub mod config;
pub mod hash;
pub mod history;
pub mod memory;
pub mod names;
pub mod secret;
pub mod tables;
