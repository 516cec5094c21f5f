//! Tests of the pipeline as a library, with tables on disk. One program, because each test program links all of DataFusion.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where, and stops")]

mod build;
mod common;
mod compact;
mod examples;
mod filters;
mod foreign;
mod inputs;
mod instructions;
mod oracle;
mod refresh;
mod sft;
mod sft_verify;
mod simulated;
mod vacuum;
mod verify;
