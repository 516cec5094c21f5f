//! Numbers of 32 bits that mean different things, as types that cannot be mixed up.
//!
//! `ragged` knows nothing of recommending and takes plain `u32`s: [`as_u32s`] and [`from_u32s`] convert whole slices at its border
//! without a copy.

use schemas::tables::NO_ITEM;
use serde::{Deserialize, Serialize};

/// A `u32` with a meaning.
///
/// # Safety
///
/// The type is `#[repr(transparent)]` over `u32`, and every `u32` is a valid value of it: [`as_u32s`] and [`from_u32s`] rely on both.
pub unsafe trait Id: Copy + Ord + From<u32> + Into<u32> {}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(transparent)]
        #[serde(transparent)]
        pub struct $name(u32);

        impl $name {
            /// With this number.
            pub const fn new(number: u32) -> Self {
                Self(number)
            }

            /// The number.
            pub const fn get(self) -> u32 {
                self.0
            }

            /// The number, as an index of lists.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl From<u32> for $name {
            fn from(number: u32) -> Self {
                Self(number)
            }
        }

        impl From<$name> for u32 {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        // SAFETY: the type is declared transparent over `u32` above, and has no invalid values.
        unsafe impl Id for $name {}

        /// Tests compare with plain numbers.
        #[cfg(test)]
        impl PartialEq<u32> for $name {
            fn eq(&self, number: &u32) -> bool {
                self.0 == *number
            }
        }
    )*};
}

ids! {
    /// Index of an item in the catalogue, from 1.
    ItemIndex
    /// Token of a batch: one event of a history, or its start.
    Token
    /// Place of an item among those whose vectors a step needs.
    StepItem
    /// Row of `[start; vectors of the step's items]`, which tokens are embedded from.
    VectorRow
    /// Place of an item among the candidates of a step's softmax.
    Candidate
    /// Row of the id embedding table.
    IdRow
    /// Row of a condition among those that a model knows ([`KnownConditions`](super::conditions::KnownConditions)).
    ConditionRow
}

impl ItemIndex {
    /// No item; as the item of a token, the start of its history.
    pub const NO_ITEM: Self = Self(NO_ITEM);

    /// The items of a catalogue of `items`, ascending.
    pub fn all(items: usize) -> impl DoubleEndedIterator<Item = Self> + Clone {
        (1..=items as u32).map(Self)
    }
}

impl Token {
    /// The token `tokens` behind this one.
    #[must_use]
    pub const fn behind(self, tokens: usize) -> Self {
        Self(self.0 + tokens as u32)
    }
}

impl VectorRow {
    /// The start of a history.
    pub const START: Self = Self(0);
}

impl From<StepItem> for VectorRow {
    fn from(item: StepItem) -> Self {
        Self(1 + item.0)
    }
}

/// The numbers of `ids`.
pub fn as_u32s<T: Id>(ids: &[T]) -> &[u32] {
    // SAFETY: an `Id` has the layout of `u32`, by the promise of the trait; the lifetime is that of the borrow.
    unsafe { std::slice::from_raw_parts(ids.as_ptr().cast(), ids.len()) }
}

/// `numbers`, which are ids.
pub fn from_u32s<T: Id>(numbers: &[u32]) -> &[T] {
    // SAFETY: an `Id` has the layout of `u32` and takes every value of it, by the promise of the trait; the lifetime is that of the
    // borrow.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}

/// A list of ids, for tests.
#[cfg(test)]
pub(crate) fn ids<T: Id>(numbers: &[u32]) -> Vec<T> {
    from_u32s(numbers).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_convert_both_ways() {
        let numbers = [3, 0, u32::MAX];
        let rows: &[ConditionRow] = from_u32s(&numbers);
        assert_eq!(rows, [ConditionRow(3), ConditionRow(0), ConditionRow(u32::MAX)]);
        assert_eq!(as_u32s(rows), numbers);
        assert_eq!(as_u32s::<ConditionRow>(&[]), [0u32; 0]);
    }
}
