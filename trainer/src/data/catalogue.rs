//! The catalogue: the `items` table in memory.
//!
//! Memory: per item its id and 41 bytes, and 4 bytes per attribute and attribute value; titles only on request.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{TimestampMillisecondType, UInt32Type};
use ragged::Bags;
use schemas::tables;
use store::{Root, Snapshot};

use super::{DataError, ItemIndex};

/// The `items` table in memory, by item index. Index 0 is "no item".
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// Item ids; empty at index 0.
    pub item_ids: Vec<String>,
    /// Human-readable names, if known; empty unless loaded.
    titles: Vec<Option<String>>,
    /// True if the item may be retrieved.
    pub active: Vec<bool>,
    /// Release time in epoch milliseconds, if known.
    pub release_ts: Vec<Option<i64>>,
    /// Values of each item, by attribute.
    attributes: BTreeMap<String, Values>,
    /// Version of `items` that was read.
    pub version: u64,
}

/// Values of one attribute, each text stored once.
#[derive(Debug, Clone, Default)]
struct Values {
    /// Distinct values, by first appearance in the order of item indexes.
    names: Vec<String>,
    /// Positions in `names`, by item index.
    of_items: Bags,
}

/// Collects the values of an attribute from items in any order.
#[derive(Default)]
struct Coded {
    codes: HashMap<String, u32>,
    /// Codes of all items in reading order; by item index, offset and number of the item's codes.
    all: Vec<u32>,
    of_items: Vec<(u32, u32)>,
}

impl Coded {
    fn add<'a>(&mut self, index: usize, values: impl Iterator<Item = &'a str>) {
        let first = self.all.len();
        for value in values {
            let code = match self.codes.get(value) {
                Some(&code) => code,
                None => {
                    let code = self.codes.len() as u32;
                    self.codes.insert(value.to_owned(), code);
                    code
                }
            };
            self.all.push(code);
        }
        self.of_items[index] = (first as u32, (self.all.len() - first) as u32);
    }

    fn finish(self) -> Values {
        let mut texts = vec![String::new(); self.codes.len()];
        self.codes.into_iter().for_each(|(text, code)| texts[code as usize] = text);
        let mut places: Vec<Option<u32>> = vec![None; texts.len()];
        let mut values = Values::default();
        for (first, n) in self.of_items {
            let of_item = &self.all[first as usize..][..n as usize];
            for &code in of_item {
                places[code as usize].get_or_insert_with(|| {
                    values.names.push(std::mem::take(&mut texts[code as usize]));
                    values.names.len() as u32 - 1
                });
            }
            values.of_items.push(of_item.iter().filter_map(|&code| places[code as usize]));
        }
        values
    }
}

impl Catalogue {
    /// Loads the newest version of `items` with the given attributes, without titles.
    ///
    /// # Errors
    ///
    /// The table is missing or breaks its contract, or its item indexes are not 1 to the number of items.
    pub async fn load(root: &Root, attributes: &[String]) -> Result<Self, DataError> {
        Self::read(root, attributes, false).await
    }

