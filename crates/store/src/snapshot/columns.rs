//! A table's columns with the types that its shards have.

use arrow::datatypes::SchemaRef;
use schemas::tables::{
    DEAD_LETTERS, DEAD_LETTERS_SCHEMA, EVENTS, EVENTS_SCHEMA, INSTRUCTIONS, INSTRUCTIONS_SCHEMA,
    ITEM_COLUMNS, ITEMS, REFRESH, SEQUENCES, SEQUENCES_SCHEMA, SFT_SCHEMA, is_sft, items_schema,
};

use super::Snapshot;
use crate::error::TableError;

impl Snapshot {
    /// Returns the columns with the types of the shards; Delta's log has no unsigned types. The attributes of `items` are those
    /// in its log. A table that `schemas::tables` does not declare has the types of its log.
    ///
    /// # Errors
    ///
    /// [`TableError::Log`]: the log cannot be read.
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
