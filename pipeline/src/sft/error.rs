//! Errors of `pipeline build-sft`.

use schemas::config::ConfigError;
use store::TableError;
use store::commit::CommitError;

use crate::histories::BuildError;

/// Examples that could not be built. Tables of conditions before the failed one were committed.
#[derive(Debug, thiserror::Error)]
pub enum SftError {
    /// An unknown condition, or a configuration with nothing to train on. The source is [`ConfigError`], so that a program
    /// can recognize a mistake of the user.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The histories cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A table cannot be opened or read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A table cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// The catalogue was read without this attribute.
    #[error(
        "table `items` at version {version} has no column `{attribute}`; `pipeline ingest --items PATH` with this \
         configuration adds it"
    )]
    Attribute {
        /// The attribute.
        attribute: String,
        /// The version of `items`.
        version: u64,
    },
    /// No value has at least `conditions.min_pool` active items.
    #[error(
        "no value of `{condition}` is carried by conditions.min_pool = {min_pool} active items or more: {sizes}; \
         lower conditions.min_pool, or give the items values"
    )]
    Pools {
        /// The condition.
        condition: String,
        /// The limit.
        min_pool: usize,
        /// The largest pools.
        sizes: String,
    },
    /// The share is so small, or the log so short, that no event is an instruction-tuning target.
    #[error(
        "none of the {targets} events is an instruction-tuning target at sequences.sft_share = {sft_share}, so \
         there is nothing to train on; raise it, and run `pipeline build-sequences` with it too"
    )]
    NoTargets {
        /// Events that are targets at all.
        targets: u64,
        /// The configured share.
        sft_share: f64,
    },
    /// The written rows differ from the counted ones: a defect of this program or of the disk.
    #[error(
        "the shards of `{table}` hold {rows} examples, but {counted} were counted; nothing was committed"
    )]
    Sums {
        /// The table.
        table: String,
        /// Rows of the shards.
        rows: u64,
        /// Examples that were counted.
        counted: u64,
    },
}
