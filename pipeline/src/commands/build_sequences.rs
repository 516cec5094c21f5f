//! `pipeline build-sequences`: builds `sequences` or `refresh`.

use pipeline::sequences::{build_with, refresh};
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

use super::resources::ResourceArgs;

/// Build the table sequences from events and items; with --since, the table refresh.
///
/// A second run on the same versions with the same settings writes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Build refresh instead: the rows that own an event committed after this version of events, with only those events as
    /// targets.
    #[arg(long, value_name = "VERSION")]
    since: Option<u64>,
    #[command(flatten)]
    resources: ResourceArgs,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let resources = args.resources.resources()?;
    let interrupt = Interrupt::on_signal();
    let work = async {
        match args.since {
            Some(version) => refresh(&config, &root, version, resources).await,
            None => build_with(&config, &root, resources).await,
        }
    };
    // An aborted build deletes its unfinished shards; only the final commit takes effect.
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
