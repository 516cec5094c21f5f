//! `climber rollback`.

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, print_json};

use crate::publish;

/// Serve an earlier publication's model again.
///
/// Makes a new publication of the old model, so that history stays as it was; the next daily job continues the model that was
/// brought back, and learns again what came after it. `climber refresh` waits for that, unless --after-rollback tells it to go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  climber rollback --config config/shop.toml            the one before
  climber rollback --config config/shop.toml --to 41    `climber history` lists them")]
pub(crate) struct RollbackArgs {
    /// Number of the publication to bring back. Default: the one before what is served.
    #[arg(long, value_name = "NUMBER")]
    to: Option<u64>,
}

impl RollbackArgs {
    pub(crate) fn run(&self, common: &CommonArgs) -> Result<u8> {
        let root = Root::new(&common.load()?.root)?;
        let publication = publish::rollback(&root, self.to)?;
        eprintln!(
            "publication {} serves `{}` again, as publication {} did",
            publication.number,
            publication.served,
            publication.restores.unwrap_or_default()
        );
        if common.json {
            print_json(&publication)?;
        }
        Ok(EXIT_DONE)
    }
}
