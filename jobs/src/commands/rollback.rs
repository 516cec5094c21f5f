//! `climber rollback`: serves an earlier publication's model again.

use anyhow::Result;
use clap::Args;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, print_json};

use crate::publish;

/// Serve an earlier publication's model again.
///
/// Publishes the old model under a new number; the history keeps all earlier publications. The next daily job continues the
/// restored model and relearns what came after it. `climber refresh` waits for that job, unless --after-rollback is given.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  climber rollback --config config/shop.toml            the one before
  climber rollback --config config/shop.toml --to 41    `climber history` lists them")]
pub(crate) struct RollbackArgs {
    /// Number of the publication to restore. Default: the one before the served publication.
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
