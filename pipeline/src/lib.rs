//! Raw interaction logs to Delta tables: events, items, sequences, instruction examples.
//!
//! Every command of the `pipeline` program is a function here that takes a configuration and a root and
//! returns a report, so that the scheduled jobs run the same code.

// What is printed goes through `terminal::shown`.
#[macro_use(eprintln)]
extern crate terminal;

pub mod compact;
pub mod consume;
pub mod dead_letters;
pub mod engine;
pub mod forget;
#[cfg(all(unix, any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub mod fuzzing;
pub mod html;
pub mod ingest;
pub mod inspect;
pub mod instructions;
pub mod producer;
mod records;
pub mod scan;
pub mod sequences;
pub mod sft;
pub mod simulate;
pub mod vacuum;
