//! Arguments and report shared by all training commands.

use std::fmt;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use terminal::{EXIT_DONE, EXIT_FAILED, Interrupt, print_json};
use trainer::learn::{Status, TrainOptions};

// Not a doc comment, which would become the description of each command.
#[derive(Debug, Args)]
pub(crate) struct NewModelArgs {
    /// Name of the new model, written to models/NAME.
    #[arg(long)]
    name: String,
    /// Train from the beginning, ignoring the state of an earlier run.
    #[arg(long)]
    fresh: bool,
}

impl NewModelArgs {
    /// Returns the options of a training started by hand.
    pub(super) fn options<'a>(&'a self, interrupt: &'a Interrupt) -> TrainOptions<'a> {
        TrainOptions { name: &self.name, fresh: self.fresh, interrupt, stop_after: None, job: None }
    }
}

/// Prints the outcome of a training and returns the exit code.
pub(super) fn report(outcome: &(impl fmt::Display + Serialize), status: Status, json: bool) -> Result<u8> {
    eprintln!("{outcome}");
    if json {
        print_json(outcome)?;
    }
    Ok(if status == Status::Interrupted { EXIT_FAILED } else { EXIT_DONE })
}
