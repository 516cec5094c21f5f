use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use schemas::cli::{CommonArgs, EXIT_DONE};
use schemas::delta::Root;
use schemas::history::Role;
use trainer::evaluate::{self, Metrics};

/// Rank every held-out target over the whole catalogue: HR@{10,20,50} and NDCG@10.
///
/// Two protocols: `standard` (all earlier items are context) and `as-served` (the last Δτ before the target
/// is hidden, as in production). The popularity and co-occurrence baselines stand in the same table.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer evaluate --config config/movielens.toml --model base --json")]
pub(crate) struct EvaluateArgs {
    /// Name of the model.
    #[arg(long)]
    model: String,
    /// Which held-out targets.
    #[arg(long, value_enum, default_value_t = SplitArg::Test)]
    split: SplitArg,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitArg {
    Validation,
    Test,
}

impl EvaluateArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let role = match self.split {
            SplitArg::Validation => Role::Validation,
            SplitArg::Test => Role::Test,
        };
        let results = evaluate::run(&config, &root, &self.model, role).await?;
        if results.is_empty() {
            bail!(
                "`sequences` holds no {} target; see sequences.split",
                self.split.to_possible_value().map_or_else(String::new, |v| v.get_name().into())
            );
        }
        eprint!("{}", evaluate::table(&results));
        if common.json {
            #[derive(serde::Serialize)]
            struct Results {
                results: Vec<Metrics>,
            }
            println!("{}", serde_json::to_string(&Results { results })?);
        }
        Ok(EXIT_DONE)
    }
}
