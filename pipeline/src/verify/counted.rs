//! An independent count of the conditions that users met in the window: maps in memory, event by event, for one slice
//! of the users at a time. It shares only the settings and the window's edges with the builder.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMillisecondType};
use schemas::condition::Condition;
use schemas::hash::{hash64, hash128};
use schemas::history::AtMostOnce;
use schemas::tables::ELEMENT;
use store::{Shard, Snapshot};

use super::events::by_date;
use super::log::{OrderedValue, core};
use super::violation::Stop;
use crate::instructions::{CountWindow, Rules};
use crate::privacy::Forgotten;
use crate::records::date_days;

const COLUMNS: [&str; 10] =
    ["event_id", "source", "position", "ts", "user_id", "item_id", "action", "request_id", "value", ELEMENT];

/// A user's conditions with their weights.
pub(super) type Weighted = Vec<(Condition, f32)>;

/// The conditions that the items carry.
pub(super) struct CarriedConditions {
    items: HashMap<String, Item>,
    /// Condition → number of active items that carry it; for a derived one, at the end of the window.
    pub pools: BTreeMap<Condition, u64>,
}

struct Item {
    /// By attribute.
    values: Vec<Vec<Condition>>,
    release_ts: Option<i64>,
}

impl CarriedConditions {
    pub(super) async fn read(items: &Snapshot, rules: &Rules, as_of: i64) -> Result<Self, Stop> {
        let attributes: Vec<&str> = rules.attributes().collect();
        let mut columns = vec!["item_id", "active", "release_ts"];
        columns.extend(&attributes);
        let mut carried = Self { items: HashMap::new(), pools: BTreeMap::new() };
        carried.pools.extend(rules.derived.keys().map(|name| (Condition::derived(name), 0)));
        for batch in items.read(&columns).await? {
            for row in 0..batch.num_rows() {
                let releases = batch.column(2).as_primitive::<TimestampMillisecondType>();
                let mut item = Item {
                    values: Vec::new(),
                    release_ts: releases.is_valid(row).then(|| releases.value(row)),
                };
                for (attribute, column) in attributes.iter().zip(&batch.columns()[3..]) {
                    let list = column.as_list::<i32>().value(row);
                    let mut values: Vec<Condition> = Vec::new();
                    for value in list.as_string::<i32>().iter().flatten() {
                        let condition = Condition { attribute: (*attribute).into(), value: value.into() };
                        if !values.contains(&condition) {
                            values.push(condition);
                        }
                    }
                    item.values.push(values);
                }
                let active = u64::from(batch.column(1).as_boolean().value(row));
                for (condition, _) in item.carries(rules, as_of) {
                    *carried.pools.entry(condition).or_default() += active;
                }
                carried.items.insert(batch.column(0).as_string::<i32>().value(row).into(), item);
            }
        }
        Ok(carried)
    }
}

impl Item {
    /// The conditions carried at `ts`, each with the number of values that share an event.
    fn carries(&self, rules: &Rules, ts: i64) -> Vec<(Condition, u32)> {
        let shared = |values: &Vec<Condition>| values.len() as u32;
        let mut carries: Vec<(Condition, u32)> = Vec::new();
        for values in &self.values {
            carries.extend(values.iter().map(|condition| (condition.clone(), shared(values))));
        }
        for (name, age) in &rules.derived {
            if age.carried(self.release_ts, ts) {
                carries.push((Condition::derived(name), 1));
            }
        }
        carries
    }
}

/// A copy of an event: the fields that decide which copy counts, in this order; the last two, request and value, only where a
/// filter depends on the value.
type Copy = (String, (i64, Option<i32>), i64, String, String, String, Option<String>, Option<OrderedValue>);

/// (date, id) of events that are stored more than once → the copy that counts, if one of this date does.
pub(super) type FirstCopies = HashMap<(i64, u128), Option<Copy>>;

/// (condition, number of values that share an event) → events.
type Carrying = BTreeMap<(Condition, u32), u64>;

/// The window to be counted.
pub(super) struct Recount<'a> {
    pub events: &'a Snapshot,
    pub rules: &'a Rules,
    pub carried: &'a CarriedConditions,
    pub window: CountWindow,
    /// Forgotten users: their rows are erased from the tables, but remain for a while in older versions of `events`.
    pub forgotten: Option<Forgotten>,
    /// The items of the k-core, once it was found.
    pub core: Option<HashSet<String>>,
}

/// The slice that a user belongs to.
pub(super) fn slice_of(user: &str, slices: u64) -> u64 {
    hash64(user.as_bytes()) % slices
}

