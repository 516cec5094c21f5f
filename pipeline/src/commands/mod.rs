//! The command line: one file per command, with its arguments and the output of its report.

pub(crate) mod build_sequences;
pub(crate) mod build_sft;
pub(crate) mod compact;
pub(crate) mod consume;
pub(crate) mod dead_letters;
pub(crate) mod forget;
pub(crate) mod ingest;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod instructions;
mod resources;
pub(crate) mod simulate;
pub(crate) mod vacuum;
