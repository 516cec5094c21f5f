//! Dictionary codes for sources and items, assigned while the log is read.
//!
//! The scan carries a 32-bit code for every source and every item. An item of the catalogue has its index as its code. A
//! source, or an item that the catalogue lacks, gets a code when a stream first meets it. These codes depend on the
//! threads, so they never decide an order: after the scan, [`Codes::ranks`] maps each code to the rank of its text
//! among all texts, which depends on the log alone.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use arrow::array::{Array, StringViewArray};
use schemas::hash::hash128;

/// Codes of texts that were not known before the scan.
#[derive(Debug, Default)]
pub(super) struct Codes {
    codes: RwLock<HashMap<String, u32>>,
}

impl Codes {
    /// The code of `text`: from 0 on, in the order of arrival.
    pub(super) fn code(&self, text: &str) -> u32 {
        if let Some(&code) = self.codes.read().unwrap_or_else(PoisonError::into_inner).get(text) {
            return code;
        }
        let mut codes = self.codes.write().unwrap_or_else(PoisonError::into_inner);
        let next = codes.len() as u32;
        *codes.entry(text.to_owned()).or_insert(next)
    }

    /// The code of a text that has one.
    pub(super) fn known(&self, text: &str) -> Option<u32> {
        self.codes.read().unwrap_or_else(PoisonError::into_inner).get(text).copied()
    }

    /// All texts in ascending order, and the rank of each code's text among them.
    pub(super) fn ranks(&self) -> (BTreeSet<String>, Vec<u32>) {
        let codes = self.codes.read().unwrap_or_else(PoisonError::into_inner);
        let texts: BTreeSet<String> = codes.keys().cloned().collect();
        let mut ranks = vec![0; codes.len()];
        for (rank, text) in texts.iter().enumerate() {
            ranks[codes[text] as usize] = rank as u32;
        }
        (texts, ranks)
    }
}

/// The items of the catalogue by the hash of their id. A lookup is one probe into a table of 16 bytes an item and
/// compares no text. Two items are taken for one if 96 bits of their hashes agree.
#[derive(Debug, Default)]
pub(super) struct ItemIndexes {
    /// The first 64 bits of the hash → 32 other bits of it, and the index.
    table: HashMap<u64, (u32, u32), foldhash::fast::FixedState>,
    /// Items whose first 64 bits collide with those of an item in `table`.
    rest: HashMap<u128, u32>,
}

impl ItemIndexes {
    /// Adds an item; returns false if it is already present.
    pub(super) fn insert(&mut self, item: &str, index: u32) -> bool {
        let hash = hash128(item.as_bytes());
        match self.table.entry(hash as u64) {
            Entry::Vacant(place) => {
                place.insert((check(hash), index));
                true
            }
            Entry::Occupied(other) if other.get().0 == check(hash) => false,
            Entry::Occupied(_) => self.rest.insert(hash, index).is_none(),
        }
    }

    fn get(&self, hash: u128) -> Option<u32> {
        match self.table.get(&(hash as u64)) {
            Some(&(other, index)) if other == check(hash) => Some(index),
            Some(_) => self.rest.get(&hash).copied(),
            None => None,
        }
    }
}

fn check(hash: u128) -> u32 {
    (hash >> 64) as u32
}

/// Item → its index, or a code counted down from [`u32::MAX`].
#[derive(Debug)]
pub(super) struct ItemCodes {
    indexes: ItemIndexes,
    /// The greatest index of the catalogue.
    last: u32,
    unknown: Codes,
}

impl ItemCodes {
    /// Codes for the items that are not in `indexes`, a catalogue whose greatest index is `last`.
    pub(super) fn new(indexes: ItemIndexes, last: u32) -> Self {
        Self { indexes, last, unknown: Codes::default() }
    }

    /// The index or code of `item`.
    pub(super) fn code(&self, item: &str) -> u32 {
        self.indexes.get(hash128(item.as_bytes())).unwrap_or_else(|| self.unknown_code(item))
    }

    /// The indexes or codes of a column. Hashes are computed in small groups before the lookups, so that the cache misses
    /// of a group overlap.
    pub(super) fn codes(&self, items: &StringViewArray) -> Vec<u32> {
        let mut codes = Vec::with_capacity(items.len());
        let mut hashes = [0; 256];
        for start in (0..items.len()).step_by(hashes.len()) {
            let rows = start..items.len().min(start + hashes.len());
            for (hash, row) in hashes.iter_mut().zip(rows.clone()) {
                *hash = hash128(items.value(row).as_bytes());
            }
            codes.extend(hashes.iter().zip(rows).map(|(&hash, row)| {
                self.indexes.get(hash).unwrap_or_else(|| self.unknown_code(items.value(row)))
            }));
        }
        codes
    }

    fn unknown_code(&self, item: &str) -> u32 {
        u32::MAX - self.unknown.code(item)
    }

    /// The items without an index in text order, and the rank of each code's item among them.
    pub(super) fn missing(&self) -> (BTreeSet<String>, Vec<u32>) {
        self.unknown.ranks()
    }

    /// The map from codes to indexes, after the missing items have been given indexes from `first` on in text order.
    pub(super) fn resolve(&self, ranks: Vec<u32>, first: u32) -> ResolvedItems {
        ResolvedItems { last: self.last, indexes: ranks.into_iter().map(|rank| first + rank).collect() }
    }
}

/// Codes of items → indexes.
#[derive(Debug, Default)]
pub(super) struct ResolvedItems {
    last: u32,
    /// Indexes of the items that the catalogue lacked, by code.
    indexes: Vec<u32>,
}

impl ResolvedItems {
    /// The index that `code` stands for.
    pub(super) fn index(&self, code: u32) -> u32 {
        if code <= self.last { code } else { self.indexes[(u32::MAX - code) as usize] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_the_texts_whatever_the_order_of_arrival() {
        let codes = Codes::default();
        assert_eq!(["b", "c", "b", "a"].map(|text| codes.code(text)), [0, 1, 0, 2]);
        let (texts, ranks) = codes.ranks();
        assert_eq!(texts.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(ranks, [1, 2, 0]);
    }

    #[test]
    fn items_that_share_64_bits_are_told_apart() {
        let mut indexes = ItemIndexes::default();
        assert!(indexes.insert("x", 1));
        let x = hash128(b"x");
        let y = x ^ (1 << 64);
        assert_eq!((indexes.get(x), indexes.get(y)), (Some(1), None));
        indexes.rest.insert(y, 2);
        assert_eq!((indexes.get(x), indexes.get(y)), (Some(1), Some(2)));
    }

    #[test]
    fn missing_items_get_the_next_indexes_in_text_order() {
        let mut indexes = ItemIndexes::default();
        assert!(indexes.insert("x", 1) && indexes.insert("y", 2) && !indexes.insert("x", 3));
        let items = ItemCodes::new(indexes, 2);
        let log = StringViewArray::from(vec!["y", "new b", "x", "new a"]);
        let codes = items.codes(&log);
        assert_eq!(codes, log.iter().flatten().map(|item| items.code(item)).collect::<Vec<_>>());
        let (missing, ranks) = items.missing();
        assert_eq!(missing.into_iter().collect::<Vec<_>>(), ["new a", "new b"]);
        let resolved = items.resolve(ranks, 3);
        assert_eq!(codes.iter().map(|&code| resolved.index(code)).collect::<Vec<_>>(), [2, 4, 1, 3]);
    }
}
