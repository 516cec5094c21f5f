//! What the trainer reads: the catalogue, the rows of `sequences` and `refresh`, and the examples of `sft/<condition>`.
//!
//! | file | holds |
//! |---|---|
//! | `catalogue.rs` | the items: ids, which are active, attributes, release times |
//! | `sequences.rs` | rows of histories, flat, with `v_t`, roles and owned positions; `sample.rs` draws some users without the rest of the log |
//! | `examples.rs` | instruction examples, and what matches each condition |
//! | `conditions.rs` | which conditions a model knows, and `C(item)`: which items carry them |
//! | `vocabulary.rs` | which item has which embedding rows; rare items share hashed ones; how it grows |
//! | `item_set.rs` | a set of items with ranks, 1 bit an item |
//!
//! Memory: the tables themselves, some 20 bytes an event.

pub mod attribute;
mod catalogue;
pub mod conditions;
mod examples;
mod id_set;
mod ids;
mod sample;
mod sequences;
pub mod vocabulary;

pub use catalogue::Catalogue;
#[cfg(test)]
pub(crate) use examples::ExampleHistory;
pub use examples::{Examples, ExamplesSource};
pub(crate) use id_set::IdSet;
#[cfg(test)]
pub(crate) use ids::ids;
pub use ids::{
    Candidate, ConditionRow, Id, IdRow, ItemIndex, StepItem, Token, VectorRow, as_u32s, from_u32s,
};
pub use sequences::{FreshSource, SequencesSource, SequencesTable};

/// How many positions of rows, or examples, can be numbered.
const NUMBERED: usize = u32::MAX as usize;

/// Refuses a table with more positions (or whatever `what` says) than can be numbered.
fn check_numbered(table: &str, what: &'static str, n: usize) -> Result<(), DataError> {
    if n > NUMBERED {
        return Err(DataError::TooMany { table: table.into(), what, most: NUMBERED });
    }
    Ok(())
}

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A table cannot be opened or read.
    #[error(transparent)]
    Table(#[from] store::TableError),
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
    /// Positions are numbered in 32 bits.
    #[error(
        "table `{table}` holds more than {most} {what}, and the trainer numbers them in 32 bits: build it from fewer events (or, \
         for examples, of fewer conditions)"
    )]
    TooMany {
        /// The table.
        table: String,
        /// Positions or examples.
        what: &'static str,
        /// How many fit.
        most: usize,
    },
    /// Nothing to learn from.
    #[error("table `{table}` has no rows")]
    Empty {
        /// The table.
        table: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_positions_than_32_bits_number_are_refused() {
        assert!(check_numbered("sequences", "positions", u32::MAX as usize).is_ok());
        let error = check_numbered("sequences", "positions", u32::MAX as usize + 1).unwrap_err().to_string();
        assert!(error.contains("`sequences` holds more than 4294967295 positions"), "{error}");
    }
}
