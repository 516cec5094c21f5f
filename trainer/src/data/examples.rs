//! Instruction examples of the tables `sft/<condition>` in memory.
//!
//! Memory: per event of a shared history 12 bytes; per example 32 bytes, and 1 byte per event before its target; while
//! loading, also each user's id.

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, TimestampMillisecondType, UInt8Type, UInt32Type};
use rand::Rng;
use schemas::history::Role;
use schemas::tables::{self, properties};
use serde::{Deserialize, Serialize};
use store::{Root, Snapshot};

use super::catalogue::column;
use super::sample::{Rows, read_all, sample};
use super::sequences::values;
use super::{DataError, check_numbered};
use crate::data::conditions::KnownConditions;
use crate::data::{ConditionRow, ItemIndex, from_u32s};

/// Instruction examples to learn (role SFT) of one or more `sft/<condition>` tables. Examples with a common beginning of their
/// histories, such as those from one row of `sequences`, share one history, so that a model reads it once for all of them.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    /// Shared histories.
    pub histories: Vec<ExampleHistory>,
    /// Index in `histories` of each example's history.
    pub history: Vec<u32>,
    /// Offset of each example's flags in `matches`, and the end of the last. There is one flag per event before the target.
    pub offsets: Vec<usize>,
    /// For each event before an example's target, whether it carries the example's condition.
    pub matches: Vec<bool>,
    /// `v_t` of each example's target.
    pub visible: Vec<u32>,
    /// Target items.
    pub targets: Vec<ItemIndex>,
    /// Row of each example's condition.
    pub conditions: Vec<ConditionRow>,
    /// Weight of each example; the mean is 1.
    pub weights: Vec<f32>,
    /// Tables that the examples come from.
    pub sources: Vec<ExamplesSource>,
}

/// Events of a user before the targets of some examples; each example sees a prefix.
#[derive(Debug, Clone, Default)]
pub struct ExampleHistory {
    /// Item of each event.
    pub items: Vec<ItemIndex>,
    /// Time of each event in epoch milliseconds.
    pub ts: Vec<i64>,
    /// Examples, by the length of the prefix that they see.
    pub examples: Vec<u32>,
}

impl ExampleHistory {
    /// Merges the events of another example if one of the two histories is a prefix of the other; returns whether it is.
    fn extend(&mut self, items: &[ItemIndex], ts: &[i64]) -> bool {
        let shared = self.items.len().min(items.len());
        let alike = self.items[..shared] == items[..shared] && self.ts[..shared] == ts[..shared];
        if alike {
            self.items.extend_from_slice(&items[shared..]);
            self.ts.extend_from_slice(&ts[shared..]);
        }
        alike
    }
}

/// Provenance of a table of examples, stored with a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExamplesSource {
    /// Attribute or derived condition.
    pub condition: String,
    /// Version of the table.
    pub version: u64,
    /// Version of `events` that it was built from.
    pub events_version: String,
    /// Hash of the settings that determine the rows of `sequences`, the split included.
    pub config_hash: String,
    /// Age range of a derived condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<String>,
}

impl Examples {
    /// Loads the newest tables of `conditions`, for a catalogue of `items` items: all examples, or with `wanted` those of users
    /// that its generator draws until the number is reached. Small tables are read as a whole.
    ///
    /// # Errors
    ///
    /// A table is missing, breaks its contract, names an unknown value, or has too many examples.
    pub async fn load(
        root: &Root,
        conditions: &KnownConditions,
        items: usize,
        wanted: Option<(usize, &mut impl Rng)>,
    ) -> Result<Self, DataError> {
        let mut tables = Vec::new();
        for attribute in conditions.attributes() {
            let command = "pipeline build-sft --condition NAME";
            tables.push(root.require(&tables::sft_table(attribute), command).await?);
        }
        let mut reading = Reading::new(&tables, conditions, items);
        match wanted {
            Some((wanted, generator)) => {
                sample(&tables, &mut reading, generator, |read, _| read.all.len() >= wanted).await?;
            }
            None => {
                for table in &tables {
                    read_all(table, &mut reading).await?;
                }
            }
        }
        Ok(reading.all.numbered())
    }

