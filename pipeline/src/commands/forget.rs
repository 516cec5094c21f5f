//! `pipeline forget`: erases users from all tables.

use pipeline::privacy::forget;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

/// Erase a user from all tables, dead letters included, and keep the user's records out from then on.
///
/// Every shard with rows of the user is rewritten without them. Older versions keep the old shard until the first pipeline vacuum
/// that runs more than its --keep later, whatever is published meanwhile. The table forgotten keeps a hash of the user under a
/// secret key, so that reading a source again counts the user's records (`forgotten`) instead of storing them. The key is in
/// ~/.local/state/climber-pilot/erasure-keys, or in forget.key_file of the configuration: keep it, and keep it secret.
///
/// Rejected records are attributed by their key, or by the field that names the user (in JSON, torn or whole, and in CSV files
/// that still exist). A record that does not say whose it is counts as the user's if any of its texts equals the user's id: ids
/// as short as `1` erase more records than necessary. Ids are compared as a whole. Ids in the tables that look the same
/// (surrounding blanks, composed and decomposed letters) are reported, and erased only if they are given too.
///
/// What models have learned goes with the next full training (daily.full_every_days). A running ingest or build may still bring
/// back what it read before, and a consumer what it held (it knows after the next micro-batch): run the command again when they
/// are done. climber daily also sweeps all tables every day.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  pipeline forget --config config/shop.toml --user 4711
  pipeline vacuum --config config/shop.toml --keep 1h      an hour later: the old shards go")]
pub(crate) struct Args {
    /// The user's id as in the log; may be repeated.
    #[arg(long = "user", value_name = "USER", required = true)]
    users: Vec<String>,
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    let report = forget(&config, &root, &args.users, &Interrupt::on_signal()).await?;
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
