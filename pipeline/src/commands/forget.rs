//! `pipeline forget`.

use pipeline::privacy::forget;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

/// Take a person out of all tables, dead letters included, and let nothing of them come in again.
///
/// Every shard with rows of the user is written again without them; the old one can be read as an older version until the first
/// pipeline vacuum that comes more than its --keep later, whatever is published meanwhile. A hash of the user under a secret key is kept in table forgotten, so that reading a source again counts
/// their records (`forgotten`) instead of bringing them back. The key is in ~/.local/state/climber-pilot/erasure-keys, or
/// forget.key_file of the configuration: keep it, and keep it secret.
///
/// Rejected records are known by their key, by the field that names the user (in JSON, torn or whole, and in CSV files that are
/// still there), or where they do not say whose they are by any text of theirs that is the user's id: with ids as short as `1`,
/// more of them go than have to. An id is compared as a whole. Ids in the tables that look the same (blanks around, composed
/// and decomposed letters) are named, and are not forgotten unless they are given too.
///
/// What models have learned goes with the next full training (daily.full_every_days). An ingest or a build that was running may
/// still bring what it had read before, and a consumer what it held (it knows after the next micro-batch): run the command again
/// when they are done. climber daily sweeps all tables too, every day.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  pipeline forget --config config/shop.toml --user 4711
  pipeline vacuum --config config/shop.toml --keep 1h      an hour later: the old shards go")]
pub(crate) struct Args {
    /// The user's id as the log has it; may be repeated.
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
