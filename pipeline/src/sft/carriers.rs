//! The conditions that items carry: `C(item)` of Eq. 5.
//!
//! Memory: 4 bytes for each item and each of its values; a derived condition 16 bytes an item.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{TimestampMillisecondType, UInt32Type};
use schemas::config::{Age, Config};
use store::Snapshot;

use super::SftError;

/// The values of one condition and the items that carry them. A value is numbered by its rank in text order.
#[derive(Debug)]
pub(super) struct Carriers {
    /// The values in text order; of a derived condition, its own name.
    pub names: Vec<String>,
    /// Value → number of active items that carry it; for a derived condition, at the newest event's time.
    pub pools: Vec<u64>,
    of: Of,
}

#[derive(Debug)]
enum Of {
    /// Item `i` has the values `values[ends[i - 1]..ends[i]]`.
    Attribute { ends: Vec<u32>, values: Vec<u32> },
    /// When each item was released.
    Derived { age: Age, release_ts: Vec<Option<i64>> },
}

impl Carriers {
    /// Reads the carriers of an attribute or derived condition from the catalogue; `newest` is the time of the log's
    /// newest event, in epoch milliseconds.
    pub(super) async fn read(
        items: &Snapshot,
        condition: &str,
        config: &Config,
        newest: i64,
    ) -> Result<Self, SftError> {
        match config.conditions.derived.get(condition) {
            Some(&age) => Self::derived(items, condition, age, newest).await,
            None => Self::attribute(items, condition).await,
        }
    }

    async fn attribute(items: &Snapshot, attribute: &str) -> Result<Self, SftError> {
        if items.stored_schema()?.field_with_name(attribute).is_err() {
            return Err(SftError::Attribute { attribute: attribute.into(), version: items.version() });
        }
        let mut pools: BTreeMap<String, u64> = BTreeMap::new();
        let mut of_item: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        for shard in items.shards() {
            for batch in items.read_shard(shard, &["item_index", "active", attribute]).await? {
                let indexes = batch.column(0).as_primitive::<UInt32Type>().values();
                let (active, lists) = (batch.column(1).as_boolean(), batch.column(2).as_list::<i32>());
                for (row, &index) in indexes.iter().enumerate() {
                    let list = lists.value(row);
                    let values: BTreeSet<String> =
                        list.as_string::<i32>().iter().flatten().map(Into::into).collect();
                    for value in &values {
                        *pools.entry(value.clone()).or_default() += u64::from(active.value(row));
                    }
                    if !values.is_empty() {
                        of_item.insert(index, values);
                    }
                }
            }
        }
        let places: BTreeMap<&str, u32> = pools.keys().map(String::as_str).zip(0..).collect();
        let last = of_item.last_key_value().map_or(0, |(&index, _)| index);
        let (mut ends, mut values) = (Vec::with_capacity(last as usize + 1), Vec::new());
        for index in 0..=last {
            let of_this = of_item.get(&index).into_iter().flatten();
            values.extend(of_this.map(|value| places[value.as_str()]));
            ends.push(values.len() as u32);
        }
        let (names, pools) = pools.into_iter().unzip();
        Ok(Self { names, pools, of: Of::Attribute { ends, values } })
    }

    async fn derived(items: &Snapshot, name: &str, age: Age, newest: i64) -> Result<Self, SftError> {
        let (mut release_ts, mut pool) = (Vec::new(), 0);
        for shard in items.shards() {
            for batch in items.read_shard(shard, &["item_index", "active", "release_ts"]).await? {
                let indexes = batch.column(0).as_primitive::<UInt32Type>().values();
                let active = batch.column(1).as_boolean();
                let released = batch.column(2).as_primitive::<TimestampMillisecondType>();
                for (row, &index) in indexes.iter().enumerate() {
                    let released = released.is_valid(row).then(|| released.value(row));
                    if release_ts.len() <= index as usize {
                        release_ts.resize(index as usize + 1, None);
                    }
                    release_ts[index as usize] = released;
                    pool += u64::from(active.value(row) && age.carried(released, newest));
                }
            }
        }
        Ok(Self { names: vec![name.into()], pools: vec![pool], of: Of::Derived { age, release_ts } })
    }

    /// The values that an item carries at a time, ascending.
    pub(super) fn values(&self, item: u32, ts: i64) -> &[u32] {
        let item = item as usize;
        match &self.of {
            Of::Attribute { ends, values } => {
                let start = item.checked_sub(1).map_or(0, |before| ends.get(before).copied().unwrap_or(0));
                ends.get(item).map_or(&[], |&end| &values[start as usize..end as usize])
            }
            Of::Derived { age, release_ts } => {
                let released = release_ts.get(item).copied().flatten();
                if age.carried(released, ts) { &[0] } else { &[] }
            }
        }
    }

    /// Fails if no value has `min_pool` items.
    pub(super) fn check_pools(&self, condition: &str, min_pool: usize) -> Result<(), SftError> {
        if self.pools.iter().any(|&pool| pool >= min_pool as u64) {
            return Ok(());
        }
        let largest: Vec<String> = self.largest(10).map(|(name, pool, _)| format!("{name} {pool}")).collect();
        let sizes = match self.names.len() {
            0 => "no item has a value".to_owned(),
            values if values > largest.len() => {
                format!("the largest of {values} pools are {}", largest.join(", "))
            }
            _ => format!("the pools are {}", largest.join(", ")),
        };
        Err(SftError::Pools { condition: condition.into(), min_pool, sizes })
    }

    /// The values with the largest pools: name, pool and number.
    pub(super) fn largest(&self, count: usize) -> impl Iterator<Item = (&str, u64, usize)> {
        let mut places: Vec<usize> = (0..self.names.len()).collect();
        places.sort_by_key(|&place| std::cmp::Reverse(self.pools[place]));
        places.into_iter().take(count).map(|place| (self.names[place].as_str(), self.pools[place], place))
    }
}
