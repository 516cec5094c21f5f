//! `climber refresh`.

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, Interrupt, print_json};

use super::EXIT_REFUSED;
use crate::refresh::{self, RefreshOutcome};

/// Refresh the published model whenever new events have come, beside a running `pipeline consume`.
///
/// Looks for new versions of `events` every near_real_time.poll_interval, continues the published base with what is new, repeats
/// near_real_time.sft_epochs passes of SFT on the last daily job's examples, and publishes what passes the gate. What another job
/// publishes meanwhile goes first: the refresh starts again from it. Until Ctrl-C; a refresh that fails is tried again, with
/// growing pauses, ten times.
///
/// The next daily job learns the day again as a whole: a model of this command bridges the time until then.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  climber refresh --config config/shop.toml
  climber refresh --config config/shop.toml --once     one refresh; exit code 4 where the gate refuses it")]
pub(crate) struct RefreshJobArgs {
    /// Refresh once with what is there now.
    #[arg(long)]
    once: bool,
    /// Go on after a rollback at once, from the model that was brought back. Without, a refresh waits for the next daily job: it
    /// would soon make again what was taken back.
    #[arg(long)]
    after_rollback: bool,
}

impl RefreshJobArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
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
