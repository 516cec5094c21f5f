//! `pipeline ingest`: reads files into tables.

use pipeline::ingest::{self, CheckLimits, Limits};

use schemas::memory::MemorySize;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

/// Read files into the tables events, items and dead_letters.
///
/// A second run on the same files adds nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files, directories or glob patterns of interactions, or - for standard input, instead of the configuration's events.paths.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    events: Vec<String>,
    /// Files, directories or glob patterns of the catalogue, instead of the configuration's items.paths.
    #[arg(long, value_name = "PATH", num_args = 1..)]
    items: Vec<String>,
    /// Largest share of rejected records at which the run still succeeds, instead of the configuration's
    /// events.max_dead_letter_rate.
    #[arg(long, value_name = "SHARE")]
    max_dead_letter_rate: Option<f64>,
    /// Memory for events on their way to the table, such as 512MiB or 2GB; the rest spills to a temporary file (in `scratch` or
    /// TMPDIR). The catalogue needs memory besides. Default: half of the machine's.
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// Parse the first records of the files, show them beside what they become, and the first dead letters; write nothing.
    #[arg(long)]
    check: bool,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let mut config = common.load()?;
    if !args.events.is_empty() {
        config.events.paths = args.events;
    }
    if !args.items.is_empty() {
        config.items.paths = args.items;
    }
    if let Some(rate) = args.max_dead_letter_rate {
        config.events.max_dead_letter_rate = rate;
    }
    config.validate()?;
    if args.check {
        let report = ingest::check(&config, CheckLimits::default()).await?;
        eprintln!("{report}");
        if common.json {
            print_json(&report)?;
        }
        return Ok(());
    }
    let root = Root::new(&config.root)?;
    let mut limits = Limits::default();
    limits.memory = args.memory.unwrap_or(limits.memory);
    let report = ingest::run_within(&config, &root, limits, &Interrupt::on_signal()).await?;
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
