//! One file for each command: its arguments, and what it prints.

pub(crate) mod build_sequences;
pub(crate) mod inspect;
