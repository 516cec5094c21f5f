//! `pipeline build-sequences`.

use pipeline::sequences::build;
use schemas::cli::{CommonArgs, Interrupt, print_json};
use schemas::delta::Root;

/// Build the table sequences from events and items.
///
/// Running it again on the same versions with the same settings writes nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(common: &CommonArgs, _: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let interrupt = Interrupt::on_ctrl_c();
    // A build that is dropped deletes the shards it had begun; only its last step, the commit, counts.
    let report = tokio::select! {
        report = build(&config, &root) => report?,
        () = interrupt.wait() => anyhow::bail!("stopped; the table is as it was"),
    };
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
