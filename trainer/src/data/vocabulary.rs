//! Assigns rows of the embedding tables to items.
//!
//! Items with at least `min_count` training events have their own row, without collisions; every other item is the mean of two
//! hashed rows. The id table starts with the hashed rows, so that it can grow at the end: rows never move.
//!
//! ```text
//! id table   0 ······ hash_buckets ······ hash_buckets + own items
//!            └─ shared, by hash ─┘└──── one row an item ────┘
//! ```

use std::collections::HashSet;

use candle_core::{Device, Result as CandleResult, Tensor};
use ragged::Bags;
use schemas::config::Model;
use schemas::hash::{hash64, mix64};
use serde::{Deserialize, Serialize};

use crate::data::attribute::AttributeVocabulary;
use crate::data::conditions::KnownConditions;
use crate::data::{Catalogue, IdRow, ItemIndex};

/// Marks an item without its own row.
const SHARED: u32 = u32::MAX;

/// Map from items to embedding rows, stored in every checkpoint. Memory: 8 bytes an item, and 4 per attribute and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    buckets: usize,
    /// By item index: number of the item's own row after the hashed ones, or [`SHARED`]. Newer items have no entry.
    own_rows: Vec<u32>,
    own: usize,
    attributes: Vec<AttributeVocabulary>,
    /// Rows of each item's values, by attribute and item index; derived from the catalogue.
    attribute_rows: Vec<Bags>,
    conditions: KnownConditions,
    fingerprint: Fingerprint,
    /// Training events that the model and its ancestors have learned, by item index; empty if a checkpoint has no counts.
    counts: Vec<u32>,
}

/// Identity of the catalogue that a model was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Number of items.
    pub items: usize,
    /// Hash of their ids in the order of their indexes.
    pub hash: String,
}

impl Fingerprint {
    /// Computes the fingerprint of the first `items` items of `catalogue`.
    fn new(catalogue: &Catalogue, items: usize) -> Self {
        let hash = catalogue.item_ids[1..=items].iter().fold(0, |h, id| mix64(h, hash64(id.as_bytes())));
        Self { items, hash: format!("{hash:016x}") }
    }
}

/// Part of a vocabulary that a checkpoint stores as text; the rows are a tensor beside the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedVocabulary {
    /// Number of hashed rows.
    pub hash_buckets: usize,
    /// Values by attribute.
    pub attributes: Vec<AttributeVocabulary>,
    /// Conditions that the model follows.
    #[serde(default)]
    pub conditions: KnownConditions,
    /// Fingerprint of the catalogue that the vocabulary was made from.
    pub catalogue: Fingerprint,
}

/// The catalogue is not the one that the vocabulary was made from, nor a grown version of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it was trained on another catalogue: {items} items with fingerprint {expected}, \
     but the first {items} items here have {found}"
)]
pub struct OtherCatalogue {
    items: usize,
    expected: String,
    found: String,
}

impl Vocabulary {
    /// Creates the vocabulary of a new model; `counts` are the training events by item index.
    pub fn new(model: &Model, catalogue: &Catalogue, counts: &[u32]) -> Self {
        let mut own = 0;
        let own_rows = (0..=catalogue.items())
            .map(|index| {
                if index > 0 && counts.get(index).is_some_and(|&n| n >= model.min_count) {
                    own += 1;
                    own - 1
                } else {
                    SHARED
                }
            })
            .collect();
        let attributes: Vec<AttributeVocabulary> = model
            .attributes
            .iter()
            .map(|name| AttributeVocabulary { name: name.clone(), values: catalogue.attribute_values(name) })
            .collect();
        Self {
            buckets: model.hash_buckets,
            own_rows,
            own: own as usize,
            attribute_rows: attribute_rows(&attributes, catalogue),
            attributes,
            conditions: KnownConditions::default(),
            fingerprint: Fingerprint::new(catalogue, catalogue.items()),
            counts: counts.to_vec(),
        }
    }

    /// Returns the vocabulary for a model that follows `conditions`.
    #[must_use]
    pub fn with_conditions(&self, conditions: KnownConditions) -> Self {
        Self { conditions, ..self.clone() }
    }

