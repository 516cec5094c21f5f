use pipeline::inspect::{draw_user, inspect};
use schemas::cli::CommonArgs;
use schemas::delta::Root;

/// Arguments of `pipeline inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The table; all tables of the root where none is named.
    table: Option<String>,
    /// Draw this user's history.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// How many of the user's newest events to draw.
    #[arg(long, value_name = "N", default_value_t = 40, requires = "user")]
    last: usize,
}

pub(crate) async fn run(common: &CommonArgs, args: &Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let (text, json) = match &args.user {
        Some(user) => {
            let history = draw_user(&root, args.table.as_deref(), user, args.last).await?;
            (history.to_string(), serde_json::to_string(&history)?)
        }
        None => {
            let tables = inspect(&root, args.table.as_deref()).await?;
            (tables.to_string(), serde_json::to_string(&tables)?)
        }
    };
    eprintln!("{text}");
    if common.json {
        println!("{json}");
    }
    Ok(())
}
