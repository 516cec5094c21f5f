use anyhow::Result;
use clap::Args;
use schemas::cli::{CommonArgs, EXIT_DONE, EXIT_FAILED, Interrupt, print_json};
use schemas::delta::Root;
use trainer::training::{Options, Status, pretrain};

/// Pre-train a model on the `sequences` table (TAMIP).
///
/// Selects the epoch that is best on the validation targets and writes models/NAME below the root. An
/// interrupted run (Ctrl-C, a crash) is resumed by the same command. A model that was trained on the same
/// tables with the same settings is left as it is.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer pretrain --config config/movielens.toml --name base")]
pub(crate) struct PretrainArgs {
    /// Name of the model: it is written to models/NAME.
    #[arg(long)]
    name: String,
    /// Train anew, whatever an earlier run left.
    #[arg(long)]
    fresh: bool,
}

impl PretrainArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let interrupt = Interrupt::on_signal();
        let options = Options {
            name: &self.name,
            fresh: self.fresh,
            interrupt: &interrupt,
            stop_after: None,
            job: None,
        };
        let outcome = pretrain::run(&config, &root, options).await?;
        eprintln!("{outcome}");
        if common.json {
            print_json(&outcome)?;
        }
        Ok(if outcome.status == Status::Interrupted { EXIT_FAILED } else { EXIT_DONE })
    }
}
