//! Sets of small numbers, such as the items that a step needs, and how many of a set are smaller than a number.

/// Numbers below a bound, one bit each.
#[derive(Debug, Clone)]
pub(crate) struct ItemSet {
    words: Vec<u64>,
    /// Members before each word.
    before: Vec<u32>,
    len: usize,
}

impl ItemSet {
    /// `members`, in any order, all of them below `bound`.
    pub(crate) fn new(bound: usize, members: impl IntoIterator<Item = u32>) -> Self {
        let mut words = vec![0u64; bound.div_ceil(64)];
        for member in members {
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
        Self { words, before, len: len as usize }
    }

    /// Members.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether `number` is a member.
    pub(crate) fn contains(&self, number: u32) -> bool {
        self.words[number as usize / 64] >> (number % 64) & 1 == 1
    }

    /// Members below `number`: the place of a member among them.
    pub(crate) fn rank(&self, number: u32) -> u32 {
        let word = number as usize / 64;
        let below = self.words[word] & ((1 << (number % 64)) - 1);
        self.before[word] + below.count_ones()
    }

    /// All members, ascending.
    pub(crate) fn to_vec(&self) -> Vec<u32> {
        let mut members = Vec::with_capacity(self.len);
        for (first, &word) in (0..).step_by(64).zip(&self.words) {
            let mut rest = word;
            while rest != 0 {
                members.push(first + rest.trailing_zeros());
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

    proptest! {
        #[test]
        fn members_are_in_their_places(members in proptest::collection::vec(0u32..300, 0..200)) {
            let set = ItemSet::new(300, members.iter().copied());
            let expected: BTreeSet<u32> = members.into_iter().collect();
            prop_assert_eq!(set.len(), expected.len());
            prop_assert_eq!(set.to_vec(), expected.iter().copied().collect::<Vec<_>>());
            for number in 0..300 {
                prop_assert_eq!(set.contains(number), expected.contains(&number));
                prop_assert_eq!(set.rank(number) as usize, expected.range(..number).count());
            }
        }
    }
}
