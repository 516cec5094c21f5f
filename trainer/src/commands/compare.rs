//! `trainer compare`: parses its arguments, calls `trainer::compare` and prints the result.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, print_json};
use trainer::compare::{self, Group, Options, RESAMPLES};

use super::evaluate::SplitArg;

/// Compare runs evaluated on the same targets.
///
/// Prints HR@{10,20,50} and NDCG@10 of each run and its difference to the first run, with the 95 % interval of the paired
/// bootstrap over users. Several seeds of one setting form one run: LABEL=RUN1,RUN2,RUN3 gives mean and standard deviation.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  trainer compare --config config/movielens.toml nip=n1,n2,n3 tamip=t1,t2,t3 --plot curves.svg"
)]
pub(crate) struct CompareArgs {
    /// Models, as NAME or LABEL=NAME,NAME; each must have been evaluated with `trainer evaluate`.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<Group>,
    /// Split of the targets.
    #[arg(long, value_enum, default_value_t = SplitArg::Test)]
    split: SplitArg,
    /// Resamples of the bootstrap; its seed is that of the configuration.
    #[arg(long, default_value_t = RESAMPLES as u32, value_parser = clap::value_parser!(u32).range(100..))]
    resamples: u32,
    /// Compare under the conditions of the targets instead: HR@K and CC@K, as stored by `trainer evaluate --condition`.
    #[arg(long, value_name = "NAME", conflicts_with = "plot")]
    condition: Option<String>,
    /// Draw the learning curves and, if present, the horizon curve.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

impl CompareArgs {
    pub(crate) fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let options = Options {
            split: self.split.split().name(),
            resamples: self.resamples as usize,
            seed: config.seed,
        };
        if let Some(condition) = &self.condition {
            let comparison = compare::instructed(&root, &self.runs, condition, options)?;
            eprint!("{comparison}");
            if common.json {
                print_json(&comparison)?;
            }
            return Ok(EXIT_DONE);
        }
        let comparison = compare::run(&root, &self.runs, options)?;
        eprint!("{comparison}");
        if let Some(path) = &self.plot {
            match compare::svg(&comparison) {
                Some(svg) => std::fs::write(path, svg).with_context(|| path.display().to_string())?,
                None => eprintln!(
                    "{}: nothing to draw: no run recorded its validation (metrics.jsonl), and there is no horizon \
                     curve",
                    path.display()
                ),
            }
        }
        if common.json {
            print_json(&comparison)?;
        }
        Ok(EXIT_DONE)
    }
}
