use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, AsArray, ListArray};
use arrow::datatypes::{TimestampMillisecondType, UInt32Type};
use schemas::delta::{Root, Snapshot};
use schemas::tables;

use super::DataError;
use crate::ops::Bags;

/// The catalogue: the `items` table in memory, by item index. Index 0 is "no item".
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// Ids; the one at 0 is empty.
    pub item_ids: Vec<String>,
    /// Names for people, where there are any.
    pub titles: Vec<Option<String>>,
    /// Whether an item may be retrieved.
    pub active: Vec<bool>,
    /// When each item was released, epoch milliseconds, where that is known.
    pub release_ts: Vec<Option<i64>>,
    /// By attribute, the values of each item.
    attributes: BTreeMap<String, Vec<Vec<String>>>,
    /// The version of `items` that was read.
    pub version: u64,
}

impl Catalogue {
    /// Reads the newest version with the attributes that the model needs.
    pub async fn load(root: &Root, attributes: &[String]) -> Result<Self, DataError> {
        let snapshot = root.require(tables::ITEMS, "pipeline ingest").await?;
        let mut columns = vec!["item_id", "item_index", "title", "active", "release_ts"];
        columns.extend(attributes.iter().map(String::as_str));
        let rows = snapshot.rows() as usize;
        let mut catalogue = Self {
            item_ids: vec![String::new(); rows + 1],
            titles: vec![None; rows + 1],
            active: vec![false; rows + 1],
            release_ts: vec![None; rows + 1],
            attributes: attributes.iter().map(|a| (a.clone(), vec![Vec::new(); rows + 1])).collect(),
            version: snapshot.version(),
        };
        let mut seen = 0;
        for batch in snapshot.read(&columns).await? {
            let ids = column(&snapshot, batch.column(0).as_string_opt::<i32>(), "item_id")?;
            let indexes = column(&snapshot, batch.column(1).as_primitive_opt::<UInt32Type>(), "item_index")?;
            let titles = column(&snapshot, batch.column(2).as_string_opt::<i32>(), "title")?;
            let active = column(&snapshot, batch.column(3).as_boolean_opt(), "active")?;
            let releases = column(
                &snapshot,
                batch.column(4).as_primitive_opt::<TimestampMillisecondType>(),
                "release_ts",
            )?;
            for row in 0..batch.num_rows() {
                let index = indexes.value(row) as usize;
                if index == 0 || index > rows || !catalogue.item_ids[index].is_empty() {
                    return Err(DataError::ItemIndexes { index, rows });
                }
                seen += 1;
                catalogue.item_ids[index] = ids.value(row).to_owned();
                catalogue.titles[index] = titles.is_valid(row).then(|| titles.value(row).to_owned());
                catalogue.active[index] = active.value(row);
                catalogue.release_ts[index] = releases.is_valid(row).then(|| releases.value(row));
                for (a, name) in attributes.iter().enumerate() {
                    let lists = column(&snapshot, batch.column(5 + a).as_list_opt::<i32>(), name)?;
                    let values = list_of_strings(lists, row).ok_or_else(|| DataError::ColumnType {
                        table: "items".into(),
                        column: name.clone(),
                    })?;
                    if let Some(of_items) = catalogue.attributes.get_mut(name) {
                        of_items[index] = values;
                    }
                }
            }
        }
        if seen != rows {
            return Err(DataError::ItemIndexes { index: seen, rows });
        }
        Ok(catalogue)
    }

    /// Number of items; indexes go from 1 to this.
    pub fn items(&self) -> usize {
        self.item_ids.len().saturating_sub(1)
    }

    /// The values of an attribute, by first appearance in the order of item indexes.
    pub fn attribute_values(&self, name: &str) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        let of_items = self.attributes.get(name).map_or(&[][..], Vec::as_slice);
        of_items.iter().flatten().filter(|value| seen.insert(value.as_str())).cloned().collect()
    }

    /// For each item index, where its values of an attribute stand in `values`; others are left out.
    pub fn attribute_bags(&self, name: &str, values: &[String]) -> Bags {
        let rows: HashMap<&str, u32> = values.iter().map(String::as_str).zip(0..).collect();
        let mut bags = Bags::default();
        for index in 0..self.item_ids.len() {
            let of_item = self.attributes.get(name).map_or(&[][..], |items| items[index].as_slice());
            bags.push(of_item.iter().filter_map(|value| rows.get(value.as_str()).copied()));
        }
        bags
    }

    #[cfg(test)]
    pub(crate) fn example(items: &[(&str, &[&str])]) -> Self {
        let mut catalogue = Self { item_ids: vec![String::new()], ..Self::default() };
        let mut genres = vec![Vec::new()];
        for (id, values) in items {
            catalogue.item_ids.push((*id).to_owned());
            genres.push(values.iter().map(|v| (*v).to_owned()).collect());
        }
        catalogue.titles = vec![None; items.len() + 1];
        catalogue.release_ts = vec![None; items.len() + 1];
        catalogue.active = vec![true; items.len() + 1];
        catalogue.active[0] = false;
        catalogue.attributes.insert("genre".into(), genres);
        catalogue
    }
}

pub(super) fn column<T>(snapshot: &Snapshot, array: Option<T>, name: &str) -> Result<T, DataError> {
    array.ok_or_else(|| DataError::ColumnType { table: snapshot.name().into(), column: name.into() })
}

fn list_of_strings(lists: &ListArray, row: usize) -> Option<Vec<String>> {
    if lists.is_null(row) {
        return Some(Vec::new());
    }
    let values = lists.value(row);
    let values = values.as_string_opt::<i32>()?;
    Some(values.iter().flatten().map(str::to_owned).collect())
}
