//! Distinct types for 32-bit ids of different meanings.
//!
//! `ragged` takes plain `u32`s: [`as_u32s`] and [`from_u32s`] convert whole slices at its interface without a copy.

use schemas::tables::NO_ITEM;
use serde::{Deserialize, Serialize};

/// An id type that wraps a `u32`.
///
/// # Safety
///
/// The type must be `#[repr(transparent)]` over `u32`, with every `u32` a valid value: [`as_u32s`] and [`from_u32s`] rely on
/// both.
pub unsafe trait Id: Copy + Ord + From<u32> + Into<u32> {}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(transparent)]
        #[serde(transparent)]
        pub struct $name(u32);

        impl $name {
            /// Wraps a number.
            pub const fn new(number: u32) -> Self {
                Self(number)
            }

            /// Returns the number.
            pub const fn get(self) -> u32 {
                self.0
            }

            /// Returns the number as an index.
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

        // SAFETY: the type above is transparent over `u32` and has no invalid values.
        unsafe impl Id for $name {}

        /// Lets tests compare ids with plain numbers.
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
    /// Token of a batch: an event of a history, or its start.
    Token
    /// Position of an item among those whose vectors a step needs.
    StepItem
    /// Row of `[start; vectors of the step's items]`, which embeds tokens.
    VectorRow
    /// Position of an item among the candidates of a step's softmax.
    Candidate
    /// Row of the id embedding table.
    IdRow
    /// Row of a condition that a model knows ([`KnownConditions`](super::conditions::KnownConditions)).
    ConditionRow
}

impl ItemIndex {
    /// No item; as the item of a token, the start of a history.
    pub const NO_ITEM: Self = Self(NO_ITEM);

    /// Iterates over the items of a catalogue of `items` items, ascending.
    pub fn all(items: usize) -> impl DoubleEndedIterator<Item = Self> + Clone {
        (1..=items as u32).map(Self)
    }
}

impl Token {
    /// Returns the token `tokens` positions later.
    #[must_use]
    pub const fn behind(self, tokens: usize) -> Self {
        Self(self.0 + tokens as u32)
    }
}

impl VectorRow {
    /// Row of the start token.
    pub const START: Self = Self(0);
}

impl From<StepItem> for VectorRow {
    fn from(item: StepItem) -> Self {
        Self(1 + item.0)
    }
}

/// Views ids as their numbers.
pub fn as_u32s<T: Id>(ids: &[T]) -> &[u32] {
    // SAFETY: an `Id` has the layout of `u32` by its trait's contract; the lifetime is that of the borrow.
    unsafe { std::slice::from_raw_parts(ids.as_ptr().cast(), ids.len()) }
}

/// Views numbers as ids.
pub fn from_u32s<T: Id>(numbers: &[u32]) -> &[T] {
    // SAFETY: an `Id` has the layout of `u32` and every `u32` is valid by its trait's contract; the lifetime is that of the
    // borrow.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), numbers.len()) }
}

/// Converts numbers to ids, for tests.
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
