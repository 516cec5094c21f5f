//! `trainer refresh`: parses its arguments, calls `trainer::learn::refresh` and prints the result.

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, Interrupt};
use trainer::learn::refresh;

use super::new_model::{NewModelArgs, report};

/// Train a pre-trained model further on new events.
///
/// Learns the new targets of table `refresh` (written by `pipeline build-sequences --since VERSION`) and, against forgetting,
/// repeats refresh.replay times as many old targets of `sequences`. Weights and optimiser continue from MODEL; new items get
/// their own rows, initialized to the mean of their categories. Selects, resumes and repeats like `trainer pretrain`.
#[derive(Debug, Args)]
#[command(after_help = "Example, where `base` was trained on version 3 of events:
  pipeline build-sequences --config config/shop.toml --since 3
  trainer refresh --config config/shop.toml --name tuesday --from base")]
pub(crate) struct RefreshArgs {
    #[command(flatten)]
    model: NewModelArgs,
    /// Name of the pre-trained or refreshed model.
    #[arg(long, value_name = "MODEL")]
    from: String,
}

impl RefreshArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let interrupt = Interrupt::on_signal();
        let outcome = refresh::run(&config, &root, &self.from, self.model.options(&interrupt)).await?;
        report(&outcome, outcome.status, common.json)
    }
}
