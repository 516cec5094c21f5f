//! Instruction examples: `sft/<condition>`.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, TimestampMillisecondType, UInt8Type, UInt32Type};
use chrono::{DateTime, Utc};
use schemas::history::Role;
use schemas::tables::{ITEMS, properties};
use serde::Serialize;
use store::{Root, Snapshot};

use super::distribution::{Collector, Distribution};
use super::error::InspectError;
use crate::sft::{ByRole, MatchRate, Matched, POOL, ValuePool};

/// Number of values that the report names.
const TOP: usize = 10;
/// Examples that are shown, by role.
const SHOWN: [usize; 3] = [3, 1, 1];
/// Maximum positions of a history that are shown.
const SHOWN_PLACES: usize = 40;

/// Contents of a table of instruction examples.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SftContents {
    /// Users.
    pub users: u64,
    /// Examples by role.
    pub examples: ByRole,
    /// Values that have examples.
    pub values: u64,
    /// The most frequent values that have examples; with their pools if the catalogue exists.
    pub top: Vec<ValuePool>,
    /// Positions of the histories.
    pub history_length: Distribution,
    /// Positions of the histories that the target may see.
    pub visible_length: Distribution,
    /// Visible positions that carry the value.
    pub matching_length: Distribution,
    /// How well the visible histories fit their conditions.
    pub match_rate: MatchRate,
    /// The first examples of each role that see something.
    pub shown: Vec<Example>,
}

/// One example.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    /// The user.
    pub user: String,
    /// `instruction tuning`, `validation` or `test`.
    pub role: &'static str,
    /// The value.
    pub condition: String,
    /// The target's index.
    pub target_item: u32,
    /// The target's time.
    pub target_ts: Option<DateTime<Utc>>,
    /// The example's weight.
    pub weight: f32,
    /// Positions of the history.
    pub history: u64,
    /// The newest positions of the history, oldest first: `+` carries the value, `-` does not; positions after `|` are hidden.
    pub places: String,
}

const COLUMNS: [&str; 8] =
    ["user_id", "matches", "target_item", "target_ts", "visible_len", "role", "condition", "weight"];

pub(super) async fn read(root: &Root, snapshot: &Snapshot) -> Result<SftContents, InspectError> {
    let mut reader = Reader::default();
    for shard in snapshot.shards() {
        for batch in snapshot.read_shard(shard, &COLUMNS).await? {
            reader.batch(&batch);
        }
    }
    let Reader { mut contents, users, by_value, matched, shown, .. } = reader;
    contents.users = users.len() as u64;
    contents.values = by_value.len() as u64;
    contents.history_length = reader.history_length.finish();
    contents.visible_length = reader.visible_length.finish();
    contents.matching_length = reader.matching_length.finish();
    contents.match_rate = matched.summary();
    let pools = pools(root, snapshot).await?;
    contents.top = by_value
        .into_iter()
        .map(|(value, examples)| {
            let pool = pools.get(&value).copied();
            ValuePool { value, pool, examples }
        })
        .collect();
    contents.top.sort_by(|a, b| b.examples.cmp(&a.examples).then_with(|| a.value.cmp(&b.value)));
    contents.top.truncate(TOP);
    contents.shown = shown.into_iter().flatten().collect();
    Ok(contents)
}

