//! `pipeline instructions`.

use chrono::{DateTime, Utc};
use pipeline::engine::Resources;
use pipeline::instructions::build;
use schemas::config::ConfigError;
use schemas::memory::MemorySize;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

/// With less, sorts and aggregations cannot even begin to spill.
const MEMORY_MIN: MemorySize = MemorySize::bytes(16 << 20);

/// Write each user's recall instructions, the conditions met most often in a sliding window, to the table
/// instructions.
///
/// [instructions] in the configuration says how many a user gets (per_user), how long the window is (window), and
/// how many of them each attribute or derived condition may give ([instructions.quota]; without it, every
/// attribute may give all). A value counts once for each event whose item carries it, shared among the item's
/// values; conditions.min_pool leaves out values with too few items to retrieve.
///
/// Running it again computes only the users with new events, or with events that the window has left behind; with
/// nothing new, it writes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  pipeline instructions --config config/movielens.toml
  pipeline instructions --config config/movielens.toml --at 2018-06-01T00:00:00Z --set instructions.window=365d
  pipeline inspect instructions --config config/movielens.toml")]
pub(crate) struct Args {
    /// The end of the window, such as 2026-11-22T00:00:00Z. Default: the time of the newest event.
    #[arg(long, value_name = "RFC3339")]
    at: Option<DateTime<Utc>>,
    /// Memory for everything that grows with the window, such as 1GiB; what does not fit goes to temporary files
    /// (`scratch` or TMPDIR says where). The catalogue comes on top. Default: half of the machine's.
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
    // A run that is dropped deletes the shards it had begun; only its last step, the commit, counts.
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
