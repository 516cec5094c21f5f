//! `pipeline inspect`.

use pipeline::inspect::verify::verify;
use pipeline::inspect::{draw_user, inspect};
use schemas::cli::{CommonArgs, Violated, print_json};
use schemas::delta::Root;

/// Show what the tables hold, or draw one user's history.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The table; all tables of the root where none is named.
    table: Option<String>,
    /// Prove what the tables claim; exits with 3 and names the first row that breaks a claim.
    #[arg(long, conflicts_with = "user")]
    verify: bool,
    /// Draw this user's history.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// How many of the user's newest events to draw.
    #[arg(long, value_name = "N", default_value_t = 40, requires = "user")]
    last: usize,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let table = args.table.as_deref();
    if args.verify {
        let verification = verify(&config, &root, table).await?;
        show(common, &verification)?;
        return verification
            .violation
            .map_or(Ok(()), |violation| Err(Violated(violation.to_string()).into()));
    }
    match &args.user {
        Some(user) => show(common, &draw_user(&root, table, user, args.last).await?),
        None => show(common, &inspect(&root, table).await?),
    }
}

fn show(common: &CommonArgs, report: &(impl std::fmt::Display + serde::Serialize)) -> anyhow::Result<()> {
    eprintln!("{report}");
    if common.json {
        print_json(report)?;
    }
    Ok(())
}