    /// Returns the vocabulary for a grown catalogue: items that now have `min_count` of the training events `counts` get rows
    /// after the existing ones, and so do new values of attributes. No row moves.
    #[must_use]
    pub fn grown(&self, min_count: u32, catalogue: &Catalogue, counts: &[u32]) -> Self {
        let mut grown = self.clone();
        grown.own_rows.resize(catalogue.items() + 1, SHARED);
        for (index, row) in grown.own_rows.iter_mut().enumerate().skip(1) {
            if *row == SHARED && counts.get(index).is_some_and(|&n| n >= min_count) {
                *row = grown.own as u32;
                grown.own += 1;
            }
        }
        for attribute in &mut grown.attributes {
            let known: HashSet<String> = attribute.values.iter().cloned().collect();
            let new = catalogue.attribute_values(&attribute.name).into_iter();
            attribute.values.extend(new.filter(|value| !known.contains(value)));
        }
        grown.attribute_rows = attribute_rows(&grown.attributes, catalogue);
        grown.fingerprint = Fingerprint::new(catalogue, catalogue.items());
        grown.counts = counts.to_vec();
        grown
    }

    /// Restores a saved vocabulary for `catalogue`, which is the one it was made from or a grown version of it.
    ///
    /// # Errors
    ///
    /// The outer error is a tensor of another type; the inner one is another catalogue.
    pub fn restore(
        saved: SavedVocabulary,
        own_rows: &Tensor,
        counts: Option<&Tensor>,
        catalogue: &Catalogue,
    ) -> CandleResult<Result<Self, OtherCatalogue>> {
        let expected = saved.catalogue;
        let found =
            (expected.items <= catalogue.items()).then(|| Fingerprint::new(catalogue, expected.items));
        if found.as_ref() != Some(&expected) {
            return Ok(Err(OtherCatalogue {
                items: expected.items,
                expected: expected.hash,
                found: found.map_or_else(|| format!("only {} items", catalogue.items()), |f| f.hash),
            }));
        }
        let own_rows = own_rows.to_vec1::<u32>()?;
        Ok(Ok(Self {
            buckets: saved.hash_buckets,
            own: own_rows.iter().filter(|&&row| row != SHARED).count(),
            own_rows,
            attribute_rows: attribute_rows(&saved.attributes, catalogue),
            attributes: saved.attributes,
            conditions: saved.conditions,
            fingerprint: expected,
            counts: counts.map(Tensor::to_vec1).transpose()?.unwrap_or_default(),
        }))
    }

    /// Returns what a checkpoint stores: the text part, and the own rows and counts by item index.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    pub fn save(&self) -> CandleResult<(SavedVocabulary, [Tensor; 2])> {
        let saved = SavedVocabulary {
            hash_buckets: self.buckets,
            attributes: self.attributes.clone(),
            conditions: self.conditions.clone(),
            catalogue: self.fingerprint.clone(),
        };
        let tensor = |values: &Vec<u32>| Tensor::from_slice(values, values.len(), &Device::Cpu);
        Ok((saved, [tensor(&self.own_rows)?, tensor(&self.counts)?]))
    }

    /// Returns the training events that the model and its ancestors have learned, by item index; `None` if unknown.
    pub fn counts(&self) -> Option<&[u32]> {
        (!self.counts.is_empty()).then_some(&self.counts)
    }

    /// Returns the number of rows of the id table.
    pub fn id_rows(&self) -> usize {
        self.buckets + self.own
    }

    /// Returns the number of items with their own row.
    pub fn own_items(&self) -> usize {
        self.own
    }

    /// Returns the row in the id table of own row number `row`.
    fn own_row(&self, row: u32) -> IdRow {
        IdRow::new(self.buckets as u32 + row)
    }

    /// Returns the items with their own row, in the order of the id table.
    pub fn items_by_row(&self) -> Vec<(IdRow, ItemIndex)> {
        let mut items: Vec<(IdRow, ItemIndex)> = (0u32..)
            .zip(&self.own_rows)
            .filter(|&(_, &row)| row != SHARED)
            .map(|(item, &row)| (self.own_row(row), item.into()))
            .collect();
        items.sort_unstable();
        items
    }

    /// Returns the attributes that are part of an item's representation.
    pub fn attributes(&self) -> &[AttributeVocabulary] {
        &self.attributes
    }

    /// Returns the conditions that the model follows.
    pub fn conditions(&self) -> &KnownConditions {
        &self.conditions
    }

    /// Returns the rows of the id table ([`IdRow`]) of each item.
    pub fn id_bags(&self, items: &[ItemIndex]) -> Bags {
        let mut bags = Bags::default();
        for &item in items {
            match self.own_rows.get(item.index()) {
                Some(&row) if row != SHARED => bags.push([self.own_row(row).get()]),
                _ => {
                    bags.push([0, 1].map(|k| (mix64(k, u64::from(item.get())) % self.buckets as u64) as u32))
                }
            }
        }
        bags
    }

    /// Returns the rows of attribute `a`'s table of each item.
    pub fn attribute_bags(&self, a: usize, items: &[ItemIndex]) -> Bags {
        let mut bags = Bags::default();
        for &item in items {
            bags.push(self.attribute_rows[a].get(item.index()).iter().copied());
        }
        bags
    }
}

