//! The `items` table during a run: loaded, changed, and written back whole if anything changed.
//!
//! Memory: the whole catalogue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, SchemaRef, TimestampMillisecondType, UInt32Type};
use schemas::tables::{ITEM_COLUMNS, ITEMS, items_schema};
use store::commit::{NewShard, ShardWriter};
use store::{Root, Snapshot};

use super::error::IngestError;

const BATCH_ROWS: usize = 1 << 14;

/// One item; its index is its position in [`Items`] plus one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) title: Option<String>,
    pub(super) release_ts: Option<i64>,
    pub(super) active: bool,
    /// Attribute → values; attributes without values are absent.
    pub(super) attributes: BTreeMap<String, Vec<String>>,
}

impl Default for Item {
    fn default() -> Self {
        Self { title: None, release_ts: None, active: true, attributes: BTreeMap::new() }
    }
}

/// All items, by index.
#[derive(Default)]
pub(super) struct Items {
    ids: Vec<String>,
    items: Vec<Item>,
    by_id: HashMap<String, usize>,
    attributes: BTreeSet<String>,
    /// Whether the stored table lacks a column or does not exist.
    other_columns: bool,
}

impl Items {
    /// Loads the stored items, and adds a column for each of `attributes` that is not stored.
    pub(super) async fn load<'a>(
        snapshot: Option<&Snapshot>,
        attributes: impl Iterator<Item = &'a String>,
    ) -> Result<Self, IngestError> {
        let mut items = Self { attributes: attributes.cloned().collect(), ..Self::default() };
        let Some(snapshot) = snapshot else {
            items.other_columns = true;
            return Ok(items);
        };
        let stored = stored_attributes(snapshot)?;
        items.other_columns = items.attributes.difference(&stored).next().is_some();
        items.attributes.extend(stored.iter().cloned());
        let mut columns = ITEM_COLUMNS.to_vec();
        columns.extend(stored.iter().map(String::as_str));
        let mut rows = Vec::new();
        for batch in snapshot.read(&columns).await? {
            read_rows(&batch, &stored, &mut rows);
        }
        rows.sort_by_key(|(index, ..)| *index);
        for (place, (index, id, item)) in rows.into_iter().enumerate() {
            if index as usize != place + 1 || items.by_id.insert(id.clone(), place).is_some() {
                return Err(IngestError::Damaged {
                    table: ITEMS,
                    problem: format!(
                        "item `{id}` has index {index}, so the indexes are not 1, 2, 3, …, once each"
                    ),
                });
            }
            items.ids.push(id);
            items.items.push(item);
        }
        Ok(items)
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether the stored table lacks a column or does not exist.
    pub(super) fn other_columns(&self) -> bool {
        self.other_columns
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.ids.iter().map(String::as_str)
    }

    pub(super) fn get(&self, id: &str) -> Option<&Item> {
        self.by_id.get(id).map(|&at| &self.items[at])
    }

    /// Replaces the item `id` by `item`, or appends it if there is none.
    pub(super) fn put(&mut self, id: &str, item: Item) -> Result<(), IngestError> {
        match self.by_id.get(id) {
            Some(&at) => self.items[at] = item,
            None => {
                if self.ids.len() >= u32::MAX as usize {
                    return Err(IngestError::TooManyItems);
                }
                self.by_id.insert(id.to_owned(), self.ids.len());
                self.ids.push(id.to_owned());
                self.items.push(item);
            }
        }
        Ok(())
    }

    /// Applies the changes of this run to the table as it is `now`: puts the items of its catalogue, and appends those that
    /// only events name.
    pub(super) async fn rebase(
        &mut self,
        now: Option<&Snapshot>,
        touched: &Touched,
    ) -> Result<(), IngestError> {
        let mut rebased = Self::load(now, self.attributes.iter()).await?;
        for (id, item) in self.ids.iter().zip(&self.items) {
            if touched.has(id) || rebased.get(id).is_none() {
                rebased.put(id, item.clone())?;
            }
        }
        *self = rebased;
        Ok(())
    }

    pub(super) fn schema(&self) -> SchemaRef {
        items_schema(self.attributes.iter().map(String::as_str))
    }

    /// Writes all items in order of their indexes.
    pub(super) fn write(&self, root: &Root) -> Result<NewShard, IngestError> {
        let schema = self.schema();
        let mut writer = ShardWriter::create(root, ITEMS, "part", &schema, &[])?;
        for start in (0..self.ids.len()).step_by(BATCH_ROWS) {
            let end = (start + BATCH_ROWS).min(self.ids.len());
            let items = &self.items[start..end];
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(&self.ids[start..end])),
                Arc::new(UInt32Array::from_iter_values((start..end).map(|at| at as u32 + 1))),
                Arc::new(items.iter().map(|i| i.title.as_deref()).collect::<StringArray>()),
                Arc::new(
                    items
                        .iter()
                        .map(|i| i.release_ts)
                        .collect::<TimestampMillisecondArray>()
                        .with_timezone("UTC"),
                ),
                Arc::new(items.iter().map(|i| Some(i.active)).collect::<BooleanArray>()),
            ];
            for attribute in &self.attributes {
                let element = Field::new("element", DataType::Utf8, false);
                let mut list = ListBuilder::new(StringBuilder::new()).with_field(element);
                for item in items {
                    let values = item.attributes.get(attribute).map(Vec::as_slice).unwrap_or_default();
                    values.iter().for_each(|value| list.values().append_value(value));
                    list.append(true);
                }
                columns.push(Arc::new(list.finish()));
            }
            let batch = RecordBatch::try_new(schema.clone(), columns)
                .map_err(|source| IngestError::Build { table: ITEMS, source })?;
            writer.write(&batch)?;
        }
        Ok(writer.finish()?)
    }
}

