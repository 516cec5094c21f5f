//! `trainer pretrain`: parses its arguments, calls `trainer::learn::pretrain` and prints the result.

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, Interrupt};
use trainer::learn::pretrain;

use super::new_model::{NewModelArgs, report};

/// Pre-train a model on table `sequences` (TAMIP).
///
/// Selects the best epoch by the validation targets and writes models/NAME below the root. The same command resumes an
/// interrupted run (Ctrl-C, a crash). A model already trained on the same tables with the same settings is kept.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer pretrain --config config/movielens.toml --name base")]
pub(crate) struct PretrainArgs {
    #[command(flatten)]
    model: NewModelArgs,
}

impl PretrainArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let interrupt = Interrupt::on_signal();
        let outcome = pretrain::run(&config, &root, self.model.options(&interrupt)).await?;
        report(&outcome, outcome.status, common.json)
    }
}
