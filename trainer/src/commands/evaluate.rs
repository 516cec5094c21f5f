//! `trainer evaluate`: parses its arguments, calls `trainer::judge` and prints the result.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, print_json};
use trainer::judge::{self, TargetSplit, UnderConditions};

/// Rank every held-out target over the whole catalogue: HR@{10,20,50} and NDCG@10.
///
/// Two protocols: `standard` (all earlier items are context) and `as-served` (the last Δτ before the target is hidden, as in
/// production). The tables include the popularity and co-occurrence baselines. The rank of every target is stored in models/NAME
/// for `trainer compare`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  trainer evaluate --config config/movielens.toml --model base --json")]
pub(crate) struct EvaluateArgs {
    /// Name of the model.
    #[arg(long)]
    model: String,
    /// Targets to rank.
    #[arg(long, value_enum, default_value_t = SplitArg::Test)]
    split: SplitArg,
    /// Also evaluate under conditions: each target's own value of these attributes or derived conditions, without and with a
    /// filter by the condition. CC@K is the share of a list that carries the condition.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    condition: Vec<String>,
    /// With --condition, also evaluate under each user's own recall instructions ([instructions]), derived from the history
    /// visible before the target; the lists of one user are merged by weight. Also measures the diversity of the lists.
    #[arg(long, requires = "condition")]
    instructions: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum SplitArg {
    /// Events held out for validation.
    Validation,
    /// Events held out for testing.
    Test,
    /// New events in `refresh`, before the model learns them; without baselines.
    Prequential,
}

impl SplitArg {
    pub(crate) fn split(self) -> TargetSplit {
        match self {
            Self::Validation => TargetSplit::Validation,
            Self::Test => TargetSplit::Test,
            Self::Prequential => TargetSplit::Prequential,
        }
    }
}

impl EvaluateArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let split = self.split.split();
        let asked = UnderConditions { attributes: &self.condition, by_instructions: self.instructions };
        let report = judge::run(&config, &root, &self.model, split, asked).await?;
        if report.results.is_empty() {
            match split {
                TargetSplit::Prequential => bail!("nothing in `refresh` is new"),
                _ => bail!("`sequences` holds out no target of this split; see sequences.split and --split"),
            }
        }
        eprint!("{report}");
        if common.json {
            print_json(&report)?;
        }
        Ok(EXIT_DONE)
    }
}
