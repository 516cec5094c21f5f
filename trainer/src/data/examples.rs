use std::collections::HashMap;

use arrow::array::AsArray;
use arrow::datatypes::{Float32Type, TimestampMillisecondType, UInt8Type, UInt32Type};
use schemas::delta::Root;
use schemas::history::Role;
use schemas::tables::{self, properties};
use serde::{Deserialize, Serialize};

use super::DataError;
use super::catalogue::column;
use super::sequences::values;
use crate::conditions::Conditions;

/// The instruction examples that are learned (role SFT) of one or more `sft/<condition>` tables, in memory: their
/// histories behind each other, with the offsets of each.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    /// Where each example's history begins, and the end of the last.
    pub offsets: Vec<usize>,
    /// Item index of each position.
    pub items: Vec<u32>,
    /// Time of each position, epoch milliseconds.
    pub ts: Vec<i64>,
    /// Whether each position carries the example's condition.
    pub matches: Vec<bool>,
    /// `v_t` of each example's target.
    pub visible: Vec<u32>,
    /// The target's item index.
    pub targets: Vec<u32>,
    /// The row of each example's condition.
    pub conditions: Vec<u32>,
    /// The weight of each example, 1 on average.
    pub weights: Vec<f32>,
    /// The tables.
    pub sources: Vec<ExamplesSource>,
}

/// What a run says about a table of examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExamplesSource {
    /// The attribute or derived condition.
    pub condition: String,
    /// Version of the table.
    pub version: u64,
    /// Version of `events` that it was built from.
    pub events_version: String,
    /// Hash of the settings that decided the rows of `sequences`, the split among them.
    pub config_hash: String,
    /// The ages of a derived condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<String>,
}

impl Examples {
    /// Reads the newest versions of the tables of `conditions`, for a catalogue of `items` items.
    pub async fn load(root: &Root, conditions: &Conditions, items: usize) -> Result<Self, DataError> {
        let mut all = Self { offsets: vec![0], ..Self::default() };
        for attribute in conditions.attributes() {
            all.read(root, attribute, conditions, items).await?;
        }
        let total: f64 = all.weights.iter().copied().map(f64::from).sum();
        let mean = (total / all.weights.len().max(1) as f64) as f32;
        all.weights.iter_mut().for_each(|weight| *weight /= mean);
        Ok(all)
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// How often each item is a target, by item index, up to `items`.
    pub fn counts(&self, items: usize) -> Vec<u32> {
        let mut counts = vec![0; items + 1];
        self.targets.iter().for_each(|&target| counts[target as usize] += 1);
        counts
    }

    /// Whether there is nothing to learn.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }

    async fn read(
        &mut self,
        root: &Root,
        attribute: &str,
        conditions: &Conditions,
        items: usize,
    ) -> Result<(), DataError> {
        let command = "pipeline build-sft --condition NAME";
        let snapshot = root.require(&tables::sft_table(attribute), command).await?;
        let property = |key: &str| snapshot.properties().get(key).cloned().unwrap_or_default();
        self.sources.push(ExamplesSource {
            condition: attribute.into(),
            version: snapshot.version(),
            events_version: property(properties::EVENTS_VERSION),
            config_hash: property(properties::CONFIG_HASH),
            age: snapshot.properties().get(properties::AGE).cloned(),
        });
        let rows: HashMap<String, u32> = conditions
            .rows(attribute)
            .into_iter()
            .flatten()
            .filter_map(|row| Some((conditions.get(row)?.value, row)))
            .collect();
        let columns = [
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
        for shard in snapshot.shards() {
            for batch in snapshot.read_shard(shard, &columns).await? {
                let list = |c: usize| column(&snapshot, batch.column(c).as_list_opt::<i32>(), columns[c]);
                let text = |c: usize| column(&snapshot, batch.column(c).as_string_opt::<i32>(), columns[c]);
                let number = |c: usize| {
                    column(&snapshot, batch.column(c).as_primitive_opt::<UInt32Type>(), columns[c])
                };
                let (users, names) = (text(0)?, text(7)?);
                let (item_index, ts, matches) = (list(1)?, list(2)?, list(3)?);
                let flags = column(&snapshot, matches.values().as_boolean_opt(), columns[3])?;
                let (targets, visible) = (number(4)?, number(5)?);
                let roles = column(&snapshot, batch.column(6).as_primitive_opt::<UInt8Type>(), columns[6])?;
                let weights =
                    column(&snapshot, batch.column(8).as_primitive_opt::<Float32Type>(), columns[8])?;
                for row in (0..batch.num_rows()).filter(|&row| roles.value(row) == Role::Sft as u8) {
                    let fail = |problem: String| DataError::Row {
                        table: snapshot.name().into(),
                        shard: shard.path.clone(),
                        user: users.value(row).into(),
                        problem,
                    };
                    let start = self.items.len();
                    self.items
                        .extend_from_slice(values::<UInt32Type>(&snapshot, item_index, row, columns[1])?);
                    self.ts.extend_from_slice(values::<TimestampMillisecondType>(
                        &snapshot, ts, row, columns[2],
                    )?);
                    let of_row =
                        matches.value_offsets()[row] as usize..matches.value_offsets()[row + 1] as usize;
                    self.matches.extend(of_row.map(|i| flags.value(i)));
                    let end = self.items.len();
                    let known = |item: u32| item != tables::NO_ITEM && item as usize <= items;
                    if self.ts.len() != end || self.matches.len() != end {
                        return Err(fail("lists of different lengths".into()));
                    }
                    if !self.items[start..].iter().all(|&item| known(item)) || !known(targets.value(row)) {
                        return Err(fail("an item index that the catalogue does not have".into()));
                    }
                    if visible.value(row) as usize > end - start {
                        return Err(fail("a visible_len beyond the history".into()));
                    }
                    let name = names.value(row);
                    let condition = rows.get(name).ok_or_else(|| {
                        fail(format!(
                            "no item of the catalogue has the value `{name}`; run `pipeline build-sft` again"
                        ))
                    })?;
                    self.conditions.push(*condition);
                    self.targets.push(targets.value(row));
                    self.visible.push(visible.value(row));
                    self.weights.push(weights.value(row));
                    self.offsets.push(end);
                }
            }
        }
        Ok(())
    }
}
