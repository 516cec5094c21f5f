//! Computes a user's instructions from the user's counts.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, Float32Builder, ListBuilder, RecordBatch, StringArray, StringBuilder};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::cast::{as_int64_array, as_string_view_array, as_uint64_array};
use datafusion::common::{DataFusionError, Result};
use schemas::tables::INSTRUCTIONS_SCHEMA;

use super::catalogue::{Catalogue, KnownCondition};
use super::rules::Rules;
use crate::engine::{Pass, PassSpec};

/// The columns of `instructions` without the last, `as_of`, which is the same for all rows.
pub(super) static RANKED_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let fields = INSTRUCTIONS_SCHEMA.fields();
    Arc::new(Schema::new(fields[..fields.len() - 1].to_vec()))
});

/// Rows of a batch.
const ROWS: usize = 4096;

/// A user's events, counted by the conditions that they carry.
#[derive(Debug, Default)]
struct Counts {
    events: u64,
    /// (condition, number of values) → events; ordered, so that sums do not depend on the order of the input.
    carrying: BTreeMap<(u32, u32), u64>,
}

impl Counts {
    fn add(&mut self, catalogue: &Catalogue, code: u64, events: u64) {
        self.events += events;
        for share in catalogue.shares(code) {
            *self.carrying.entry(share).or_default() += events;
        }
    }

    /// Conditions with their weights: an event whose item has `v` values counts `1/v` for each, relative to all
    /// events of the user.
    fn weights(&self) -> BTreeMap<u32, f32> {
        let mut sums: BTreeMap<u32, f64> = BTreeMap::new();
        for (&(condition, of), &events) in &self.carrying {
            *sums.entry(condition).or_default() += events as f64 / f64::from(of);
        }
        sums.into_iter().map(|(condition, sum)| (condition, (sum / self.events as f64) as f32)).collect()
    }
}

/// The best `per_user` of `weights`, with at most its quota from each attribute; equal weights in the order of attribute,
/// then value. Weights are compared as stored (`f32`), so the order can be verified from the table alone.
fn best<'a>(
    rules: &Rules,
    weights: &BTreeMap<u32, f32>,
    known: impl Fn(u32) -> &'a KnownCondition,
) -> Vec<(&'a KnownCondition, f32)> {
    let candidates = weights.iter().map(|(&number, &weight)| (known(number), weight));
    let mut ranked: Vec<_> = candidates.filter(|(known, _)| known.is_retrievable).collect();
    ranked.sort_by(|(a, wa), (b, wb)| wb.total_cmp(wa).then_with(|| a.condition.cmp(&b.condition)));
    let mut taken: HashMap<&str, usize> = HashMap::new();
    ranked.retain(|(known, _)| {
        let attribute = known.condition.attribute.as_str();
        let taken = taken.entry(attribute).or_default();
        *taken += 1;
        *taken <= rules.quota.get(attribute).copied().unwrap_or_default()
    });
    ranked.truncate(rules.per_user);
    ranked
}

/// The pass over (user, code, events), sorted by user, that returns a row for each user. Memory: one user's counts.
#[derive(Debug)]
pub(super) struct RankSpec {
    pub catalogue: Arc<Catalogue>,
    pub rules: Arc<Rules>,
    /// Users so far.
    pub users: Arc<AtomicU64>,
}

impl PassSpec for RankSpec {
    fn name(&self) -> &'static str {
        "RankInstructions"
    }

    fn schema(&self) -> SchemaRef {
        RANKED_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(RankPass {
            catalogue: Arc::clone(&self.catalogue),
            rules: Arc::clone(&self.rules),
            users: Arc::clone(&self.users),
            user: None,
            counts: Counts::default(),
            rows: Rows::default(),
        })
    }
}

struct RankPass {
    catalogue: Arc<Catalogue>,
    rules: Arc<Rules>,
    users: Arc<AtomicU64>,
    user: Option<String>,
    counts: Counts,
    rows: Rows,
}

impl RankPass {
    fn close_user(&mut self) {
        let Some(user) = self.user.take() else { return };
        let weights = std::mem::take(&mut self.counts).weights();
        let catalogue = &self.catalogue;
        self.rows.push(user, &best(&self.rules, &weights, |number| catalogue.known(number)));
        self.users.fetch_add(1, Ordering::Relaxed);
    }
}

