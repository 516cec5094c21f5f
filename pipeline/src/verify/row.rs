//! The claims on a row of histories by itself, whatever the events.

use arrow::array::{ArrowPrimitiveType, AsArray, ListArray, RecordBatch};
use arrow::datatypes::{TimestampMillisecondType, UInt8Type, UInt32Type};
use schemas::history::Role;
use schemas::tables::NO_ITEM;

/// The columns of [`row`], in this order.
pub(super) const COLUMNS: [&str; 8] =
    ["user_id", "item_index", "ts", "session", "request", "visible_len", "role", "target_from"];

pub(super) const LENGTHS: &str = "the lists of a row have equal length, from 1 to max_len";
pub(super) const OWNED: &str = "target_from is below the length";
pub(super) const ASCENDING: &str = "ts ascends";
pub(super) const SESSIONS: &str = "session never falls";
pub(super) const ROLES: &str = "role is 0 to 4, and 4 before target_from";
pub(super) const ITEMS: &str = "item_index refers to an item";
pub(super) const PREFIX: &str = "visible_len is at most the position";

/// One row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub user: &'a str,
    pub item: &'a [u32],
    pub ts: &'a [i64],
    pub session: &'a [u32],
    pub request: &'a [u32],
    pub visible: &'a [u32],
    pub role: &'a [u8],
    pub target_from: usize,
}

/// A row of a batch with [`COLUMNS`].
pub(super) fn row(batch: &RecordBatch, row: usize) -> Row<'_> {
    Row {
        user: batch.column(0).as_string::<i32>().value(row),
        item: list::<UInt32Type>(batch.column(1).as_list(), row),
        ts: list::<TimestampMillisecondType>(batch.column(2).as_list(), row),
        session: list::<UInt32Type>(batch.column(3).as_list(), row),
        request: list::<UInt32Type>(batch.column(4).as_list(), row),
        visible: list::<UInt32Type>(batch.column(5).as_list(), row),
        role: list::<UInt8Type>(batch.column(6).as_list(), row),
        target_from: batch.column(7).as_primitive::<UInt32Type>().value(row) as usize,
    }
}

pub(super) fn list<T: ArrowPrimitiveType>(lists: &ListArray, row: usize) -> &[T::Native] {
    let offsets = lists.value_offsets();
    &lists.values().as_primitive::<T>().values()[offsets[row] as usize..offsets[row + 1] as usize]
}

/// A claim that a row breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    pub claim: &'static str,
    pub column: &'static str,
    pub position: Option<usize>,
    pub found: String,
    pub expected: String,
}

impl Broken {
    pub(super) fn new(
        claim: &'static str,
        column: &'static str,
        position: impl Into<Option<usize>>,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        let (found, expected) = (found.to_string(), expected.to_string());
        Self { claim, column, position: position.into(), found, expected }
    }
}

/// Limits that the rows of a table are checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Longest row.
    pub max_len: usize,
    /// Largest item index, where it is known.
    pub last_item: Option<u32>,
    /// Whether a target may be of role 4, as in `refresh`.
    pub old_targets: bool,
}

