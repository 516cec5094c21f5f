//! `pipeline compact`: merges small shards.

use pipeline::compact::{TARGET, compact};
use schemas::memory::MemorySize;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

use super::resources::ResourceArgs;

/// Merge the many small shards that a consumer leaves in events and dead_letters into few large ones.
///
/// Rows stay the same, sorted by source and position inside each new shard; readers that follow the table's log do not see them
/// as new. Runs beside a consumer or an ingest. Dates without shards to merge stay as they are, so a run may be repeated. Readers
/// of older versions keep the old shards until pipeline vacuum.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example, once a day:
  pipeline compact --config config/shop.toml
  pipeline vacuum --config config/shop.toml --keep 7d")]
pub(crate) struct Args {
    /// Compact only this table; may be repeated [default: events and dead_letters].
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// Merge shards below this size into shards of about this size.
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
