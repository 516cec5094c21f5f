//! The identity of events: an id of 128 bits for an event whose producer gives none, and a key of 128 bits for
//! every id, so that ids of any length are compared in little memory.
//!
//! An id assigned by this program is the hash of the content and of the number of earlier records in the file with
//! the same content: reading a file twice assigns the same ids, and two equal purchases in one file get two ids.
//! Equal content has an equal time and therefore one date, so repeats are counted date by date.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use schemas::hash::{hash64, hash128, mix64};
use schemas::tables::properties::DEDUP_DAYS;
use store::Snapshot;

use super::mapping::Event;

/// Computes keys from the content of events; keeps the buffer for the encoded content.
#[derive(Default)]
pub(crate) struct Content(Vec<u8>);

impl Content {
    /// The key of an event without a producer's id, with `before` earlier records of the same content.
    pub(crate) fn key(&mut self, event: &Event<'_>, before: u64) -> u128 {
        self.0.clear();
        event.encode(&mut self.0);
        self.0.extend_from_slice(&before.to_le_bytes());
        hash128(&self.0)
    }
}

/// The number of hexadecimal digits of an id that this program assigns.
const DIGITS: usize = 32;

/// The id of an event whose producer gave none.
pub(crate) fn id_of(key: u128) -> impl std::fmt::Display {
    std::fmt::from_fn(move |f| write!(f, "{key:0DIGITS$x}"))
}

/// The key of an id: the number itself if this program could have assigned the id, otherwise its hash.
/// With 128 bits, two ids of one log are not expected to share a key.
pub(crate) fn id_key(id: &str) -> u128 {
    let given = id.len() == DIGITS && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let number = if given { u128::from_str_radix(id, 16).ok() } else { None };
    number.unwrap_or_else(|| hash128(id.as_bytes()))
}

/// The property of `events` that records the window of days within which ids are unique, if a writer that checks `days` must set
/// it: for a new table, and for one whose earlier writers have checked more days.
pub(crate) fn dedup_property(events: Option<&Snapshot>, days: u32) -> Option<(String, String)> {
    let changes = match events {
        None => true,
        Some(events) => {
            let kept = events.properties().get(DEDUP_DAYS).and_then(|kept| kept.parse::<u32>().ok());
            kept.is_some_and(|kept| kept > days)
        }
    };
    changes.then(|| (DEDUP_DAYS.to_owned(), days.to_string()))
}

/// A cheap hash for keys, which are nearly random already, and for the ids of items.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = mix64(self.0, hash64(bytes));
    }

    fn write_u8(&mut self, byte: u8) {
        self.0 = self.0.rotate_left(8) ^ u64::from(byte);
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = mixed(key);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A hash of a key, because keys need not be random: an id that looks like an assigned one may be any number.
pub(crate) fn key_hash(key: u128) -> u64 {
    mixed(key)
}

fn mixed(key: u128) -> u64 {
    mix64((key >> 64) as u64, key as u64)
}

pub(crate) type KeySet = HashSet<u128, BuildHasherDefault<KeyHasher>>;
pub(crate) type KeyMap<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// The slice of a key, when all keys are divided into `slices` equal parts.
pub(crate) fn slice_of(key: u128, slices: u64) -> u64 {
    // Mixed again, so that the bits differ from those that a hash set of one slice's keys uses.
    mix64(slices, mixed(key)) % slices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_was_given_has_the_key_it_was_made_of() {
        for key in [0, 1, u128::MAX, hash128(b"x")] {
            assert_eq!(id_key(&id_of(key).to_string()), key);
        }
        let other = "0000000000000000000000000000000A";
        assert_eq!(id_key(other), hash128(other.as_bytes()));
        assert_eq!(id_key("e1"), hash128(b"e1"));
    }

    #[test]
    fn slices_are_about_equal() {
        let mut counts = [0; 4];
        (0..4_000u128).for_each(|n| counts[slice_of(n << 64, 4) as usize] += 1);
        assert!(counts.iter().all(|&n| n > 850), "{counts:?}");
    }
}