impl Pass for RankPass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let users = as_string_view_array(batch.column(0))?;
        let codes = as_uint64_array(batch.column(1))?;
        let events = as_int64_array(batch.column(2))?;
        let mut ready = Vec::new();
        for row in 0..batch.num_rows() {
            let user = users.value(row);
            if self.user.as_deref() != Some(user) {
                self.close_user();
                self.user = Some(user.to_owned());
                if self.rows.users.len() >= ROWS {
                    ready.push(std::mem::take(&mut self.rows).finish()?);
                }
            }
            self.counts.add(&self.catalogue, codes.value(row), events.value(row).unsigned_abs());
        }
        Ok(ready)
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        self.close_user();
        Ok(vec![std::mem::take(&mut self.rows).finish()?])
    }
}

/// Rows that become a batch of [`RANKED_SCHEMA`].
struct Rows {
    users: Vec<String>,
    attributes: ListBuilder<StringBuilder>,
    conditions: ListBuilder<StringBuilder>,
    weights: ListBuilder<Float32Builder>,
}

impl Default for Rows {
    fn default() -> Self {
        let element = |column: usize| -> FieldRef {
            match RANKED_SCHEMA.field(column).data_type() {
                DataType::List(element) => Arc::clone(element),
                other => unreachable!("column {column} of instructions is a list, not {other}"),
            }
        };
        Self {
            users: Vec::new(),
            attributes: ListBuilder::new(StringBuilder::new()).with_field(element(1)),
            conditions: ListBuilder::new(StringBuilder::new()).with_field(element(2)),
            weights: ListBuilder::new(Float32Builder::new()).with_field(element(3)),
        }
    }
}

impl Rows {
    fn push(&mut self, user: String, instructions: &[(&KnownCondition, f32)]) {
        self.users.push(user);
        for (known, weight) in instructions {
            self.attributes.values().append_value(&known.condition.attribute);
            self.conditions.values().append_value(&known.condition.value);
            self.weights.values().append_value(*weight);
        }
        self.attributes.append(true);
        self.conditions.append(true);
        self.weights.append(true);
    }

    fn finish(mut self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(&self.users)),
            Arc::new(self.attributes.finish()),
            Arc::new(self.conditions.finish()),
            Arc::new(self.weights.finish()),
        ];
        debug_assert!(columns.iter().all(|column| column.len() == self.users.len()));
        RecordBatch::try_new(RANKED_SCHEMA.clone(), columns).map_err(DataFusionError::from)
    }
}

#[cfg(test)]
mod tests {
    use schemas::condition::Condition;

    use super::super::catalogue::tests::rules;
    use super::*;

    #[test]
    fn weights_are_shares_of_the_users_events() {
        // Four events: two with one value, one with two, one with none.
        let counts = Counts { events: 4, carrying: [((0, 1), 2), ((0, 2), 1), ((1, 2), 1)].into() };
        assert_eq!(counts.weights(), [(0, 0.625), (1, 0.125)].into());
        // Three thirds sum to 1 exactly.
        let thirds = Counts { events: 1, carrying: [((0, 2), 0), ((0, 3), 3)].into() };
        assert_eq!(thirds.weights()[&0], 1.0);
    }

    #[test]
    fn quotas_and_ties_decide_the_order() {
        let rules = rules(&[
            "items.attributes.genre={}",
            "items.attributes.mood={}",
            "instructions.per_user=4",
            "instructions.quota={genre=2,mood=3}",
        ]);
        let known = |attribute: &str, value: &str, is_retrievable| KnownCondition {
            condition: Condition { attribute: attribute.into(), value: value.into() },
            pool: 0,
            is_retrievable,
        };
        let all = [
            known("mood", "calm", true),
            known("genre", "Rock", true),
            known("genre", "Pop", true),
            known("genre", "Jazz", true),
            known("genre", "Rare", false),
            known("mood", "loud", true),
            known("mood", "soft", true),
        ];
        let weights = BTreeMap::from([(0, 0.5), (1, 0.5), (2, 0.5), (3, 0.5), (4, 1.0), (5, 0.25), (6, 0.2)]);
        let best = best(&rules, &weights, |number| &all[number as usize]);
        let named: Vec<_> = best.iter().map(|(known, _)| known.condition.to_string()).collect();
        assert_eq!(named, ["genre=Jazz", "genre=Pop", "mood=calm", "mood=loud"]);
    }
}
