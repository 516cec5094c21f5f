use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::Args;
use schemas::cli::{CommonArgs, EXIT_DONE, EXIT_FAILED};
use schemas::delta::Root;
use trainer::pretrain::{self, Options, Outcome, Status};

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
    pub(crate) async fn run(&self, common: &CommonArgs, stop: &AtomicBool) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let options = Options { name: &self.name, fresh: self.fresh, stop, stop_after: None };
        let outcome = pretrain::run(&config, &root, options).await?;
        print(&outcome, &root);
        if common.json {
            println!("{}", serde_json::to_string(&outcome)?);
        }
        Ok(if outcome.status == Status::Interrupted { EXIT_FAILED } else { EXIT_DONE })
    }
}

fn print(outcome: &Outcome, root: &Root) {
    let path = root.model_path(&outcome.model);
    match outcome.status {
        Status::Trained => {
            let selected = outcome.best.as_ref().map_or_else(
                || "the last epoch".into(),
                |b| format!("epoch {} (validation {:.4})", b.epoch, b.value),
            );
            eprintln!(
                "model {}: {selected}, {} steps in all; {} targets in {:.1} s, {:.0} targets/s",
                path.display(),
                outcome.steps,
                outcome.targets,
                outcome.seconds,
                outcome.targets as f64 / outcome.seconds.max(1e-9)
            );
        }
        Status::Unchanged => eprintln!(
            "model {} was trained on these tables with these settings before: unchanged (--fresh trains again)",
            path.display()
        ),
        Status::Interrupted => {
            eprintln!("interrupted after step {}; the same command resumes there", outcome.steps)
        }
    }
}
