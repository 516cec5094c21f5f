//! The tables `sequences` and `refresh` in memory: rows of histories in flat lists.
//!
//! Memory: 21 bytes a position and 17 a row.

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{ArrowPrimitiveType, AsArray, ListArray, RecordBatch};
use arrow::datatypes::{TimestampMillisecondType, UInt8Type, UInt32Type};
use rand::Rng;
use schemas::history::Role;
use schemas::tables::{self, properties};
use store::{Root, Snapshot};

use super::catalogue::column;
use super::sample::{Rows, read_all, sample};
use super::{DataError, ItemIndex, check_numbered, from_u32s};

/// Rows of `sequences` or `refresh` in flat lists.
#[derive(Debug, Clone, Default)]
pub struct SequencesTable {
    /// Offset of each row, and the end of the last.
    pub offsets: Vec<usize>,
    /// Item of each position.
    pub items: Vec<ItemIndex>,
    /// Time of each position in epoch milliseconds.
    pub ts: Vec<i64>,
    /// `visible_len` of each position.
    pub visible: Vec<u32>,
    /// Role of each position.
    pub roles: Vec<Role>,
    /// First owned position of each row, counted inside the row.
    pub target_from: Vec<u32>,
    /// Place of each position in its user's whole history.
    pub places: Vec<u32>,
    /// For each row, true if it omits events between its first and its last position.
    pub leaves_out: Vec<bool>,
    /// Index in `users` of each row's user. A user's rows are consecutive, oldest first.
    pub user: Vec<u32>,
    /// User ids.
    pub users: Vec<String>,
    /// Maximum row length that the table was built with.
    pub max_len: usize,
    /// Provenance of the rows.
    pub source: SequencesSource,
}

/// Provenance of the rows that a run was trained on.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SequencesSource {
    /// Version of `sequences`.
    pub sequences_version: u64,
    /// Version of `events` that it was built from.
    pub events_version: String,
    /// Version of `items` that it was built from.
    pub items_version: String,
    /// `Δτ` in milliseconds, or `off`.
    pub delta_tau_ms: String,
    /// Order of events at the same time.
    pub tie_policy: String,
    /// Hash of the settings that determine the rows, the split included.
    pub config_hash: String,
}

/// Provenance of the new events that a refresh learned.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FreshSource {
    /// Version of `refresh`.
    pub refresh_version: u64,
    /// Version of `events` that it was built from.
    pub events_version: String,
    /// Version of `events` after which an event is new.
    pub since_version: String,
}

impl SequencesTable {
    /// Loads the newest version of `sequences`, for a catalogue of `items` items.
    ///
    /// # Errors
    ///
    /// The table is missing or empty, breaks its contract, or has too many positions.
    pub async fn load(root: &Root, items: usize) -> Result<Self, DataError> {
        let snapshot = root.require(tables::SEQUENCES, "pipeline build-sequences").await?;
        let all = Self::read(&snapshot, items).await?;
        if all.items.is_empty() {
            return Err(DataError::Empty { table: snapshot.name().into() });
        }
        Ok(all)
    }

