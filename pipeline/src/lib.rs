//! Turns raw interaction logs into Delta tables: events, items, sequences, instruction examples.
//!
//! Every command of the `pipeline` program is a function here that takes a configuration and a root and
//! returns a report, so that the scheduled jobs run the same code.

// Output is printed through `terminal::shown`.
#[macro_use(eprintln)]
extern crate terminal;

pub mod compact;
pub mod engine;
#[cfg(all(unix, any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub mod fuzzing;
pub mod histories;
pub mod html;
pub mod ingest;
pub mod init;
pub mod inspect;
pub mod instructions;
pub mod kafka;
pub mod privacy;
mod records;
pub mod sequences;
pub mod sft;
mod source;
pub mod verify;
