//! `pipeline build-sequences`.

use pipeline::scan::Resources;
use pipeline::sequences::{build_with, refresh};
use schemas::cli::{CommonArgs, Interrupt, print_json};
use schemas::config::ConfigError;
use schemas::delta::Root;
use schemas::memory::MemorySize;

/// With less, nearly every event would be written out by itself: surely a forgotten unit.
const MEMORY_MIN: MemorySize = MemorySize::bytes(1 << 20);

/// Build the table sequences from events and items; with --since, the table refresh.
///
/// Running it again on the same versions with the same settings writes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write refresh instead: the rows that own an event committed after this version of events, in which only
    /// those events are targets.
    #[arg(long, value_name = "VERSION")]
    since: Option<u64>,
    /// Memory for everything that grows with the log, such as 1GiB; what does not fit goes to temporary files
    /// (TMPDIR says where). Default: half of the machine's.
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
            let problem = format!("{memory} is too little for anything; give at least {MEMORY_MIN}");
            return Err(ConfigError::Invalid { key: "--memory".into(), problem }.into());
        }
        resources.memory_bytes = usize::try_from(memory.bytes).unwrap_or(usize::MAX);
    }
    if let Some(threads) = args.threads {
        resources.threads = usize::from(threads);
    }
    let interrupt = Interrupt::on_ctrl_c();
    let work = async {
        match args.since {
            Some(version) => refresh(&config, &root, version, resources).await,
            None => build_with(&config, &root, resources).await,
        }
    };
    // A build that is dropped deletes the shards it had begun; only its last step, the commit, counts.
    let report = tokio::select! {
        report = work => report?,
        () = interrupt.wait() => anyhow::bail!("stopped; the table is as it was"),
    };
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