    /// Assigns examples to their histories, in order, and scales the weights to a mean of 1.
    fn numbered(mut self) -> Self {
        for (example, &history) in (0..).zip(&self.history) {
            self.histories[history as usize].examples.push(example);
        }
        let lengths: Vec<usize> = (0..self.len()).map(|example| self.flags(example).len()).collect();
        for history in &mut self.histories {
            history.examples.sort_by_key(|&example| lengths[example as usize]);
        }
        let total: f64 = self.weights.iter().copied().map(f64::from).sum();
        let mean = (total / self.weights.len().max(1) as f64) as f32;
        self.weights.iter_mut().for_each(|weight| *weight /= mean);
        self
    }

    /// Returns the number of examples.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// Returns the range of an example's flags in `matches`.
    pub fn flags(&self, example: usize) -> Range<usize> {
        self.offsets[example]..self.offsets[example + 1]
    }

    /// True if there is no example.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }
}

impl ExamplesSource {
    fn of(snapshot: &Snapshot, condition: &str) -> Self {
        let property = |key: &str| snapshot.properties().get(key).cloned();
        Self {
            condition: condition.into(),
            version: snapshot.version(),
            events_version: property(properties::EVENTS_VERSION).unwrap_or_default(),
            config_hash: property(properties::CONFIG_HASH).unwrap_or_default(),
            age: property(properties::AGE),
        }
    }
}

/// State of reading tables of examples.
struct Reading {
    /// Number of items in the catalogue.
    items: usize,
    /// Row of each condition by the name of its value, by table.
    conditions: HashMap<String, HashMap<String, ConditionRow>>,
    /// Indexes of each user's histories.
    of_user: HashMap<String, Vec<u32>>,
    all: Examples,
}

impl Reading {
    fn new(tables: &[Snapshot], conditions: &KnownConditions, items: usize) -> Self {
        let of_table = |(table, attribute): (&Snapshot, &str)| {
            let rows = conditions.rows(attribute).into_iter().flat_map(|rows| rows.iter());
            let rows = rows.filter_map(|row| Some((conditions.get(row)?.value, row)));
            (table.name().to_owned(), rows.collect())
        };
        let attributes = || tables.iter().zip(conditions.attributes());
        let sources = attributes().map(|(table, attribute)| ExamplesSource::of(table, attribute)).collect();
        Self {
            items,
            conditions: attributes().map(of_table).collect(),
            of_user: HashMap::new(),
            all: Examples { offsets: vec![0], sources, ..Examples::default() },
        }
    }
}

