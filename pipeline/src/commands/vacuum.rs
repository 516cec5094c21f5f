//! `pipeline vacuum`: deletes unneeded files of tables.

use schemas::config::Span;
use store::Root;
use store::vacuum::{KEEP, VacuumSettings, vacuum};
use terminal::{CommonArgs, Interrupt, print_json};

/// Delete files of the tables that no recent version needs.
///
/// Deletes files that a commit removed longer ago than --keep (by compaction, or because a table was rebuilt), and older files
/// that a killed writer left behind. The newest version loses nothing, and every version that was the newest within --keep stays
/// readable. Older versions become unreadable: keep at least the time of the longest run of any command. Files added to table
/// events since the oldest kept publication (retention.publications) stay, so that refreshes know what is new; except files whose
/// rows pipeline forget erased longer ago than --keep, which nothing keeps on disk.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline vacuum --config config/shop.toml --dry-run       what would be deleted
  pipeline vacuum --config config/shop.toml --keep 30d
  pipeline vacuum --config config/shop.toml --table events --table sft/genre")]
pub(crate) struct Args {
    /// Vacuum only this table; may be repeated [default: all of the root].
    #[arg(long = "table", value_name = "TABLE")]
    tables: Vec<String>,
    /// How long replaced versions stay readable, such as 12h or 30d; at least 1h.
    #[arg(long, value_name = "DURATION", default_value_t = KEEP, value_parser = span)]
    keep: Span,
    /// List what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
}

fn span(text: &str) -> Result<Span, String> {
    text.to_owned().try_into()
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let now_ms = chrono::Utc::now().timestamp_millis();
    let publications = config.retention.publications;
    let settings = VacuumSettings { keep: args.keep, publications, dry_run: args.dry_run, now_ms };
    let report = vacuum(&root, &args.tables, settings, &Interrupt::on_signal()).await?;
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
