//! Maps slots to the fields of a record: two slots may be read from one field.

use super::value::{Value, Wanted};

/// Each wanted field once, and the field of each slot.
pub(crate) struct Slots {
    pub(crate) fields: Vec<String>,
    /// Slot → field.
    pub(crate) slots: Vec<usize>,
}

impl Slots {
    pub(crate) fn new(wanted: &[Wanted]) -> Self {
        let mut fields: Vec<String> = Vec::new();
        let slots = wanted.iter().map(|wanted| {
            fields.iter().position(|field| *field == wanted.column).unwrap_or_else(|| {
                fields.push(wanted.column.clone());
                fields.len() - 1
            })
        });
        let slots = slots.collect();
        Self { fields, slots }
    }

    /// The value in `slot` of a record with these fields' `values`. Empty text is no value.
    pub(crate) fn value<'a>(&self, values: &'a [Value<'_>], slot: usize) -> Value<'a> {
        match &values[self.slots[slot]] {
            Value::Text(text) if text.is_empty() => Value::Null,
            value => value.borrowed(),
        }
    }
}
