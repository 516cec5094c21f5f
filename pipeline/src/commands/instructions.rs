//! `pipeline instructions`: builds the table of recall instructions.

use chrono::{DateTime, Utc};
use pipeline::engine::Resources;
use pipeline::instructions::build;
use schemas::config::ConfigError;
use schemas::memory::MemorySize;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

/// Minimum of --memory: below it, sorts and aggregations cannot even start to spill.
const MEMORY_MIN: MemorySize = MemorySize::bytes(16 << 20);

/// Write each user's recall instructions to the table instructions: the conditions met most often in a sliding window.
///
/// [instructions] in the configuration sets how many a user gets (per_user), the length of the window (window), and how many of
/// them each attribute or derived condition may give ([instructions.quota]; by default every attribute may give all). A value
/// counts once for each event whose item carries it, shared among the item's values; conditions.min_pool leaves out values with
/// too few items to retrieve.
///
/// A second run computes only users with new events, or with events that the window has left; with nothing new, it writes
/// nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  pipeline instructions --config config/movielens.toml
  pipeline instructions --config config/movielens.toml --at 2018-06-01T00:00:00Z --set instructions.window=365d
  pipeline inspect instructions --config config/movielens.toml")]
pub(crate) struct Args {
    /// End of the window, such as 2026-11-22T00:00:00Z. Default: the time of the newest event.
    #[arg(long, value_name = "RFC3339")]
    at: Option<DateTime<Utc>>,
    /// Memory for everything that grows with the window, such as 1GiB; the rest spills to temporary files (in `scratch` or
    /// TMPDIR). The catalogue needs memory besides. Default: half of the machine's.
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// Parallel streams. Default: the machine's cores.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let mut resources = Resources::default();
    if let Some(memory) = args.memory {
        if memory.bytes < MEMORY_MIN.bytes {
            let problem = format!("{memory} is too little to count anything; give at least {MEMORY_MIN}");
            return Err(ConfigError::Invalid { key: "--memory".into(), problem }.into());
        }
        resources.memory_bytes = usize::try_from(memory.bytes).unwrap_or(usize::MAX);
    }
    if let Some(threads) = args.threads {
        resources.threads = usize::from(threads);
    }
    let interrupt = Interrupt::on_signal();
    // An aborted run deletes its unfinished shards; only the final commit takes effect.
    let report = tokio::select! {
        report = build(&config, &root, args.at, resources) => report?,
        () = interrupt.wait() => anyhow::bail!("stopped; the table is as it was"),
    };
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
