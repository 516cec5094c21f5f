//! The items that carry a condition, recomputed from the catalogue.

use std::collections::{BTreeSet, HashMap};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{TimestampMillisecondType, UInt32Type};
use schemas::config::{Age, Config};
use store::{Snapshot, TableError};

/// The items that carry a condition.
pub(super) enum Carried {
    /// By the values of an attribute.
    Attribute { of_item: HashMap<u32, BTreeSet<String>>, pools: HashMap<String, u64> },
    /// By the age at a time.
    Derived { name: String, age: Age, release_ts: HashMap<u32, i64>, active: BTreeSet<u32> },
}

impl Carried {
    pub(super) async fn read(config: &Config, items: &Snapshot, condition: &str) -> Result<Self, TableError> {
        let derived = config.conditions.derived.get(condition);
        let (mut of_item, mut pools) = (HashMap::new(), HashMap::new());
        let (mut release_ts, mut active) = (HashMap::new(), BTreeSet::new());
        let column = if derived.is_some() { "release_ts" } else { condition };
        for batch in items.read(&["item_index", "active", column]).await? {
            let indexes = batch.column(0).as_primitive::<UInt32Type>();
            for row in 0..batch.num_rows() {
                let (index, is_active) = (indexes.value(row), batch.column(1).as_boolean().value(row));
                if is_active {
                    active.insert(index);
                }
                let column = batch.column(2);
                if derived.is_some() {
                    let times = column.as_primitive::<TimestampMillisecondType>();
                    release_ts.extend(times.is_valid(row).then(|| (index, times.value(row))));
                    continue;
                }
                let list = column.as_list::<i32>().value(row);
                let values: BTreeSet<String> =
                    list.as_string::<i32>().iter().flatten().map(str::to_owned).collect();
                for value in &values {
                    *pools.entry(value.clone()).or_default() += u64::from(is_active);
                }
                of_item.insert(index, values);
            }
        }
        Ok(match derived {
            Some(&age) => Self::Derived { name: condition.into(), age, release_ts, active },
            None => Self::Attribute { of_item, pools },
        })
    }

    /// The values that an item carries at a time, in text order.
    pub(super) fn values(&self, item: u32, ts: i64) -> Vec<&str> {
        match self {
            Self::Attribute { of_item, .. } => {
                of_item.get(&item).into_iter().flatten().map(String::as_str).collect()
            }
            Self::Derived { name, age, release_ts, .. } => {
                let carried = age.carried(release_ts.get(&item).copied(), ts);
                carried.then_some(name.as_str()).into_iter().collect()
            }
        }
    }

    /// Whether an item carries a value at a time.
    pub(super) fn carries(&self, item: u32, ts: i64, value: &str) -> bool {
        match self {
            Self::Attribute { of_item, .. } => {
                of_item.get(&item).is_some_and(|values| values.contains(value))
            }
            Self::Derived { .. } => self.values(item, ts) == [value],
        }
    }

    /// Number of active items that carry a value at the newest event's time; `None` for an unknown value.
    pub(super) fn pool(&self, value: &str, newest: i64) -> Option<u64> {
        match self {
            Self::Attribute { pools, .. } => pools.get(value).copied(),
            Self::Derived { name, active, .. } => (name == value)
                .then(|| active.iter().filter(|&&item| self.carries(item, newest, value)).count() as u64),
        }
    }
}
