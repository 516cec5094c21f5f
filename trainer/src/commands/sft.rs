use anyhow::Result;
use clap::Args;
use schemas::cli::{CommonArgs, EXIT_DONE, EXIT_FAILED, Interrupt, print_json};
use schemas::delta::Root;
use trainer::training::{Options, Status, sft};

/// Teach a pre-trained model to follow instructions (SFT).
///
/// Learns from the tables `sft/<condition>` of all of sft.conditions together (`pipeline build-sft` writes them), and
/// prints what became of the quality without instructions. Selects, resumes and repeats like `trainer pretrain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  trainer sft --config config/movielens.toml --name guided --from base --set 'sft.conditions=[\"genre\"]'"
)]
pub(crate) struct SftArgs {
    /// Name of the new model: it is written to models/NAME.
    #[arg(long)]
    name: String,
    /// Name of the pre-trained model.
    #[arg(long, value_name = "MODEL")]
    from: String,
    /// Train anew, whatever an earlier run left.
    #[arg(long)]
    fresh: bool,
}

impl SftArgs {
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
        let outcome = sft::run(&config, &root, &self.from, options).await?;
        eprintln!("{outcome}");
        if common.json {
            print_json(&outcome)?;
        }
        Ok(if outcome.training.status == Status::Interrupted { EXIT_FAILED } else { EXIT_DONE })
    }
}