impl Rows for Reading {
    const COLUMNS: &'static [&'static str] = &[
        "user_id",
        "item_index",
        "ts",
        "matches",
        "target_item",
        "visible_len",
        "role",
        "condition",
        "weight",
    ];

    fn add(
        &mut self,
        snapshot: &Snapshot,
        shard: &str,
        batch: &RecordBatch,
        keep: impl Fn(usize) -> bool,
    ) -> Result<(), DataError> {
        let (columns, items, all) = (Self::COLUMNS, self.items, &mut self.all);
        let list = |c: usize| column(snapshot, batch.column(c).as_list_opt::<i32>(), columns[c]);
        let text = |c: usize| column(snapshot, batch.column(c).as_string_opt::<i32>(), columns[c]);
        let number =
            |c: usize| column(snapshot, batch.column(c).as_primitive_opt::<UInt32Type>(), columns[c]);
        let (users, names) = (text(0)?, text(7)?);
        let (item_index, ts, matches) = (list(1)?, list(2)?, list(3)?);
        let flags = column(snapshot, matches.values().as_boolean_opt(), columns[3])?;
        let (targets, visible) = (number(4)?, number(5)?);
        let roles = column(snapshot, batch.column(6).as_primitive_opt::<UInt8Type>(), columns[6])?;
        let weights = column(snapshot, batch.column(8).as_primitive_opt::<Float32Type>(), columns[8])?;
        let is_learned = |&row: &usize| keep(row) && roles.value(row) == Role::Sft as u8;
        for row in (0..batch.num_rows()).filter(is_learned) {
            let fail = |problem: String| DataError::Row {
                table: snapshot.name().into(),
                shard: shard.into(),
                user: users.value(row).into(),
                problem,
            };
            let shown: &[ItemIndex] = from_u32s(values::<UInt32Type>(snapshot, item_index, row, columns[1])?);
            let target = ItemIndex::new(targets.value(row));
            let times = values::<TimestampMillisecondType>(snapshot, ts, row, columns[2])?;
            let of_row = matches.value_offsets()[row] as usize..matches.value_offsets()[row + 1] as usize;
            let known = |item: ItemIndex| item != ItemIndex::NO_ITEM && item.index() <= items;
            if times.len() != shown.len() || of_row.len() != shown.len() {
                return Err(fail("lists of different lengths".into()));
            }
            if !shown.iter().all(|&item| known(item)) || !known(target) {
                return Err(fail("an item index that the catalogue does not have".into()));
            }
            if visible.value(row) as usize > shown.len() {
                return Err(fail("a visible_len beyond the history".into()));
            }
            let name = names.value(row);
            let rows = self.conditions.get(snapshot.name());
            let condition = rows.and_then(|rows| rows.get(name)).ok_or_else(|| {
                fail(format!(
                    "no item of the catalogue has the value `{name}`; run `pipeline build-sft` again"
                ))
            })?;
            let theirs = self.of_user.entry(users.value(row).into()).or_default();
            all.history.push(shared(&mut all.histories, theirs, shown, times));
            all.matches.extend(of_row.map(|i| flags.value(i)));
            all.offsets.push(all.matches.len());
            all.conditions.push(*condition);
            all.targets.push(target);
            all.visible.push(visible.value(row));
            all.weights.push(weights.value(row));
            check_numbered(snapshot.name(), "examples", all.targets.len())?;
        }
        Ok(())
    }
}

/// Returns the user's history that is a prefix of `items` or starts with them, and extends it if shorter; otherwise adds one.
fn shared(
    histories: &mut Vec<ExampleHistory>,
    of_user: &mut Vec<u32>,
    items: &[ItemIndex],
    ts: &[i64],
) -> u32 {
    // Rows come in order of time: usually the last history matches.
    if let Some(&known) = of_user.iter().rev().find(|&&h| histories[h as usize].extend(items, ts)) {
        return known;
    }
    let new = histories.len() as u32;
    histories.push(ExampleHistory { items: items.to_vec(), ts: ts.to_vec(), examples: Vec::new() });
    of_user.push(new);
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_are_shared_by_what_begins_alike() {
        let (mut histories, mut of_user) = (Vec::new(), Vec::new());
        let mut add = |items: &[u32], ts: &[i64]| shared(&mut histories, &mut of_user, from_u32s(items), ts);
        assert_eq!(add(&[5, 6], &[1, 2]), 0);
        assert_eq!(add(&[5, 6, 7], &[1, 2, 3]), 0);
        assert_eq!(add(&[5], &[1]), 0);
        // Another window of the same user, and the same items at other times.
        assert_eq!(add(&[6, 7, 8], &[2, 3, 4]), 1);
        assert_eq!(add(&[5, 6], &[1, 9]), 2);
        assert_eq!(add(&[6, 7, 8, 9], &[2, 3, 4, 5]), 1);
        assert_eq!(histories[0].items, [5, 6, 7]);
        assert_eq!(histories[1].ts, [2, 3, 4, 5]);
    }
}