impl Recount<'_> {
    fn shards(&self) -> impl Iterator<Item = &Shard> {
        let window = self.rules.read_window(self.window);
        self.events.shards().iter().filter(move |shard| window.touches(shard))
    }

    fn copy(&self, batch: &RecordBatch, row: usize) -> Copy {
        let text = |column: usize| batch.column(column).as_string::<i32>().value(row).to_owned();
        let position = batch.column(2).as_primitive::<Int64Type>().value(row);
        let by_value = self.rules.filters.min_value.is_some();
        let request = (by_value && batch.column(7).is_valid(row)).then(|| text(7));
        let value = value(batch, row).filter(|_| by_value).map(OrderedValue);
        let elements = batch.column(9).as_primitive::<Int32Type>();
        let place = (position, elements.is_valid(row).then(|| elements.value(row)));
        (text(1), place, ts(batch, row), text(4), text(5), text(6), request, value)
    }

    /// Rows of the window's dates.
    pub(super) fn rows(&self) -> u64 {
        self.shards().filter_map(|shard| shard.rows).sum()
    }

    /// Finds copies. Memory: the ids of the dates that one window of days spans, and the repeated events.
    pub(super) async fn first_copies(&self) -> Result<FirstCopies, Stop> {
        let days = self.rules.dedup_days;
        let widened = self.rules.read_window(self.window).widened(days);
        let mut by_day: BTreeMap<i64, Vec<&Shard>> = BTreeMap::new();
        for (date, shards) in by_date(self.events) {
            let day = date.and_then(date_days).map_or(i64::MIN, i64::from);
            by_day.entry(day).or_default().extend(shards.into_iter().filter(|shard| widened.touches(shard)));
        }
        let (mut seen, mut repeated) = (BTreeMap::<i64, HashSet<u128>>::new(), HashSet::new());
        for (&day, shards) in &by_day {
            seen.retain(|&before, _| day.saturating_sub(before) <= i64::from(days));
            for shard in shards {
                for batch in self.events.read_shard(shard, &["event_id"]).await? {
                    for id in batch.column(0).as_string::<i32>().iter().flatten() {
                        let id = hash128(id.as_bytes());
                        if seen.values().any(|ids| ids.contains(&id)) {
                            repeated.insert(id);
                        }
                        seen.entry(day).or_default().insert(id);
                    }
                }
            }
        }
        drop(seen);
        let mut copies: HashMap<u128, Vec<(Copy, i64)>> = HashMap::new();
        for shard in by_day.values().flatten().filter(|_| !repeated.is_empty()) {
            for batch in self.events.read_shard(shard, &COLUMNS).await? {
                for row in 0..batch.num_rows() {
                    let (day, id) = key(&batch, row);
                    if repeated.contains(&id) {
                        copies.entry(id).or_default().push((self.copy(&batch, row), day));
                    }
                }
            }
        }
        let mut first = FirstCopies::new();
        for (id, mut copies) in copies {
            copies.sort();
            for (n, (copy, day)) in copies.iter().enumerate() {
                let near = |(_, other): &(Copy, i64)| day.abs_diff(*other) <= u64::from(days);
                let counts = !copies[..n].iter().any(near);
                let of_day = first.entry((*day, id)).or_default();
                if counts {
                    *of_day = Some(copy.clone());
                }
            }
        }
        Ok(first)
    }

    /// Gives the events of the slice's users that pass the filters which judge events by themselves, each once: user, time, item.
    async fn each_event(
        &self,
        (slice, slices): (u64, u64),
        first: &FirstCopies,
        forgotten: Option<&Forgotten>,
        mut each: impl FnMut(&str, i64, &str),
    ) -> Result<(), Stop> {
        let window = self.rules.read_window(self.window);
        let mut counted: HashSet<(i64, u128)> = HashSet::new();
        for shard in self.shards() {
            for batch in self.events.read_shard(shard, &COLUMNS).await? {
                for row in 0..batch.num_rows() {
                    let text = |column: usize| batch.column(column).as_string::<i32>().value(row);
                    let (ts, user) = (ts(&batch, row), text(4));
                    let is_counted = window.contains(ts)
                        && self.rules.filters.taken_by(text(6), value(&batch, row), ts).is_none()
                        && slice_of(user, slices) == slice
                        && !forgotten.is_some_and(|forgotten| forgotten.has(user));
                    if !is_counted {
                        continue;
                    }
                    if !first.is_empty()
                        && let key = key(&batch, row)
                        && let Some(first) = first.get(&key)
                        && (first.as_ref() != Some(&self.copy(&batch, row)) || !counted.insert(key))
                    {
                        continue;
                    }
                    each(user, ts, text(5));
                }
            }
        }
        Ok(())
    }

    /// The events of the slice's users, with one of each user and item if the filters say so: (time, item), by user.
    async fn histories(
        &self,
        slice: (u64, u64),
        first: &FirstCopies,
        forgotten: Option<&Forgotten>,
    ) -> Result<BTreeMap<String, Vec<(i64, String)>>, Stop> {
        let mut users: BTreeMap<String, Vec<(i64, String)>> = BTreeMap::new();
        self.each_event(slice, first, forgotten, |user, ts, item| {
            users.entry(user.to_owned()).or_default().push((ts, item.to_owned()));
        })
        .await?;
        if let Some(keep) = self.rules.filters.at_most_once {
            for events in users.values_mut() {
                let mut kept: BTreeMap<String, i64> = BTreeMap::new();
                for (ts, item) in events.drain(..) {
                    let kept = kept.entry(item).or_insert(ts);
                    *kept = if keep == AtMostOnce::First { ts.min(*kept) } else { ts.max(*kept) };
                }
                events.extend(kept.into_iter().map(|(item, ts)| (ts, item)));
            }
        }
        Ok(users)
    }

    /// Finds the items of the k-core, if one is configured. Memory: all events, 4 bytes each, and the items.
    pub(super) async fn find_core(&mut self, slices: u64, first: &FirstCopies) -> Result<(), Stop> {
        let filters = &self.rules.filters;
        if !filters.has_core() {
            return Ok(());
        }
        let (mut numbers, mut users) = (HashMap::<String, u32>::new(), Vec::<Vec<u32>>::new());
        for slice in 0..slices {
            // The table was made when the events of people who were forgotten since still counted.
            for (_, events) in self.histories((slice, slices), first, None).await? {
                let mut number = |(_, item)| {
                    let next = numbers.len() as u32;
                    *numbers.entry(item).or_insert(next)
                };
                users.push(events.into_iter().map(&mut number).collect());
            }
        }
        let left = core(users, filters.core_user_events(), filters.core_item_events());
        self.core =
            Some(numbers.into_iter().filter(|(_, n)| left.contains(n)).map(|(item, _)| item).collect());
        Ok(())
    }

    /// The instructions of the slice's users.
    pub(super) async fn slice(
        &self,
        slice: u64,
        slices: u64,
        first: &FirstCopies,
    ) -> Result<BTreeMap<String, Weighted>, Stop> {
        let mut users: BTreeMap<String, (u64, Carrying)> = BTreeMap::new();
        let mut count = |user: &str, ts: i64, item: &str| {
            let (events, carrying) = match users.get_mut(user) {
                Some(counts) => counts,
                None => users.entry(user.to_owned()).or_default(),
            };
            *events += 1;
            if let Some(item) = self.carried.items.get(item) {
                for share in item.carries(self.rules, ts) {
                    *carrying.entry(share).or_default() += 1;
                }
            }
        };
        let forgotten = self.forgotten.as_ref();
        if self.rules.filters.needs_histories() {
            for (user, mut events) in self.histories((slice, slices), first, forgotten).await? {
                if let Some(core) = &self.core {
                    events.retain(|(_, item)| core.contains(item));
                    if (events.len() as u64) < self.rules.filters.core_user_events() {
                        continue;
                    }
                }
                let inside = events.iter().filter(|(ts, _)| self.window.contains(*ts));
                inside.for_each(|(ts, item)| count(&user, *ts, item));
            }
        } else {
            self.each_event((slice, slices), first, forgotten, count).await?;
        }
        let ranked =
            users.into_iter().map(|(user, (events, carrying))| (user, self.ranked(events, carrying)));
        Ok(ranked.collect())
    }

    /// Ranks by the definition: repeatedly takes the best remaining condition that its quota allows.
    fn ranked(&self, events: u64, carrying: Carrying) -> Weighted {
        let mut sums: BTreeMap<Condition, f64> = BTreeMap::new();
        for ((condition, of), count) in carrying {
            *sums.entry(condition).or_default() += count as f64 / f64::from(of);
        }
        let is_large = |condition: &Condition| {
            self.carried.pools.get(condition).is_some_and(|&pool| pool >= self.rules.min_pool)
        };
        let mut left: Weighted = sums
            .into_iter()
            .filter(|(condition, _)| is_large(condition))
            .map(|(condition, sum)| (condition, (sum / events as f64) as f32))
            .collect();
        // The sort is stable, and conditions come in the order of attribute and value.
        left.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let mut places = self.rules.quota.clone();
        left.retain(|(condition, _)| match places.get_mut(&condition.attribute) {
            Some(places @ 1..) => {
                *places -= 1;
                true
            }
            _ => false,
        });
        left.truncate(self.rules.per_user);
        left
    }
}

fn ts(batch: &RecordBatch, row: usize) -> i64 {
    batch.column(3).as_primitive::<TimestampMillisecondType>().value(row)
}

fn key(batch: &RecordBatch, row: usize) -> (i64, u128) {
    let id = batch.column(0).as_string::<i32>().value(row);
    (ts(batch, row).div_euclid(86_400_000), hash128(id.as_bytes()))
}

fn value(batch: &RecordBatch, row: usize) -> Option<f64> {
    let values = batch.column(8);
    values.is_valid(row).then(|| values.as_primitive::<Float64Type>().value(row))
}
