//! The pipeline as a library, against tables: one program, because each links all of DataFusion.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where, and stops")]

mod build;
mod common;
mod compact;
mod examples;
mod foreign;
mod instructions;
mod oracle;
mod refresh;
mod sft;
mod sft_verify;
mod simulated;
mod vacuum;
mod verify;
