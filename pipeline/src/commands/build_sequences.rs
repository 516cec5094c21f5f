//! `pipeline build-sequences`.

use pipeline::sequences::{build_with, refresh};
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

use super::resources::ResourceArgs;

/// Build the table sequences from events and items; with --since, the table refresh.
///
/// Running it again on the same versions with the same settings writes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write refresh instead: the rows that own an event committed after this version of events, in which only
    /// those events are targets.
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