    /// Loads the catalogue as [`load`](Self::load) does, with titles for display.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub async fn load_with_titles(root: &Root, attributes: &[String]) -> Result<Self, DataError> {
        Self::read(root, attributes, true).await
    }

    async fn read(root: &Root, attributes: &[String], with_titles: bool) -> Result<Self, DataError> {
        let snapshot = root.require(tables::ITEMS, "pipeline ingest").await?;
        let mut columns = vec!["item_id", "item_index", "active", "release_ts"];
        columns.extend(attributes.iter().map(String::as_str));
        let title = columns.len();
        if with_titles {
            columns.push("title");
        }
        let rows = snapshot.rows() as usize;
        let mut catalogue = Self {
            item_ids: vec![String::new(); rows + 1],
            titles: if with_titles { vec![None; rows + 1] } else { Vec::new() },
            active: vec![false; rows + 1],
            release_ts: vec![None; rows + 1],
            attributes: BTreeMap::new(),
            version: snapshot.version(),
        };
        let coded = |_: &String| Coded { of_items: vec![(0, 0); rows + 1], ..Coded::default() };
        let mut coded: Vec<Coded> = attributes.iter().map(coded).collect();
        let mut seen = 0;
        for batch in snapshot.read(&columns).await? {
            let ids = column(&snapshot, batch.column(0).as_string_opt::<i32>(), "item_id")?;
            let indexes = column(&snapshot, batch.column(1).as_primitive_opt::<UInt32Type>(), "item_index")?;
            let active = column(&snapshot, batch.column(2).as_boolean_opt(), "active")?;
            let releases = column(
                &snapshot,
                batch.column(3).as_primitive_opt::<TimestampMillisecondType>(),
                "release_ts",
            )?;
            let titles = match with_titles {
                true => Some(column(&snapshot, batch.column(title).as_string_opt::<i32>(), "title")?),
                false => None,
            };
            for row in 0..batch.num_rows() {
                let index = indexes.value(row) as usize;
                if index == 0 || index > rows || !catalogue.item_ids[index].is_empty() {
                    return Err(DataError::ItemIndexes { index, rows });
                }
                seen += 1;
                catalogue.item_ids[index] = ids.value(row).to_owned();
                if let Some(titles) = titles {
                    catalogue.titles[index] = titles.is_valid(row).then(|| titles.value(row).to_owned());
                }
                catalogue.active[index] = active.value(row);
                catalogue.release_ts[index] = releases.is_valid(row).then(|| releases.value(row));
                for (a, name) in attributes.iter().enumerate() {
                    let lists = column(&snapshot, batch.column(4 + a).as_list_opt::<i32>(), name)?;
                    let texts = column(&snapshot, lists.values().as_string_opt::<i32>(), name)?;
                    if lists.is_valid(row) {
                        let offsets = lists.value_offsets();
                        let of_row = offsets[row] as usize..offsets[row + 1] as usize;
                        let valid = of_row.filter(|&i| texts.is_valid(i)).map(|i| texts.value(i));
                        coded[a].add(index, valid);
                    }
                }
            }
        }
        if seen != rows {
            return Err(DataError::ItemIndexes { index: seen, rows });
        }
        let values = coded.into_iter().map(Coded::finish);
        catalogue.attributes = attributes.iter().cloned().zip(values).collect();
        Ok(catalogue)
    }

    /// Returns the number of items; indexes run from 1 to it.
    pub fn items(&self) -> usize {
        self.item_ids.len().saturating_sub(1)
    }

    /// Returns the human-readable name of `item`, if known and loaded.
    pub fn title(&self, item: ItemIndex) -> Option<&str> {
        self.titles.get(item.index())?.as_deref()
    }

    /// Returns the distinct values of an attribute, by first appearance in the order of item indexes.
    pub fn attribute_values(&self, name: &str) -> Vec<String> {
        self.attributes.get(name).map_or_else(Vec::new, |values| values.names.clone())
    }

    /// Returns, for each item index, the positions in `values` of the item's values of an attribute; others are skipped.
    pub fn attribute_bags(&self, name: &str, values: &[String]) -> Bags {
        let rows: HashMap<&str, u32> = values.iter().map(String::as_str).zip(0..).collect();
        let none = Values::default();
        let Values { names, of_items } = self.attributes.get(name).unwrap_or(&none);
        let row_of: Vec<Option<u32>> = names.iter().map(|name| rows.get(name.as_str()).copied()).collect();
        let mut bags = Bags::default();
        for index in 0..self.item_ids.len() {
            let of_item = if index < of_items.len() { of_items.get(index) } else { &[] };
            bags.push(of_item.iter().filter_map(|&place| row_of[place as usize]));
        }
        bags
    }

    #[cfg(test)]
    pub(crate) fn example(items: &[(&str, &[&str])]) -> Self {
        let mut catalogue = Self { item_ids: vec![String::new()], ..Self::default() };
        let mut genres = Coded { of_items: vec![(0, 0); items.len() + 1], ..Coded::default() };
        // In reverse order of the indexes: files may have any order.
        for (index, (_, values)) in (1..).zip(items).collect::<Vec<_>>().into_iter().rev() {
            genres.add(index, values.iter().copied());
        }
        catalogue.item_ids.extend(items.iter().map(|(id, _)| (*id).to_owned()));
        catalogue.release_ts = vec![None; items.len() + 1];
        catalogue.active = vec![true; items.len() + 1];
        catalogue.active[0] = false;
        catalogue.attributes.insert("genre".into(), genres.finish());
        catalogue
    }
}

pub(super) fn column<T>(snapshot: &Snapshot, array: Option<T>, name: &str) -> Result<T, DataError> {
    array.ok_or_else(|| DataError::ColumnType { table: snapshot.name().into(), column: name.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_by_first_appearance_in_the_order_of_the_items() {
        let catalogue =
            Catalogue::example(&[("a", &["x"]), ("b", &[]), ("c", &["y", "x", "y"]), ("d", &["z"])]);
        assert_eq!(catalogue.attribute_values("genre"), ["x", "y", "z"]);
        let bags = catalogue.attribute_bags("genre", &["z".into(), "x".into(), "w".into()]);
        let all: Vec<&[u32]> = (0..bags.len()).map(|index| bags.get(index)).collect();
        assert_eq!(all, [&[][..], &[1], &[], &[1], &[0]]);
        assert!(catalogue.attribute_values("mood").is_empty());
        assert_eq!(catalogue.attribute_bags("mood", &["calm".into()]).len(), 5);
        assert_eq!(catalogue.title(1.into()), None);
    }
}