fn attribute_rows(attributes: &[AttributeVocabulary], catalogue: &Catalogue) -> Vec<Bags> {
    attributes.iter().map(|a| catalogue.attribute_bags(&a.name, &a.values)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::from_u32s;

    fn catalogue() -> Catalogue {
        Catalogue::example(&[("a", &["x"]), ("b", &[]), ("c", &["y", "x"])])
    }

    fn model() -> Model {
        Model { attributes: vec!["genre".into()], min_count: 2, hash_buckets: 4, ..Model::default() }
    }

    #[test]
    fn frequent_items_have_rows_of_their_own() {
        let vocabulary = Vocabulary::new(&model(), &catalogue(), &[0, 2, 1, 5]);
        let bags = vocabulary.id_bags(from_u32s(&[1, 2, 3, 99]));
        assert_eq!((bags.get(0), bags.get(2)), (&[4][..], &[5][..]));
        assert!(bags.get(1).len() == 2 && bags.get(1).iter().chain(bags.get(3)).all(|&row| row < 4));
        assert_eq!(vocabulary.id_rows(), 6);
        let genres = vocabulary.attribute_bags(0, from_u32s(&[1, 2, 3]));
        assert_eq!((genres.get(0), genres.get(1), genres.get(2)), (&[0][..], &[][..], &[1, 0][..]));
    }

    #[test]
    fn a_grown_catalogue_is_accepted_and_another_is_not() {
        let vocabulary = Vocabulary::new(&model(), &catalogue(), &[0, 2, 1, 5]);
        let (saved, [rows, counts]) = vocabulary.save().unwrap();
        let counts = Some(&counts);
        let same = Vocabulary::restore(saved.clone(), &rows, counts, &catalogue()).unwrap().unwrap();
        assert_eq!(same, vocabulary);
        assert_eq!(same.counts(), Some(&[0, 2, 1, 5][..]));
        let older = Vocabulary::restore(saved.clone(), &rows, None, &catalogue()).unwrap().unwrap();
        assert_eq!(older.counts(), None);
        let grown = Catalogue::example(&[("a", &["x"]), ("b", &[]), ("c", &["y", "x"]), ("d", &["z"])]);
        assert!(Vocabulary::restore(saved.clone(), &rows, counts, &grown).unwrap().is_ok());
        let other = Catalogue::example(&[("a", &[]), ("c", &[]), ("b", &[])]);
        let error = Vocabulary::restore(saved.clone(), &rows, counts, &other).unwrap().unwrap_err();
        assert!(error.to_string().contains("another catalogue"));
        let smaller = Catalogue::example(&[("a", &[])]);
        assert!(Vocabulary::restore(saved, &rows, counts, &smaller).unwrap().is_err());
    }
}
