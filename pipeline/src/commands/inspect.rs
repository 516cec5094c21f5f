//! `pipeline inspect`: shows and verifies tables.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use pipeline::inspect::{draw_user, inspect};
use pipeline::verify::verify;
use store::Root;
use terminal::{CommonArgs, Violated, print_json};

/// Show what the tables hold, draw one user's history, or prove what the tables claim.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The table; by default all tables of the root.
    table: Option<String>,
    /// Prove what the tables claim, by the settings that they keep. Exits with 3 and names the first row that breaks a claim, or
    /// a claim that cannot be proven.
    #[arg(long, conflicts_with_all = ["user", "html"])]
    verify: bool,
    /// Draw this user's history.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Number of events to draw: the newest, or those around the target.
    #[arg(long, value_name = "N", default_value_t = 40, requires = "user")]
    last: usize,
    /// Show what the event at this position of the history may see, instead of the newest.
    #[arg(long, value_name = "POSITION", requires = "user")]
    target: Option<u64>,
    /// Also write the report to this file, as one HTML page with charts.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let table = args.table.as_deref();
    if args.verify {
        let verification = verify(&config, &root, table).await?;
        show(common, &verification)?;
        return match verification.doubt() {
            None => Ok(()),
            Some(doubt) => Err(Violated(doubt).into()),
        };
    }
    let html = args.html.as_deref();
    match &args.user {
        Some(user) => {
            let timeline = draw_user(&root, table, user, args.last, args.target).await?;
            write_html(html, || timeline.to_html())?;
            show(common, &timeline)
        }
        None => {
            let inspection = inspect(&root, table).await?;
            write_html(html, || inspection.to_html())?;
            show(common, &inspection)
        }
    }
}

fn show(common: &CommonArgs, report: &(impl std::fmt::Display + serde::Serialize)) -> anyhow::Result<()> {
    eprintln!("{report}");
    if common.json {
        print_json(report)?;
    }
    Ok(())
}

fn write_html(file: Option<&Path>, html: impl FnOnce() -> String) -> anyhow::Result<()> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, html()).with_context(|| format!("cannot write {}", file.display()))
}