/// Value → number of active items that carry it, from the catalogue or, for a derived condition, from the table.
async fn pools(root: &Root, snapshot: &Snapshot) -> Result<HashMap<String, u64>, InspectError> {
    let property = |key: &str| snapshot.properties().get(key);
    let number = |key: &str| property(key).and_then(|text| text.parse::<u64>().ok());
    let mut pools = HashMap::new();
    let (Some(condition), Some(version)) =
        (property(properties::CONDITION), number(properties::ITEMS_VERSION))
    else {
        return Ok(pools);
    };
    if let Some(pool) = number(POOL) {
        return Ok([(condition.clone(), pool)].into());
    }
    let Some(newest) = root.snapshot(ITEMS).await? else { return Ok(pools) };
    if version > newest.version() {
        return Ok(pools);
    }
    let Some(items) = root.snapshot_at(ITEMS, version).await? else { return Ok(pools) };
    if items.stored_schema()?.field_with_name(condition).is_err() {
        return Ok(pools);
    }
    for batch in items.read(&["active", condition.as_str()]).await? {
        let (active, lists) = (batch.column(0).as_boolean(), batch.column(1).as_list::<i32>());
        for row in (0..lists.len()).filter(|&row| active.value(row)) {
            let list = lists.value(row);
            let values: HashSet<&str> = list.as_string::<i32>().iter().flatten().collect();
            for value in values {
                match pools.get_mut(value) {
                    Some(pool) => *pool += 1,
                    None => _ = pools.insert(value.to_owned(), 1),
                }
            }
        }
    }
    Ok(pools)
}

#[derive(Default)]
struct Reader {
    contents: SftContents,
    users: HashSet<String>,
    by_value: HashMap<String, u64>,
    history_length: Collector,
    visible_length: Collector,
    matching_length: Collector,
    matched: Matched,
    /// By role.
    shown: [Vec<Example>; 3],
}

impl Reader {
    fn batch(&mut self, batch: &RecordBatch) {
        let text = |column: usize, row| batch.column(column).as_string::<i32>().value(row);
        let number = |column: usize, row| batch.column(column).as_primitive::<UInt32Type>().value(row);
        let times = batch.column(3).as_primitive::<TimestampMillisecondType>();
        let roles = batch.column(5).as_primitive::<UInt8Type>().values();
        let weights = batch.column(7).as_primitive::<Float32Type>().values();
        for row in 0..batch.num_rows() {
            let list = batch.column(1).as_list::<i32>().value(row);
            let matches: Vec<bool> = list.as_boolean().iter().flatten().collect();
            let visible = (number(4, row) as usize).min(matches.len());
            let matching = matches[..visible].iter().filter(|matches| **matches).count() as u64;
            self.history_length.add(matches.len() as u64);
            self.visible_length.add(visible as u64);
            self.matching_length.add(matching);
            self.matched.add(visible as u64, matching);
            let (user, condition) = (text(0, row), text(6, row));
            if !self.users.contains(user) {
                self.users.insert(user.to_owned());
            }
            match self.by_value.get_mut(condition) {
                Some(examples) => *examples += 1,
                None => _ = self.by_value.insert(condition.to_owned(), 1),
            }
            let Some(role) = Role::from_u8(roles[row]) else { continue };
            self.contents.examples.add(role, 1);
            let (place, role) = match role {
                Role::Sft => (0, "instruction tuning"),
                Role::Validation => (1, "validation"),
                Role::Test => (2, "test"),
                Role::Pretrain | Role::Context => continue,
            };
            // Examples that see something are more informative.
            if self.shown[place].len() < SHOWN[place] && visible > 0 {
                self.shown[place].push(Example {
                    user: user.into(),
                    role,
                    condition: condition.into(),
                    target_item: number(2, row),
                    target_ts: DateTime::from_timestamp_millis(times.value(row)),
                    weight: weights[row],
                    history: matches.len() as u64,
                    places: places(&matches, visible),
                });
            }
        }
    }
}

/// The newest positions of a history, hidden ones after a bar.
fn places(matches: &[bool], visible: usize) -> String {
    let start = matches.len().saturating_sub(SHOWN_PLACES);
    let mut drawn = String::new();
    for (k, &matches) in matches.iter().enumerate().skip(start) {
        if k == visible || (k == start && visible < start) {
            drawn.push('|');
        }
        drawn.push(if matches { '+' } else { '-' });
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_are_drawn_with_what_is_hidden() {
        assert_eq!(places(&[true, false, true], 2), "+-|+");
        assert_eq!(places(&[true, false], 2), "+-");
        assert_eq!(places(&[true], 0), "|+");
        assert_eq!(places(&[false; 50], 1), format!("|{}", "-".repeat(40)));
    }
}
