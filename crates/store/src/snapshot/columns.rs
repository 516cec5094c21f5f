//! The columns of a table in the types of its shards.

use arrow::datatypes::SchemaRef;
use schemas::tables::{
    DEAD_LETTERS, DEAD_LETTERS_SCHEMA, EVENTS, EVENTS_SCHEMA, INSTRUCTIONS, INSTRUCTIONS_SCHEMA,
    ITEM_COLUMNS, ITEMS, REFRESH, SEQUENCES, SEQUENCES_SCHEMA, SFT_SCHEMA, is_sft, items_schema,
};

use super::Snapshot;
use crate::error::TableError;

impl Snapshot {
    /// The columns as the shards have them, since Delta's log knows no unsigned types. The attributes of `items` are those of the
    /// configuration that wrote it; a table that is none of the contract's has the types of the log.
    ///
    /// # Errors
    ///
    /// A log that cannot be read.
    pub fn stored_schema(&self) -> Result<SchemaRef, TableError> {
        let logged = || -> Result<SchemaRef, TableError> {
            let log = |source| TableError::Log { table: self.name.clone(), source: Box::new(source) };
            Ok(self.table.snapshot().map_err(log)?.snapshot().arrow_schema())
        };
        Ok(match self.name.as_str() {
            EVENTS => EVENTS_SCHEMA.clone(),
            ITEMS => {
                let columns = logged()?;
                let names = columns.fields().iter().map(|field| field.name().as_str());
                items_schema(names.filter(|name| !ITEM_COLUMNS.contains(name)))
            }
            SEQUENCES | REFRESH => SEQUENCES_SCHEMA.clone(),
            DEAD_LETTERS => DEAD_LETTERS_SCHEMA.clone(),
            INSTRUCTIONS => INSTRUCTIONS_SCHEMA.clone(),
            name if is_sft(name) => SFT_SCHEMA.clone(),
            _ => logged()?,
        })
    }
}