    /// Loads randomly drawn users of the newest `sequences`, until `enough`, given the rows so far and the number of draws,
    /// returns true or all are read; a small table is read as a whole. Each user's rows are complete.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub async fn sample(
        root: &Root,
        items: usize,
        generator: &mut impl Rng,
        mut enough: impl FnMut(&Self, usize) -> bool,
    ) -> Result<Self, DataError> {
        let snapshot = root.require(tables::SEQUENCES, "pipeline build-sequences").await?;
        let mut reading = Reading::new(&snapshot, items);
        let tables = std::slice::from_ref(&snapshot);
        sample(tables, &mut reading, generator, |read, draws| enough(&read.all, draws)).await?;
        if reading.all.items.is_empty() {
            return Err(DataError::Empty { table: snapshot.name().into() });
        }
        Ok(reading.all)
    }

    /// Returns the provenance of the newest `sequences` without reading its rows.
    ///
    /// # Errors
    ///
    /// The table is missing or cannot be opened.
    pub async fn source(root: &Root) -> Result<SequencesSource, DataError> {
        let snapshot = root.require(tables::SEQUENCES, "pipeline build-sequences").await?;
        Ok(Self::empty(&snapshot).source)
    }

    /// Loads the newest version of `refresh`. It contains only rows with something new, so their places in whole histories are
    /// unknown: the rows serve training only.
    ///
    /// # Errors
    ///
    /// The table is missing, breaks its contract, or has too many positions.
    pub async fn load_fresh(root: &Root, items: usize) -> Result<(Self, FreshSource), DataError> {
        let snapshot = root.require(tables::REFRESH, "pipeline build-sequences --since VERSION").await?;
        let fresh = Self::read(&snapshot, items).await?;
        let since = snapshot.properties().get(properties::SINCE_VERSION).cloned().unwrap_or_default();
        let source = FreshSource {
            refresh_version: snapshot.version(),
            events_version: fresh.source.events_version.clone(),
            since_version: since,
        };
        Ok((fresh, source))
    }

    async fn read(snapshot: &Snapshot, items: usize) -> Result<Self, DataError> {
        let mut reading = Reading::new(snapshot, items);
        read_all(snapshot, &mut reading).await?;
        Ok(reading.all)
    }

    /// Creates an empty table with the provenance of `snapshot`.
    fn empty(snapshot: &Snapshot) -> Self {
        let property = |key: &str| snapshot.properties().get(key).cloned().unwrap_or_default();
        Self {
            offsets: vec![0],
            source: SequencesSource {
                sequences_version: snapshot.version(),
                events_version: property(properties::EVENTS_VERSION),
                items_version: property(properties::ITEMS_VERSION),
                delta_tau_ms: property(properties::DELTA_TAU_MS),
                tie_policy: property(properties::TIE_POLICY),
                config_hash: property(properties::CONFIG_HASH),
            },
            max_len: property(properties::MAX_LEN).parse().unwrap_or(0),
            ..Self::default()
        }
    }

    /// Returns, for each row of this `refresh`, the row of the `sequences` table `whole` with the same events, if any.
    pub fn rows_in(&self, whole: &Self) -> Vec<Option<usize>> {
        let mut of_user: HashMap<&str, Vec<usize>> = HashMap::new();
        for (row, &user) in whole.user.iter().enumerate() {
            of_user.entry(&whole.users[user as usize]).or_default().push(row);
        }
        let same = |row: usize, other: usize| {
            let (ours, theirs) = (self.row(row), whole.row(other));
            self.target_from[row] == whole.target_from[other]
                && self.ts[ours.clone()] == whole.ts[theirs.clone()]
                && self.items[ours] == whole.items[theirs]
        };
        let find = |(row, &user): (usize, &u32)| {
            let candidates = of_user.get(self.users[user as usize].as_str())?;
            candidates.iter().copied().find(|&other| same(row, other))
        };
        self.user.iter().enumerate().map(find).collect()
    }

    /// Appends `rows` of `other`, for training: their users get new numbers.
    pub fn append(&mut self, other: &Self, rows: &[u32]) {
        let mut user = None;
        for &row in rows {
            let positions = other.row(row as usize);
            let row = row as usize;
            self.items.extend_from_slice(&other.items[positions.clone()]);
            self.ts.extend_from_slice(&other.ts[positions.clone()]);
            self.visible.extend_from_slice(&other.visible[positions.clone()]);
            self.roles.extend_from_slice(&other.roles[positions.clone()]);
            self.places.extend_from_slice(&other.places[positions]);
            self.target_from.push(other.target_from[row]);
            self.leaves_out.push(other.leaves_out[row]);
            if user.replace(other.user[row]) != Some(other.user[row]) {
                self.users.push(other.users[other.user[row] as usize].clone());
            }
            self.user.push(self.users.len() as u32 - 1);
            self.offsets.push(self.items.len());
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.target_from.len()
    }

    /// Returns the positions of a row in the flat lists.
    pub fn row(&self, row: usize) -> Range<usize> {
        self.offsets[row]..self.offsets[row + 1]
    }

    /// Returns the owned positions of a row in the flat lists.
    pub fn owned(&self, row: usize) -> Range<usize> {
        self.offsets[row] + self.target_from[row] as usize..self.offsets[row + 1]
    }

    /// Iterates over the positions in the flat lists of the first `events` events of the history of `row`'s user. Only events up
    /// to that row are found.
    pub fn positions(&self, row: usize, events: usize) -> impl Iterator<Item = usize> + '_ {
        let first = (0..=row).rev().take_while(|&r| self.user[r] == self.user[row]).last().unwrap_or(row);
        (first..=row).flat_map(|r| self.owned(r)).take(events)
    }

    /// Iterates over the items of the first `events` events of the history of `row`'s user.
    pub fn history(&self, row: usize, events: usize) -> impl Iterator<Item = ItemIndex> + '_ {
        self.positions(row, events).map(|position| self.items[position])
    }

    /// Counts training events by item index, from 0 to `items`: owned positions of role pre-training or SFT.
    pub fn training_counts(&self, items: usize) -> Vec<u32> {
        let mut counts = vec![0; items + 1];
        for row in 0..self.rows() {
            for position in self.owned(row) {
                if matches!(self.roles[position], Role::Pretrain | Role::Sft) {
                    counts[self.items[position].index()] += 1;
                }
            }
        }
        counts
    }
}

