//! `climber refresh`: the near-real-time job, once or as a loop.

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, Interrupt, print_json};
use trainer::kinds;

use super::EXIT_REFUSED;
use crate::refresh::{self, RefreshOutcome};

/// Refresh the published model whenever new events arrive, beside a running `pipeline consume`.
///
/// Checks for new versions of `events` every near_real_time.poll_interval, continues the published base on the new events,
/// repeats at most near_real_time.sft_epochs epochs of SFT on the last daily job's examples, and publishes a model that passes
/// the gate. If another job publishes meanwhile, the refresh starts again from that publication. Runs until Ctrl-C; a failed
/// refresh is tried again after growing pauses, and the tenth failure in a row ends the command.
///
/// The next daily job learns the whole day again: models of this command bridge the time until then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  climber refresh --config config/shop.toml
  climber refresh --config config/shop.toml --once     one refresh; exit code 4 where the gate refuses it")]
pub(crate) struct RefreshJobArgs {
    /// Refresh once with the events at hand.
    #[arg(long)]
    once: bool,
    /// Continue at once after a rollback, from the restored model. By default a refresh waits for the next daily job, since it
    /// would soon recreate the withdrawn model.
    #[arg(long)]
    after_rollback: bool,
}

impl RefreshJobArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        kinds::find(&config.model.architecture)?;
        let root = Root::new(&config.root)?;
        let interrupt = Interrupt::on_signal();
        let _lock = refresh::lock(&root)?;
        if !self.once {
            refresh::follow(&config, &root, &interrupt, self.after_rollback).await?;
            return Ok(EXIT_DONE);
        }
        let refreshed = refresh::once(&config, &root, &interrupt, self.after_rollback).await?;
        eprintln!("{refreshed}");
        if common.json {
            print_json(&refreshed)?;
        }
        Ok(if refreshed.outcome == RefreshOutcome::Refused { EXIT_REFUSED } else { EXIT_DONE })
    }
}
