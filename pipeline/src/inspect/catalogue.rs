//! Contents of `items`. Memory: the distinct values of all attributes.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Schema;
use schemas::tables::ITEM_COLUMNS;
use serde::Serialize;
use store::Snapshot;

use super::error::InspectError;
use super::log::Count;

/// Values shown for each attribute.
const TOP: usize = 10;

/// Contents of the catalogue.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ItemsContents {
    /// Rows.
    pub items: u64,
    /// Items that may be retrieved.
    pub active: u64,
    /// Items with a title.
    pub with_title: u64,
    /// Items with a release date.
    pub with_release_ts: u64,
    /// One entry for each attribute.
    pub attributes: Vec<AttributeValues>,
}

/// The values of one attribute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AttributeValues {
    /// The attribute.
    pub attribute: String,
    /// Distinct values.
    pub values: u64,
    /// Items without a value.
    pub items_without: u64,
    /// The most frequent values.
    pub top: Vec<Count>,
}

pub(super) async fn read(snapshot: &Snapshot, schema: &Schema) -> Result<ItemsContents, InspectError> {
    let names: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .filter(|name| !ITEM_COLUMNS.contains(name))
        .collect();
    let mut columns = vec!["active", "title", "release_ts"];
    columns.extend(&names);
    let mut contents = ItemsContents::default();
    let mut values: Vec<HashMap<String, u64>> = vec![HashMap::new(); names.len()];
    let mut without = vec![0; names.len()];
    for shard in snapshot.shards() {
        for batch in snapshot.read_shard(shard, &columns).await? {
            contents.items += batch.num_rows() as u64;
            contents.active += batch.column(0).as_boolean().true_count() as u64;
            let filled = |column: usize| (batch.num_rows() - batch.column(column).null_count()) as u64;
            contents.with_title += filled(1);
            contents.with_release_ts += filled(2);
            for (a, (values, without)) in values.iter_mut().zip(&mut without).enumerate() {
                let lists = batch.column(3 + a).as_list::<i32>();
                *without += (0..lists.len()).filter(|&row| lists.value_length(row) == 0).count() as u64;
                for value in lists.iter().flatten() {
                    for value in value.as_string::<i32>().iter().flatten() {
                        match values.get_mut(value) {
                            Some(count) => *count += 1,
                            None => _ = values.insert(value.to_owned(), 1),
                        }
                    }
                }
            }
        }
    }
    for ((name, values), items_without) in names.into_iter().zip(values).zip(without) {
        let distinct = values.len() as u64;
        let mut top: Vec<Count> = values.into_iter().map(|(value, count)| Count { value, count }).collect();
        top.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
        top.truncate(TOP);
        contents.attributes.push(AttributeValues {
            attribute: name.into(),
            values: distinct,
            items_without,
            top,
        });
    }
    Ok(contents)
}
