//! `pipeline compact`.

use pipeline::compact::{TARGET, compact};
use schemas::memory::MemorySize;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

use super::resources::ResourceArgs;

/// Merge small shards of events and dead_letters, which a consumer leaves many of, into few large ones.
///
/// The rows stay what they are, sorted by source and position inside each new shard, and no reader that follows the
/// table's log takes them for new. Runs beside a consumer or an ingest. A date that has nothing to merge is left
/// alone, so a run may be repeated. The old shards stay for readers of older versions, until pipeline vacuum.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, once a day:
  pipeline compact --config config/shop.toml
  pipeline vacuum --config config/shop.toml --keep 7d")]
pub(crate) struct Args {
    /// Compact this table only; may be repeated [default: events and dead_letters].
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Shards below this size are merged, until they have about it.
    #[arg(long, value_name = "SIZE", default_value_t = TARGET)]
    target_size: MemorySize,
    #[command(flatten)]
    resources: ResourceArgs,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let resources = args.resources.resources()?;
    let interrupt = Interrupt::on_signal();
    let report = compact(&root, &args.tables, args.target_size, resources, &interrupt).await?;
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