/// State of reading a table.
struct Reading {
    /// Number of items in the catalogue.
    items: usize,
    /// True if all rows of each user are read, so that every context position has a place in the user's history.
    is_whole: bool,
    history: OwnedEvents,
    all: SequencesTable,
}

impl Reading {
    fn new(snapshot: &Snapshot, items: usize) -> Self {
        let is_whole = snapshot.name() == tables::SEQUENCES;
        Self { items, is_whole, history: OwnedEvents::default(), all: SequencesTable::empty(snapshot) }
    }
}

impl Rows for Reading {
    const COLUMNS: &'static [&'static str] =
        &["user_id", "item_index", "ts", "visible_len", "role", "target_from", "session", "request"];

    fn add(
        &mut self,
        snapshot: &Snapshot,
        shard: &str,
        batch: &RecordBatch,
        keep: impl Fn(usize) -> bool,
    ) -> Result<(), DataError> {
        let Self { items, is_whole, history, all } = self;
        let items = *items;
        let users = column(snapshot, batch.column(0).as_string_opt::<i32>(), Self::COLUMNS[0])?;
        let list = |c: usize| column(snapshot, batch.column(c).as_list_opt::<i32>(), Self::COLUMNS[c]);
        let target_from =
            column(snapshot, batch.column(5).as_primitive_opt::<UInt32Type>(), Self::COLUMNS[5])?;
        let ordinals = [list(6)?, list(7)?];
        let (item_index, ts, visible, role) = (list(1)?, list(2)?, list(3)?, list(4)?);
        for row in (0..batch.num_rows()).filter(|&row| keep(row)) {
            if all.users.last().is_none_or(|user| user != users.value(row)) {
                all.users.push(users.value(row).to_owned());
                *history = OwnedEvents::default();
            }
            let fail = |problem: &str| DataError::Row {
                table: snapshot.name().into(),
                shard: shard.into(),
                user: users.value(row).into(),
                problem: problem.into(),
            };
            let start = all.items.len();
            let indexes = values::<UInt32Type>(snapshot, item_index, row, Self::COLUMNS[1])?;
            all.items.extend_from_slice(from_u32s(indexes));
            all.ts.extend_from_slice(values::<TimestampMillisecondType>(
                snapshot,
                ts,
                row,
                Self::COLUMNS[2],
            )?);
            all.visible.extend_from_slice(values::<UInt32Type>(snapshot, visible, row, Self::COLUMNS[3])?);
            for &role in values::<UInt8Type>(snapshot, role, row, Self::COLUMNS[4])? {
                all.roles.push(Role::from_u8(role).ok_or_else(|| fail("an unknown role"))?);
            }
            let end = all.items.len();
            check_numbered(snapshot.name(), "positions", end)?;
            let from = target_from.value(row);
            if all.ts.len() != end || all.visible.len() != end || all.roles.len() != end {
                return Err(fail("lists of different lengths"));
            }
            if all.items[start..].iter().any(|&i| i == ItemIndex::NO_ITEM || i.index() > items) {
                return Err(fail("an item index that the catalogue does not have"));
            }
            if all.visible[start..].iter().zip(0..).any(|(&visible, position)| visible > position) {
                return Err(fail("a visible_len beyond the position itself"));
            }
            if from as usize > end - start {
                return Err(fail("target_from behind the end of the row"));
            }
            let ordinal = |list, name| values::<UInt32Type>(snapshot, list, row, name);
            let (session, request) = (ordinal(ordinals[0], "session")?, ordinal(ordinals[1], "request")?);
            if session.len() != end - start || request.len() != end - start {
                return Err(fail("lists of different lengths"));
            }
            let places = if *is_whole {
                let keys = (0..end - start)
                    .map(|i| (all.items[start + i], all.ts[start + i], session[i], request[i]))
                    .collect::<Vec<_>>();
                history
                    .add(&keys, from as usize)
                    .ok_or_else(|| fail("a context position that no earlier row of the user owns"))?
            } else {
                (0..(end - start) as u32).collect()
            };
            let last = places.len().saturating_sub(1) as u32;
            all.leaves_out.push(places.last().is_some_and(|p| p - places[0] > last));
            all.places.extend(places);
            all.target_from.push(from);
            all.user.push(all.users.len() as u32 - 1);
            all.offsets.push(end);
        }
        Ok(())
    }
}

