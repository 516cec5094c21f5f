//! Numbers instead of texts, given out while the log is read.
//!
//! The scan moves a 32-bit code for every source and every item. Items of the catalogue have their index. A
//! source, and an item that the catalogue lacks, get a code when a stream first meets them; which one depends
//! on the threads, so codes never decide anything: when the scan is over, [`Codes::ranks`] says what each
//! stands for in the text order of all, which depends on the log alone.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

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

    /// All texts in their order, and for each code the place of its text among them.
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

/// The items of the catalogue by the hash of their id: one probe an event, without touching a text.
pub(super) type ItemIndexes = HashMap<u128, u32, foldhash::fast::FixedState>;

/// Item → its index, or a code counted down from [`u32::MAX`].
#[derive(Debug)]
pub(super) struct ItemCodes {
    indexes: ItemIndexes,
    /// The greatest index of the catalogue.
    last: u32,
    unknown: Codes,
}

impl ItemCodes {
    /// Codes on top of a catalogue's indexes, of which `last` is the greatest.
    pub(super) fn new(indexes: ItemIndexes, last: u32) -> Self {
        Self { indexes, last, unknown: Codes::default() }
    }

    /// The index or code of `item`.
    pub(super) fn code(&self, item: &str) -> u32 {
        match self.indexes.get(&hash128(item.as_bytes())) {
            Some(&index) => index,
            None => u32::MAX - self.unknown.code(item),
        }
    }

    /// The items that had no index, in text order.
    pub(super) fn missing(&self) -> BTreeSet<String> {
        self.unknown.ranks().0
    }

    /// What turns codes into indexes, once the missing items have got theirs from `first` on, in text order.
    pub(super) fn resolve(&self, first: u32) -> ResolvedItems {
        let (_, ranks) = self.unknown.ranks();
        ResolvedItems { last: self.last, indexes: ranks.into_iter().map(|rank| first + rank).collect() }
    }
}

/// Codes of items → indexes.
#[derive(Debug, Default)]
pub(super) struct ResolvedItems {
    last: u32,
    /// Of the items that the catalogue lacked, by code.
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
    fn missing_items_get_the_next_indexes_in_text_order() {
        let indexes = [("x", 1), ("y", 2)].map(|(id, index)| (hash128(id.as_bytes()), index));
        let items = ItemCodes::new(indexes.into_iter().collect(), 2);
        let codes = ["y", "new b", "x", "new a"].map(|item| items.code(item));
        assert_eq!(items.missing().into_iter().collect::<Vec<_>>(), ["new a", "new b"]);
        let resolved = items.resolve(3);
        assert_eq!(codes.map(|code| resolved.index(code)), [2, 4, 1, 3]);
    }
}
