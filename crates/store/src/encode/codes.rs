//! Codes of texts, in the order in which the texts come first.

use std::hash::{BuildHasher, RandomState};

use arrow::array::{Array, StringArray};
use schemas::hash::mix64;
use twox_hash::XxHash3_128;

/// Maximum bytes of a text that is its own key.
const SHORT: usize = 15;

/// Texts that are looked up together: their loads from memory overlap.
const TOGETHER: usize = 256;

/// The bits of a place in the table that are the hash's.
const TAG: u64 = !(u32::MAX as u64);

/// Gives texts consecutive codes.
///
/// Texts are compared by keys of 128 bits: a text of up to 15 bytes is its own key; a longer one has 120 bits of a hash whose seed is
/// random, so that two texts with one key are not expected, nor easily prepared. Codes do not depend on the seed.
pub(super) struct Codes {
    seed: u64,
    /// Open addressing: 32 bits of the hash, and the code + 1; 0 is free.
    table: Vec<u64>,
    /// Code → key.
    keys: Vec<u128>,
    /// Code → where the text ends in `texts`.
    ends: Vec<usize>,
    texts: Vec<u8>,
}

/// A text's key, and the hash of it.
type KeyAndHash = (u128, u64);

impl Codes {
    pub(super) fn new() -> Self {
        let seed = RandomState::new().hash_one(0);
        Self { seed, table: vec![0; 1 << 12], keys: Vec::new(), ends: Vec::new(), texts: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Bytes of all different texts.
    pub(super) fn bytes(&self) -> usize {
        self.texts.len()
    }

    /// The texts in the order of their codes.
    pub(super) fn texts(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.texts[start..end])
    }

    /// Appends the codes of all texts that are not null.
    pub(super) fn encode(&mut self, texts: &StringArray, codes: &mut Vec<u32>) {
        codes.reserve(texts.len() - texts.null_count());
        let mut hashed = [(0, 0); TOGETHER];
        let mut rows = [0; TOGETHER];
        let mut found = [0; TOGETHER];
        let mut next = 0;
        while next < texts.len() {
            let mut count = 0;
            while count < TOGETHER && next < texts.len() {
                if texts.is_valid(next) {
                    hashed[count] = self.hashed(texts, next);
                    rows[count] = next;
                    count += 1;
                }
                next += 1;
            }
            let mask = self.table.len() - 1;
            for (found, (_, hash)) in found.iter_mut().zip(&hashed[..count]) {
                *found = self.table[*hash as usize & mask];
            }
            for (at, (key, hash)) in hashed[..count].iter().enumerate() {
                // What is found stays right while others are added.
                let code = (found[at] as u32).wrapping_sub(1);
                let is_it = found[at] & TAG == hash & TAG && self.keys.get(code as usize) == Some(key);
                codes.push(if is_it { code } else { self.code((*key, *hash), texts.value(rows[at])) });
            }
        }
    }

    fn hashed(&self, texts: &StringArray, row: usize) -> KeyAndHash {
        let ends = texts.value_offsets();
        let (start, end) = (ends[row] as usize, ends[row + 1] as usize);
        let (bytes, length) = (texts.values().as_slice(), end - start);
        let key = match bytes.get(start..start + 16) {
            _ if length > SHORT => {
                let hash = XxHash3_128::oneshot_with_seed(self.seed, &bytes[start..end]);
                hash | u128::from(u8::MAX) << 120
            }
            Some(sixteen) => {
                let sixteen = u128::from_le_bytes(sixteen.try_into().unwrap_or_default());
                sixteen & ((1 << (8 * length)) - 1) | (length as u128) << 120
            }
            // The end of the array.
            None => {
                let mut sixteen = [0; 16];
                sixteen[..length].copy_from_slice(&bytes[start..end]);
                u128::from_le_bytes(sixteen) | (length as u128) << 120
            }
        };
        (key, self.hash(key))
    }

    fn hash(&self, key: u128) -> u64 {
        mix64(mix64(self.seed, key as u64), (key >> 64) as u64)
    }

    /// The code of a text that is not in its first place in the table.
    fn code(&mut self, (key, hash): KeyAndHash, text: &str) -> u32 {
        let mask = self.table.len() - 1;
        let mut place = hash as usize & mask;
        while self.table[place] != 0 {
            let code = self.table[place] as u32 - 1;
            if self.table[place] & TAG == hash & TAG && self.keys[code as usize] == key {
                return code;
            }
            place = (place + 1) & mask;
        }
        let code = self.keys.len() as u32;
        self.texts.extend_from_slice(text.as_bytes());
        self.ends.push(self.texts.len());
        self.keys.push(key);
        self.table[place] = hash & TAG | u64::from(code + 1);
        if self.keys.len() * 2 > self.table.len() {
            self.grow();
        }
        code
    }

    fn grow(&mut self) {
        let mask = self.table.len() * 2 - 1;
        let mut table = vec![0; mask + 1];
        for (key, number) in self.keys.iter().zip(1u64..) {
            let hash = self.hash(*key);
            let mut place = hash as usize & mask;
            while table[place] != 0 {
                place = (place + 1) & mask;
            }
            table[place] = hash & TAG | number;
        }
        self.table = table;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equal_texts_have_equal_codes(
            texts in prop::collection::vec(("[ab\0]{0,3}|[ab]{14,17}|.{0,40}", 1..40usize), 0..200),
            many in 0..6_000usize,
        ) {
            let numbers = (0..many).map(|n| (format!("number {n}"), 1));
            let texts = texts.into_iter().chain(numbers);
            let texts = texts.flat_map(|(text, times)| std::iter::repeat_n(text, times)).map(Some);
            let texts: StringArray = std::iter::once(None).chain(texts).collect();
            let (mut codes, mut found) = (Codes::new(), Vec::new());
            let (one, other) = (texts.len() / 2, texts.len() - texts.len() / 2);
            codes.encode(&texts.slice(0, one), &mut found);
            codes.encode(&texts.slice(one, other), &mut found);
            let mut expected = HashMap::new();
            for (text, code) in texts.iter().flatten().zip(&found) {
                let next = expected.len() as u32;
                prop_assert_eq!(*expected.entry(text).or_insert(next), *code);
            }
            prop_assert_eq!(found.len(), texts.len() - 1);
            prop_assert_eq!(codes.len(), expected.len());
            for (code, text) in codes.texts().enumerate() {
                prop_assert_eq!(expected[std::str::from_utf8(text).unwrap()], code as u32);
            }
        }
    }
}
