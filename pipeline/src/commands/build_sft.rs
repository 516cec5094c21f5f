//! `pipeline build-sft`: builds the tables of instruction examples.

use pipeline::sft::build_with;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

use super::resources::ResourceArgs;

/// Build the tables sft/<condition> from events and items: examples of following an instruction.
///
/// An example is a target, the history before it, and a value of the condition that the target carries. Targets of role 1 (the
/// share sequences.sft_share of the events, which pre-training never learns) are for training if they pass the limits of
/// [conditions]; those of role 2 and 3 are for evaluation. A second run on the same versions with the same settings writes
/// nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  pipeline build-sft --config config/movielens.toml --set sequences.sft_share=0.1 --condition genre
  pipeline inspect --config config/movielens.toml sft/genre

The share belongs into the configuration: pipeline build-sequences must run with the same one.")]
pub(crate) struct Args {
    /// Attributes of the catalogue (items.attributes) and derived conditions (conditions.derived), such as genre,new-release.
    #[arg(long = "condition", value_name = "NAME", value_delimiter = ',', required = true)]
    conditions: Vec<String>,
    #[command(flatten)]
    resources: ResourceArgs,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let resources = args.resources.resources()?;
    let interrupt = Interrupt::on_signal();
    // An aborted build deletes its unfinished shards; only the final commit takes effect.
    let report = tokio::select! {
        report = build_with(&config, &root, &args.conditions, resources) => report?,
        () = interrupt.wait() => anyhow::bail!("stopped; the table in the making is as it was"),
    };
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