impl Row<'_> {
    /// The first claim that the row breaks.
    pub(super) fn check(&self, bounds: Bounds) -> Result<(), Broken> {
        self.lengths(bounds.max_len)?;
        let n = self.item.len();
        if self.target_from >= n {
            let expected = format!("below the row's length {n}");
            return Err(Broken::new(OWNED, "target_from", None, self.target_from, expected));
        }
        for k in 0..n {
            if self.item[k] == NO_ITEM || bounds.last_item.is_some_and(|last| self.item[k] > last) {
                let last = bounds.last_item.map_or_else(|| "any".into(), |last| last.to_string());
                return Err(Broken::new(ITEMS, "item_index", k, self.item[k], format!("1 to {last}")));
            }
            if k > 0 && self.ts[k] < self.ts[k - 1] {
                let expected = format!("at least {} (milliseconds)", self.ts[k - 1]);
                return Err(Broken::new(ASCENDING, "ts", k, self.ts[k], expected));
            }
            if k > 0 && self.session[k] < self.session[k - 1] {
                let expected = format!("at least {}", self.session[k - 1]);
                return Err(Broken::new(SESSIONS, "session", k, self.session[k], expected));
            }
            if self.visible[k] as usize > k {
                return Err(Broken::new(PREFIX, "visible_len", k, self.visible[k], format!("at most {k}")));
            }
            self.role_at(k, bounds.old_targets)?;
        }
        Ok(())
    }

    fn lengths(&self, max_len: usize) -> Result<(), Broken> {
        let n = self.item.len();
        if n == 0 || n > max_len {
            let expected = format!("1 to {max_len} positions");
            return Err(Broken::new(LENGTHS, "item_index", None, format!("{n} positions"), expected));
        }
        let others = [
            ("ts", self.ts.len()),
            ("session", self.session.len()),
            ("request", self.request.len()),
            ("visible_len", self.visible.len()),
            ("role", self.role.len()),
        ];
        match others.into_iter().find(|&(_, length)| length != n) {
            None => Ok(()),
            Some((column, length)) => {
                let expected = format!("{n} positions, as item_index");
                Err(Broken::new(LENGTHS, column, None, format!("{length} positions"), expected))
            }
        }
    }

    fn role_at(&self, k: usize, old_targets: bool) -> Result<(), Broken> {
        let context = Role::Context as u8;
        let fault = match Role::from_u8(self.role[k]) {
            None => Some("0 to 4"),
            Some(Role::Context) if k >= self.target_from && !old_targets => Some("0 to 3, as a target"),
            Some(role) if k < self.target_from && role as u8 != context => Some("4, before target_from"),
            Some(_) => None,
        };
        fault.map_or(Ok(()), |expected| Err(Broken::new(ROLES, "role", k, self.role[k], expected)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Row<'static> = Row {
        user: "u",
        item: &[1, 2, 2],
        ts: &[5, 5, 9],
        session: &[0, 0, 1],
        request: &[0, 0, 1],
        visible: &[0, 0, 2],
        role: &[4, 0, 3],
        target_from: 1,
    };
    const BOUNDS: Bounds = Bounds { max_len: 3, last_item: Some(2), old_targets: false };

    #[test]
    fn each_claim_is_looked_at() {
        assert_eq!(GOOD.check(BOUNDS), Ok(()));
        let broken = [
            (Row { session: &[0, 0], ..GOOD }, LENGTHS, "session", None),
            (Row { item: &[], ..GOOD }, LENGTHS, "item_index", None),
            (Row { target_from: 3, ..GOOD }, OWNED, "target_from", None),
            (Row { ts: &[5, 4, 9], ..GOOD }, ASCENDING, "ts", Some(1)),
            (Row { session: &[1, 0, 1], ..GOOD }, SESSIONS, "session", Some(1)),
            (Row { item: &[1, 0, 2], ..GOOD }, ITEMS, "item_index", Some(1)),
            (Row { item: &[1, 2, 3], ..GOOD }, ITEMS, "item_index", Some(2)),
            (Row { visible: &[0, 2, 2], ..GOOD }, PREFIX, "visible_len", Some(1)),
            (Row { role: &[0, 0, 3], ..GOOD }, ROLES, "role", Some(0)),
            (Row { role: &[4, 4, 3], ..GOOD }, ROLES, "role", Some(1)),
            (Row { role: &[4, 0, 5], ..GOOD }, ROLES, "role", Some(2)),
        ];
        for (row, claim, column, position) in broken {
            let found = row.check(BOUNDS).unwrap_err();
            assert_eq!((found.claim, found.column, found.position), (claim, column, position), "{found:?}");
        }
        assert_eq!(GOOD.check(Bounds { max_len: 2, ..BOUNDS }).unwrap_err().claim, LENGTHS);
        let refresh = Bounds { old_targets: true, ..BOUNDS };
        assert_eq!(Row { role: &[4, 4, 3], ..GOOD }.check(refresh), Ok(()));
    }
}