/// The attribute columns of the stored table.
fn stored_attributes(snapshot: &Snapshot) -> Result<BTreeSet<String>, IngestError> {
    let state = snapshot
        .delta()
        .snapshot()
        .map_err(|source| store::TableError::Log { table: ITEMS.into(), source: Box::new(source) })?;
    let names = state.schema().fields().map(|f| f.name().clone()).collect::<Vec<_>>();
    Ok(names.into_iter().filter(|name| !ITEM_COLUMNS.contains(&name.as_str())).collect())
}

fn read_rows(batch: &RecordBatch, attributes: &BTreeSet<String>, rows: &mut Vec<(u32, String, Item)>) {
    let ids = batch.column(0).as_string::<i32>();
    let indexes = batch.column(1).as_primitive::<UInt32Type>();
    let titles = batch.column(2).as_string::<i32>();
    let release = batch.column(3).as_primitive::<TimestampMillisecondType>();
    let active = batch.column(4).as_boolean();
    for row in 0..batch.num_rows() {
        let mut item = Item {
            title: titles.is_valid(row).then(|| titles.value(row).to_owned()),
            release_ts: release.is_valid(row).then(|| release.value(row)),
            active: active.value(row),
            attributes: BTreeMap::new(),
        };
        for (at, name) in attributes.iter().enumerate() {
            let values = batch.column(5 + at).as_list::<i32>().value(row);
            if !values.is_empty() {
                let values = values.as_string::<i32>().iter().flatten().map(str::to_owned).collect();
                item.attributes.insert(name.clone(), values);
            }
        }
        rows.push((indexes.value(row), ids.value(row).to_owned(), item));
    }
}

/// The items that a run's catalogue names, as they were before the run.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Item → its state before the run; `None` if it is new.
    before: BTreeMap<String, Option<Item>>,
}

impl Touched {
    /// Records the item before its first change; returns false if this run has changed it already.
    pub(super) fn first(&mut self, id: &str, before: Option<&Item>) -> bool {
        if self.before.contains_key(id) {
            return false;
        }
        self.before.insert(id.to_owned(), before.cloned());
        true
    }

    /// Whether this run's catalogue has the item.
    pub(super) fn has(&self, id: &str) -> bool {
        self.before.contains_key(id)
    }

    /// The numbers of added, changed and unchanged items.
    pub(super) fn counts<'i>(&self, now: impl Fn(&str) -> Option<&'i Item>) -> (u64, u64, u64) {
        let (mut added, mut updated, mut unchanged) = (0, 0, 0);
        for (id, before) in &self.before {
            match before {
                None => added += 1,
                Some(before) if now(id) == Some(before) => unchanged += 1,
                Some(_) => updated += 1,
            }
        }
        (added, updated, unchanged)
    }
}
