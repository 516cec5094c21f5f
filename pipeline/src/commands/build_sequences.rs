use pipeline::sequences::build;
use schemas::cli::CommonArgs;
use schemas::delta::Root;

/// Arguments of `pipeline build-sequences`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(common: &CommonArgs, _: &Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let report = build(&config, &root).await?;
    eprintln!("{report}");
    if common.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(())
}
