//! Tables in memory: the catalogue, the rows of `sequences` and `refresh`, and the examples of `sft/<condition>`.
//!
//! | file | holds |
//! |---|---|
//! | `catalogue.rs` | items: ids, active flags, attributes, release times |
//! | `sequences.rs` | rows of histories in flat lists, with `v_t`, roles and owned positions |
//! | `sample.rs` | draws users without reading the whole log |
//! | `examples.rs` | instruction examples, and which events match each condition |
//! | `conditions.rs` | conditions that a model knows, and `C(item)`: the items that carry them |
//! | `vocabulary.rs` | embedding rows of each item; rare items share hashed rows; growth |
//! | `attribute.rs` | values of one attribute |
//! | `ids.rs`, `id_set.rs` | types of 32-bit ids; sets of ids with ranks |
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

/// Maximum number of positions, or examples, in a table.
const NUMBERED: usize = u32::MAX as usize;

/// Checks that `n`, the number of a table's `what` (such as positions), fits in 32 bits.
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
    /// A column's type differs from the contract's.
    #[error("column `{column}` of table `{table}` has another type than the contract says")]
    ColumnType {
        /// Name of the table.
        table: String,
        /// Name of the column.
        column: String,
    },
    /// Item indexes are not 1 to the number of items, each once.
    #[error("table `items` has {rows} rows but its item_index is not dense (near {index})")]
    ItemIndexes {
        /// First index that is out of range or repeated, or the number of rows read.
        index: usize,
        /// Number of rows in the table.
        rows: usize,
    },
    /// A row breaks the contract.
    #[error("table `{table}`, shard {shard}, user `{user}`: {problem}")]
    Row {
        /// Name of the table.
        table: String,
        /// Path of the shard.
        shard: String,
        /// Id of the user.
        user: String,
        /// Broken rule.
        problem: String,
    },
    /// A table has more positions or examples than 32 bits can number.
    #[error(
        "table `{table}` holds more than {most} {what}, and the trainer numbers them in 32 bits: build it from fewer events (or, \
         for examples, of fewer conditions)"
    )]
    TooMany {
        /// Name of the table.
        table: String,
        /// Positions or examples.
        what: &'static str,
        /// Maximum number.
        most: usize,
    },
    /// A table has no rows.
    #[error("table `{table}` has no rows")]
    Empty {
        /// Name of the table.
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
