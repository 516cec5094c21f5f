//! What all trainings have in common on the command line.

use std::fmt;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use terminal::{EXIT_DONE, EXIT_FAILED, Interrupt, print_json};
use trainer::learn::{Status, TrainOptions};

// Not a doc comment: that would become the description of each command.
#[derive(Debug, Args)]
pub(crate) struct NewModelArgs {
    /// Name of the new model: it is written to models/NAME.
    #[arg(long)]
    name: String,
    /// Train anew, whatever an earlier run left.
    #[arg(long)]
    fresh: bool,
}

impl NewModelArgs {
    /// A training that a person has asked for.
    pub(super) fn options<'a>(&'a self, interrupt: &'a Interrupt) -> TrainOptions<'a> {
        TrainOptions { name: &self.name, fresh: self.fresh, interrupt, stop_after: None, job: None }
    }
}

/// Prints what a training came to; gives the exit code.
pub(super) fn report(outcome: &(impl fmt::Display + Serialize), status: Status, json: bool) -> Result<u8> {
    eprintln!("{outcome}");
    if json {
        print_json(outcome)?;
    }
    Ok(if status == Status::Interrupted { EXIT_FAILED } else { EXIT_DONE })
}
