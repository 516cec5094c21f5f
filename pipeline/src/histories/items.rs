//! The index of every item: stored in the catalogue, or newly assigned to an item that only events name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, ListBuilder, StringArray, StringBuilder, UInt32Array, new_null_array,
};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::cast::{as_string_array, as_uint32_array};
use schemas::config::Config;
use schemas::tables::{ITEMS, NO_ITEM, items_schema};
use store::commit::{Change, CommitMode, ShardWriter, Uncommitted};
use store::{Root, Snapshot};

use super::codes::{ItemCodes, ItemIndexes};
use super::error::BuildError;

/// The catalogue at one version.
#[derive(Debug)]
pub(super) struct StoredCatalogue {
    snapshot: Option<Snapshot>,
    last: u32,
}

impl StoredCatalogue {
    /// Reads the indexes; an absent table counts as an empty one.
    pub(super) async fn read(snapshot: Option<Snapshot>) -> Result<(Self, ItemCodes), BuildError> {
        let mut catalogue = Self { snapshot: None, last: NO_ITEM };
        let mut known = ItemIndexes::default();
        if let Some(snapshot) = &snapshot {
            for batch in snapshot.read(&["item_id", "item_index"]).await? {
                let ids = as_string_array(batch.column(0))?;
                let indexes = as_uint32_array(batch.column(1))?;
                for (id, index) in ids.iter().flatten().zip(indexes.iter().flatten()) {
                    catalogue.last = catalogue.last.max(index);
                    if !known.insert(id, index) {
                        return Err(BuildError::Items { problem: format!("item `{id}` has two rows") });
                    }
                }
            }
        }
        catalogue.snapshot = snapshot;
        let codes = ItemCodes::new(known, catalogue.last);
        Ok((catalogue, codes))
    }

    /// The greatest index.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// The version; `None` where the table does not exist.
    fn version(&self) -> Option<u64> {
        self.snapshot.as_ref().map(Snapshot::version)
    }

    /// The catalogue as it is now; `None` where the table does not exist.
    pub(super) fn into_snapshot(self) -> Option<Snapshot> {
        self.snapshot
    }

    /// Appends the `missing` items in one commit, with empty attributes and the next indexes, in the text order of their ids;
    /// returns the first of these indexes. The order of first occurrence would need a sort of all events; text order needs none
    /// and is as reproducible.
    pub(super) async fn assign(
        &mut self,
        config: &Config,
        root: &Root,
        missing: &BTreeSet<String>,
    ) -> Result<u32, BuildError> {
        if missing.is_empty() {
            return Ok(self.last);
        }
        let schema = match &self.snapshot {
            Some(snapshot) => snapshot.stored_schema()?,
            None => items_schema(config.items.attributes.keys().map(String::as_str)),
        };
        let first = self.last.checked_add(1).ok_or(BuildError::TooManyItems)?;
        let count = u32::try_from(missing.len()).map_err(|_| BuildError::TooManyItems)?;
        let end = first.checked_add(count).ok_or(BuildError::TooManyItems)?;

        let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        let mut writer = ShardWriter::create(root, ITEMS, "part", &schema, &[])?;
        if let Some(snapshot) = &self.snapshot {
            for shard in snapshot.shards() {
                for batch in snapshot.read_shard(shard, &columns).await? {
                    writer.write(&batch)?;
                }
            }
        }
        writer.write(&unknown_items(&schema, missing, first)?)?;
        let mut shards = Uncommitted::new(root, ITEMS);
        shards.push(writer.finish()?);
        let change = Change {
            table: ITEMS,
            schema: &schema,
            partition_by: &[],
            mode: CommitMode::Replace,
            shards: shards.shards(),
            properties: self.snapshot.as_ref().map_or_else(BTreeMap::new, |snapshot| {
                snapshot.properties().iter().map(|(k, v)| (k.clone(), v.clone())).collect()
            }),
            read_version: self.version(),
            transactions: BTreeMap::new(),
        };
        let committed = shards.commit(change).await?;
        self.snapshot = root.snapshot_at(ITEMS, committed.version).await?;
        self.last = end - 1;
        Ok(first)
    }
}

/// Rows of `items` with id and index only.
fn unknown_items(
    schema: &SchemaRef,
    missing: &BTreeSet<String>,
    first: u32,
) -> Result<RecordBatch, BuildError> {
    let rows = missing.len();
    let columns = schema
        .fields()
        .iter()
        .map(|field| -> ArrayRef {
            match field.name().as_str() {
                "item_id" => Arc::new(StringArray::from_iter_values(missing)),
                "item_index" => Arc::new(UInt32Array::from_iter_values((first..).take(rows))),
                "active" => Arc::new(BooleanArray::from(vec![true; rows])),
                _ => match field.data_type() {
                    DataType::List(element) => {
                        let mut lists =
                            ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(element));
                        (0..rows).for_each(|_| lists.append(true));
                        Arc::new(lists.finish())
                    }
                    other => new_null_array(other, rows),
                },
            }
        })
        .collect();
    RecordBatch::try_new(Arc::clone(schema), columns)
        .map_err(|error| BuildError::Items { problem: error.to_string() })
}
