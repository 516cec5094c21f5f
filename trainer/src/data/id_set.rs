//! Sets of ids with ranks, such as the items that a step needs. Memory: 1.5 bits per id below the bound.

use std::marker::PhantomData;

use super::Id;

/// Set of ids below a bound, one bit each.
#[derive(Debug, Clone)]
pub(crate) struct IdSet<T> {
    words: Vec<u64>,
    /// Number of members before each word.
    before: Vec<u32>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Id> IdSet<T> {
    /// Collects `members`, in any order.
    ///
    /// # Panics
    ///
    /// A member is not below `bound`, rounded up to a multiple of 64.
    pub(crate) fn new(bound: usize, members: impl IntoIterator<Item = T>) -> Self {
        let mut words = vec![0u64; bound.div_ceil(64)];
        for member in members {
            let member: u32 = member.into();
            words[member as usize / 64] |= 1 << (member % 64);
        }
        let mut len = 0;
        let before = words
            .iter()
            .map(|word| {
                let before = len;
                len += word.count_ones();
                before
            })
            .collect();
        Self { words, before, len: len as usize, of: PhantomData }
    }

    /// Returns the number of members.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// True if `id` is a member.
    pub(crate) fn contains(&self, id: T) -> bool {
        let number: u32 = id.into();
        self.words[number as usize / 64] >> (number % 64) & 1 == 1
    }

    /// Returns the number of members below `id`, which is a member's position in the set.
    pub(crate) fn rank(&self, id: T) -> u32 {
        let number: u32 = id.into();
        let word = number as usize / 64;
        let below = self.words[word] & ((1 << (number % 64)) - 1);
        self.before[word] + below.count_ones()
    }

    /// Returns all members, ascending.
    pub(crate) fn to_vec(&self) -> Vec<T> {
        let mut members = Vec::with_capacity(self.len);
        for (first, &word) in (0..).step_by(64).zip(&self.words) {
            let mut rest = word;
            while rest != 0 {
                members.push(T::from(first + rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
        members
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::data::{IdRow, ids};

    proptest! {
        #[test]
        fn members_are_in_their_places(members in proptest::collection::vec(0u32..300, 0..200)) {
            let set = IdSet::new(300, ids::<IdRow>(&members));
            let expected: BTreeSet<u32> = members.into_iter().collect();
            prop_assert_eq!(set.len(), expected.len());
            prop_assert_eq!(set.to_vec(), expected.iter().copied().collect::<Vec<_>>());
            for number in 0..300 {
                prop_assert_eq!(set.contains(number.into()), expected.contains(&number));
                prop_assert_eq!(set.rank(number.into()) as usize, expected.range(..number).count());
            }
        }
    }
}
