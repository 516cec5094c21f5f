//! What the trainer reads: the catalogue, the rows of `sequences` and `refresh`, and the examples of `sft/<condition>`.

mod batch;
mod catalogue;
mod examples;
mod item_set;
mod loader;
mod sequences;

pub use batch::{Anchors, Batch, context_length};
pub(crate) use batch::{push_sequence, row_mask_keys};
pub use catalogue::Catalogue;
pub use examples::{Examples, ExamplesSource};
pub(crate) use item_set::ItemSet;
pub use loader::ahead;
pub use sequences::{FreshSource, Sequences, SequencesSource};

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A table cannot be opened or read.
    #[error(transparent)]
    Table(#[from] schemas::delta::TableError),
    /// A column of another type than the contract's.
    #[error("column `{column}` of table `{table}` has another type than the contract says")]
    ColumnType {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// Item indexes are not 1 to the number of items, each once.
    #[error("table `items` has {rows} rows but its item_index is not dense (near {index})")]
    ItemIndexes {
        /// Where it shows.
        index: usize,
        /// Rows of the table.
        rows: usize,
    },
    /// A row that breaks the contract.
    #[error("table `{table}`, shard {shard}, user `{user}`: {problem}")]
    Row {
        /// The table.
        table: String,
        /// The shard.
        shard: String,
        /// The user.
        user: String,
        /// The broken rule.
        problem: String,
    },
    /// Nothing to learn from.
    #[error("table `{table}` has no rows")]
    Empty {
        /// The table.
        table: String,
    },
}
