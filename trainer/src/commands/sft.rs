//! `trainer sft`: parses its arguments, calls `trainer::learn::sft` and prints the result.

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, Interrupt};
use trainer::learn::sft;

use super::new_model::{NewModelArgs, report};

/// Fine-tune a pre-trained model to follow instructions (SFT).
///
/// Learns from the tables `sft/<condition>` of all sft.conditions together (written by `pipeline build-sft`), and prints the
/// change of quality without instructions. Selects, resumes and repeats like `trainer pretrain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  trainer sft --config config/movielens.toml --name guided --from base --set 'sft.conditions=[\"genre\"]'"
)]
pub(crate) struct SftArgs {
    #[command(flatten)]
    model: NewModelArgs,
    /// Name of the pre-trained model.
    #[arg(long, value_name = "MODEL")]
    from: String,
}

impl SftArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let interrupt = Interrupt::on_signal();
        let outcome = sft::run(&config, &root, &self.from, self.model.options(&interrupt)).await?;
        report(&outcome, outcome.training.status, common.json)
    }
}
