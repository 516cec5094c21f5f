//! The users' recall instructions: `instructions`.

use std::collections::HashMap;
use std::fmt;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, TimestampMillisecondType};
use chrono::{DateTime, Utc};
use schemas::condition::Condition;
use schemas::tables::INSTRUCTIONS;
use serde::Serialize;
use store::{Root, Snapshot};

use super::distribution::{Collector, Distribution};
use super::error::InspectError;
use super::log::Count;

/// Conditions shown.
const TOP: usize = 20;

const COLUMNS: [&str; 5] = ["user_id", "attributes", "conditions", "weights", "as_of"];

/// Contents of `instructions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct InstructionsContents {
    /// Users.
    pub users: u64,
    /// The end of the window that was counted.
    pub as_of: Option<DateTime<Utc>>,
    /// Instructions a user.
    pub per_user: Distribution,
    /// Instructions by attribute or derived condition.
    pub attributes: Vec<Count>,
    /// The most frequent conditions, with the number of users who have them.
    pub top: Vec<Count>,
}

pub(super) async fn read(snapshot: &Snapshot) -> Result<InstructionsContents, InspectError> {
    let mut contents = InstructionsContents::default();
    let mut per_user = Collector::default();
    let mut conditions: HashMap<Condition, u64> = HashMap::new();
    for shard in snapshot.shards() {
        for batch in snapshot.read_shard(shard, &COLUMNS).await? {
            contents.users += batch.num_rows() as u64;
            let as_of = batch.column(4).as_primitive::<TimestampMillisecondType>().values().first();
            contents.as_of = as_of.and_then(|&ms| DateTime::from_timestamp_millis(ms)).or(contents.as_of);
            for row in 0..batch.num_rows() {
                let instructions = instructions(&batch, row);
                per_user.add(instructions.len() as u64);
                for instruction in instructions {
                    *conditions.entry(instruction.condition).or_default() += 1;
                }
            }
        }
    }
    let mut attributes: HashMap<String, u64> = HashMap::new();
    for (condition, count) in &conditions {
        *attributes.entry(condition.attribute.clone()).or_default() += count;
    }
    contents.per_user = per_user.finish();
    contents.attributes = most_frequent(attributes.into_iter());
    contents.top = most_frequent(conditions.into_iter().map(|(condition, n)| (condition.to_string(), n)));
    contents.top.truncate(TOP);
    Ok(contents)
}

fn most_frequent(counts: impl Iterator<Item = (String, u64)>) -> Vec<Count> {
    let mut counts: Vec<Count> = counts.map(|(value, count)| Count { value, count }).collect();
    counts.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.value.cmp(&b.value)));
    counts
}

/// One recall instruction of a user.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Instruction {
    /// The condition.
    #[serde(flatten)]
    pub condition: Condition,
    /// Its share of the user's events in the window.
    pub weight: f32,
}

impl fmt::Display for Instruction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:.3}", self.condition, self.weight)
    }
}

/// The instructions of one user; `None` if the root has none for that user.
pub(super) async fn of_user(root: &Root, user: &str) -> Result<Option<Vec<Instruction>>, InspectError> {
    let Some(snapshot) = root.snapshot(INSTRUCTIONS).await? else { return Ok(None) };
    for shard in snapshot.shards() {
        let users = snapshot.read_shard(shard, &["user_id"]).await?;
        if !users.iter().any(|batch| batch.column(0).as_string::<i32>().iter().any(|u| u == Some(user))) {
            continue;
        }
        for batch in snapshot.read_shard(shard, &COLUMNS).await? {
            let mut users = batch.column(0).as_string::<i32>().iter();
            if let Some(row) = users.position(|found| found == Some(user)) {
                return Ok(Some(instructions(&batch, row)));
            }
        }
    }
    Ok(None)
}

/// The instructions of a row; its lists have equal lengths in every table that verifies.
fn instructions(batch: &RecordBatch, row: usize) -> Vec<Instruction> {
    let list = |column: usize| batch.column(column).as_list::<i32>().value(row);
    let (attributes, conditions, weights) = (list(1), list(2), list(3));
    let attributes = attributes.as_string::<i32>().iter().flatten();
    let named = attributes.zip(conditions.as_string::<i32>().iter().flatten());
    named
        .zip(weights.as_primitive::<Float32Type>().values())
        .map(|((attribute, value), &weight)| Instruction {
            condition: Condition { attribute: attribute.into(), value: value.into() },
            weight,
        })
        .collect()
}