pub(super) fn values<'a, T: ArrowPrimitiveType>(
    snapshot: &Snapshot,
    lists: &'a ListArray,
    row: usize,
    name: &str,
) -> Result<&'a [T::Native], DataError> {
    let child = column(snapshot, lists.values().as_primitive_opt::<T>(), name)?;
    let offsets = lists.value_offsets();
    Ok(&child.values()[offsets[row] as usize..offsets[row + 1] as usize])
}

/// Owned events of a user so far, in which the context of later rows is found.
#[derive(Debug, Default)]
struct OwnedEvents {
    owned: Vec<(ItemIndex, i64, u32, u32)>,
}

impl OwnedEvents {
    /// Adds a row and returns the place of each of its positions in the history; `None` if a context event is not found. Context
    /// is searched from the newest event backwards.
    fn add(&mut self, row: &[(ItemIndex, i64, u32, u32)], target_from: usize) -> Option<Vec<u32>> {
        let (context, owned) = row.split_at(target_from);
        let end = self.owned.len();
        let mut places = vec![0; row.len()];
        let mut before = end;
        for (place, event) in places.iter_mut().zip(context).rev() {
            before = self.owned[..before].iter().rposition(|known| known == event)?;
            *place = before as u32;
        }
        for (place, at) in places[target_from..].iter_mut().zip(end..) {
            *place = at as u32;
        }
        self.owned.extend_from_slice(owned);
        Some(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rows_place_in_the_history_is_found() {
        let events: Vec<_> = (0..10u32).map(|i| (i.into(), 0i64, 0u32, i)).collect();
        let mut history = OwnedEvents::default();
        assert_eq!(history.add(&events[..4], 0), Some(vec![0, 1, 2, 3]));
        assert_eq!(history.add(&events[2..6], 2), Some(vec![2, 3, 4, 5]));
        assert_eq!(history.add(&events[6..8], 0), Some(vec![6, 7]));
        // Two old events, a gap, then the owned ones.
        let holed: Vec<_> = events[3..5].iter().chain(&events[8..]).copied().collect();
        assert_eq!(history.add(&holed, 2), Some(vec![3, 4, 8, 9]));
        assert_eq!(history.add(&[(99.into(), 0, 0, 0), (1.into(), 0, 0, 0)], 1), None);
    }
}
