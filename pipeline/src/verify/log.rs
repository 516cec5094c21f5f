//! Rereads the users' events, slice by slice, in the order of a history.
//!
//! Events are sorted in memory by (time, tie, source, position, hash of the event id), where the tie is 0 for
//! `file-order` and `mix64(tie_seed, hash64(event_id))` for `shuffled`. Among records with one event id, a record counts
//! unless a smaller one, of any user, lies within the days in the table's property; repeated ids are found first. The filters of
//! `[sequences]` then take out events: the k-core from its definition, in a memory of 4 bytes an event of the whole log.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int32Type, Int64Type, TimestampMillisecondType, UInt32Type};
use schemas::hash::{hash64, hash128, mix64};
use schemas::history::AtMostOnce;
use schemas::tables::ELEMENT;
use store::{Shard, Snapshot, TableError};

use crate::privacy::Forgotten;
use crate::records::{date_days, date_text, dates_around};

use super::events::by_date;
use super::history::{HistoryRules, ProvenHistory};
use super::reader;
use super::violation::{Stop, Violation};

/// The log from which the rows were built.
pub(super) struct EventLog {
    pub events: Snapshot,
    /// Item → index.
    pub indexes: HashMap<String, u32>,
    pub rules: HistoryRules,
    repeated: RepeatedIds,
    /// Forgotten users: their rows are erased from the tables, but remain for a while in older versions of `events`.
    forgotten: Option<Forgotten>,
    new: New,
    /// The items of the k-core, once it was found.
    core: Option<HashSet<u32>>,
}

/// The events that were appended after a version: the number of copies appended, and in the table.
#[derive(Default)]
struct New(HashMap<u128, BTreeMap<i32, (u64, u64)>>);

impl New {
    /// An event is new if all of its copies are.
    fn has(&self, date: i32, id: &str, dedup_days: u32) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let copies = self.0.get(&hash128(id.as_bytes()));
        copies.is_some_and(|copies| {
            let near = copies.range(dates_around(date, dedup_days)).map(|(_, copies)| copies);
            let (appended, present) = near.fold((0, 0), |sum, copies| (sum.0 + copies.0, sum.1 + copies.1));
            appended > 0 && present <= appended
        })
    }
}

const COLUMNS: [&str; 10] =
    ["event_id", "user_id", "item_id", "ts", "request_id", "action", "source", "position", "value", ELEMENT];

/// The events that are stored several times within the window of days.
#[derive(Default)]
struct RepeatedIds {
    ids: HashSet<u128>,
    /// The dates that have a repeated id. On other dates every event counts, also one whose id is repeated elsewhere.
    dates: BTreeSet<i32>,
    /// (date, id) → the record that counts, and whether it is fit to be learned: it is if all records with its key are.
    first: HashMap<(String, String), (Record, bool)>,
}

/// A position, and the element of its record.
type Place = (i64, Option<i32>);

/// (source, place, ts, user, item, action, request, value), the value only where a filter depends on it.
type Record = (String, Place, i64, String, String, String, Option<String>, Option<OrderedValue>);

/// A value in total order.
#[derive(Debug, Clone, Copy)]
pub(super) struct OrderedValue(pub f64);

impl PartialEq for OrderedValue {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for OrderedValue {}

impl PartialOrd for OrderedValue {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OrderedValue {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Whether an event passes the filters that judge it by itself.
fn passes(record: &Record, rules: &HistoryRules) -> bool {
    rules.filters.taken_by(&record.5, record.7.map(|value| value.0), record.2).is_none()
}

/// The texts and numbers of a batch with [`COLUMNS`].
struct Fields<'a>(&'a RecordBatch);

impl<'a> Fields<'a> {
    fn text(&self, column: usize, row: usize) -> &'a str {
        self.0.column(column).as_string::<i32>().value(row)
    }

    fn ts(&self, row: usize) -> i64 {
        self.0.column(3).as_primitive::<TimestampMillisecondType>().value(row)
    }

    fn place(&self, row: usize) -> Place {
        let elements = self.0.column(9).as_primitive::<Int32Type>();
        let element = elements.is_valid(row).then(|| elements.value(row));
        (self.0.column(7).as_primitive::<Int64Type>().value(row), element)
    }

    fn request(&self, row: usize) -> Option<&'a str> {
        self.0.column(4).is_valid(row).then(|| self.text(4, row))
    }

    fn value(&self, row: usize) -> Option<f64> {
        let column = self.0.column(8);
        column.is_valid(row).then(|| column.as_primitive::<Float64Type>().value(row))
    }

    /// Whether the event passes the filters that judge it by itself.
    fn is_wanted(&self, rules: &HistoryRules, row: usize) -> bool {
        rules.filters.taken_by(self.text(5, row), self.value(row), self.ts(row)).is_none()
    }

    /// Whether the event is fit to be learned under a condition.
    fn is_fit(&self, rules: &HistoryRules, row: usize) -> bool {
        let value = self.value(row);
        rules.learned.as_ref().is_some_and(|conditions| {
            (conditions.actions.is_empty() || conditions.actions.iter().any(|a| a == self.text(5, row)))
                && conditions.min_value.is_none_or(|min| value.is_some_and(|value| value >= min))
        })
    }

    fn record(&self, rules: &HistoryRules, row: usize) -> Record {
        let value = rules.filters.min_value.and_then(|_| self.value(row)).map(OrderedValue);
        let text = |column| self.text(column, row).to_owned();
        let request = self.request(row).map(str::to_owned);
        (text(6), self.place(row), self.ts(row), text(1), text(2), text(5), request, value)
    }
}

impl RepeatedIds {
    async fn find(events: &Snapshot, rules: &HistoryRules) -> Result<Self, Stop> {
        let mut repeated = Self::default();
        let by_date = by_date(events);
        let day = |date: Option<&str>| date.and_then(date_days).unwrap_or_default();
        // The ids of the newest dates, and the dates that have a repeated id.
        let (mut seen, mut dates) = (BTreeMap::<i32, HashSet<u128>>::new(), BTreeSet::new());
        for (&date, shards) in &by_date {
            let date = day(date);
            seen = seen.split_off(dates_around(date, rules.dedup_days).start());
            for shard in shards {
                for batch in reader::read(events, shard, &["event_id"]).await? {
                    for id in batch.column(0).as_string::<i32>().iter().flatten() {
                        let id = hash128(id.as_bytes());
                        let before = seen.iter().filter(|(_, ids)| ids.contains(&id)).map(|(&date, _)| date);
                        let before: Vec<i32> = before.collect();
                        if !before.is_empty() {
                            repeated.ids.insert(id);
                            dates.insert(date);
                            dates.extend(before);
                        }
                        seen.entry(date).or_default().insert(id);
                    }
                }
            }
        }
        let mut copies: HashMap<String, Vec<(Record, bool)>> = HashMap::new();
        for (_, shards) in by_date.iter().filter(|(date, _)| dates.contains(&day(**date))) {
            for shard in shards {
                for batch in reader::read(events, shard, &COLUMNS).await? {
                    let fields = Fields(&batch);
                    for row in 0..batch.num_rows() {
                        if repeated.ids.contains(&hash128(fields.text(0, row).as_bytes())) {
                            let copy = (fields.record(rules, row), fields.is_fit(rules, row));
                            copies.entry(fields.text(0, row).to_owned()).or_default().push(copy);
                        }
                    }
                }
            }
        }
        repeated.dates = dates;
        for (id, mut copies) in copies {
            copies.sort();
            let mut smaller = BTreeSet::new();
            for (record, _) in &copies {
                let date = day_of(record.2);
                let counts = smaller.range(dates_around(date, rules.dedup_days)).next().is_none();
                smaller.insert(date);
                if counts {
                    let fit = copies
                        .iter()
                        .all(|(copy, fit)| *fit || place(copy) != place(record) || !passes(copy, rules));
                    repeated.first.insert((date_text(date), id.clone()), (record.clone(), fit));
                }
            }
        }
        Ok(repeated)
    }

    fn key(&self, date: &str, id: &str) -> Option<(String, String)> {
        let repeats = !self.ids.is_empty()
            && self.ids.contains(&hash128(id.as_bytes()))
            && self.dates.contains(&date_days(date).unwrap_or_default());
        repeats.then(|| (date.to_owned(), id.to_owned()))
    }

    /// Whether the row counts, and then whether its event is fit. Of records that are equal in all fields, the first
    /// queried counts.
    fn counts(
        &self,
        date: &str,
        fields: &Fields<'_>,
        row: usize,
        rules: &HistoryRules,
        taken: &mut HashSet<(String, String)>,
    ) -> Option<bool> {
        let Some(key) = self.key(date, fields.text(0, row)) else { return Some(fields.is_fit(rules, row)) };
        let (first, fit) = self.first.get(&key)?;
        (*first == fields.record(rules, row) && taken.insert(key)).then_some(*fit)
    }
}

fn day_of(ts: i64) -> i32 {
    i32::try_from(ts.div_euclid(86_400_000)).unwrap_or(i32::MAX)
}

/// The fields that distinguish the records of an event, without their action and value.
fn place(record: &Record) -> (&str, Place, i64, &str, &str, Option<&str>) {
    let (source, position, ts, user, item, _, request, _) = record;
    (source, *position, *ts, user, item, request.as_deref())
}

/// One event of a history.
struct Event {
    ts: i64,
    tie: u64,
    source: u32,
    place: Place,
    hash: u64,
    item: u32,
    fit: bool,
    new: bool,
    /// The id's range in [`Slice::requests`].
    request: Option<Range<usize>>,
}

/// The users of one slice with their events.
#[derive(Default)]
pub(super) struct Slice {
    users: HashMap<String, Vec<Event>>,
    sources: Vec<String>,
    requests: String,
    /// Events of all users.
    pub events: u64,
}

/// The slice that a user belongs to.
pub(super) fn slice_of(user: &str, slices: u64) -> u64 {
    hash64(user.as_bytes()) % slices
}

impl EventLog {
    pub(super) async fn open(
        events: Snapshot,
        items: &Snapshot,
        rules: HistoryRules,
        forgotten: Option<Forgotten>,
    ) -> Result<Self, Stop> {
        let mut indexes = HashMap::new();
        for batch in items.read(&["item_id", "item_index"]).await? {
            let ids = batch.column(0).as_string::<i32>().iter().flatten();
            let numbers = batch.column(1).as_primitive::<UInt32Type>().values();
            indexes.extend(ids.zip(numbers).map(|(id, &index)| (id.to_owned(), index)));
        }
        let repeated = RepeatedIds::find(&events, &rules).await?;
        Ok(Self { events, indexes, rules, repeated, forgotten, new: New::default(), core: None })
    }

    /// Reads which events were appended after version `since`; the inner error is the reason why that is no longer known.
    pub(super) async fn since(&mut self, since: u64) -> Result<Result<(), String>, Stop> {
        let gone = |error: TableError| {
            Ok(Err(format!("what came after version {since} of `events` is not known any more: {error}")))
        };
        let appended = match self.events.appended_since(since).await {
            Err(error @ (TableError::Expired { .. } | TableError::Future { .. })) => return gone(error),
            appended => appended?,
        };
        let new = &mut self.new.0;
        for path in appended {
            let date = path.split('/').find_map(|part| part.strip_prefix("event_date="));
            let date = date.and_then(date_days).unwrap_or_default();
            let shard = Shard { path, bytes: 0, rows: None, partition: BTreeMap::new() };
            let batches = match self.events.read_shard(&shard, &["event_id"]).await {
                Err(error @ TableError::Shard { .. }) => return gone(error),
                batches => batches?,
            };
            for batch in batches {
                for id in batch.column(0).as_string::<i32>().iter().flatten() {
                    new.entry(hash128(id.as_bytes())).or_default().entry(date).or_default().0 += 1;
                }
            }
        }
        for (date, shards) in by_date(&self.events) {
            let date = date.and_then(date_days).unwrap_or_default();
            for shard in shards {
                for batch in reader::read(&self.events, shard, &["event_id"]).await? {
                    for id in batch.column(0).as_string::<i32>().iter().flatten() {
                        if let Some(copies) = new.get_mut(&hash128(id.as_bytes())) {
                            copies.entry(date).or_default().1 += 1;
                        }
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    /// The events of the users of slice `number` of `slices`.
    pub(super) async fn slice(&self, number: u64, slices: u64) -> Result<Slice, Stop> {
        self.slice_without(self.forgotten.as_ref(), number, slices).await
    }

    async fn slice_without(
        &self,
        forgotten: Option<&Forgotten>,
        number: u64,
        slices: u64,
    ) -> Result<Slice, Stop> {
        let mut slice = Slice::default();
        let (mut places, mut taken) = (HashMap::new(), HashSet::new());
        for (date, shards) in by_date(&self.events) {
            for shard in shards {
                let mut first_row = 0;
                for batch in reader::read(&self.events, shard, &COLUMNS).await? {
                    let fields = Fields(&batch);
                    for row in 0..batch.num_rows() {
                        let user = fields.text(1, row);
                        let gone = forgotten.is_some_and(|forgotten| forgotten.has(user));
                        if gone || slice_of(user, slices) != number {
                            continue;
                        }
                        let (date, rules) = (date.unwrap_or_default(), &self.rules);
                        let counts = self.repeated.counts(date, &fields, row, rules, &mut taken);
                        let Some(fit) = counts.filter(|_| fields.is_wanted(rules, row)) else {
                            continue;
                        };
                        let item = fields.text(2, row);
                        let Some(&item) = self.indexes.get(item) else {
                            let found = format!("`{item}`, which has no index");
                            let expected = "an item of the catalogue that the rows were built with";
                            let violation = Violation::new(&self.events, super::row::ITEMS, found, expected);
                            let row = first_row + row as u64;
                            return Err(violation.shard(shard).row(row).column("item_id").into());
                        };
                        let new = self.new.has(day_of(fields.ts(row)), fields.text(0, row), rules.dedup_days);
                        slice.add(rules, &mut places, &fields, row, Marks { item, fit, new });
                    }
                    first_row += batch.num_rows() as u64;
                }
            }
        }
        slice.order();
        if let Some(keep) = self.rules.filters.at_most_once {
            slice.keep_once(keep);
        }
        if let Some(items) = &self.core {
            slice.keep_core(items, self.rules.filters.core_user_events());
        }
        Ok(slice)
    }

    /// Finds the items of the k-core, if one is configured, from all of the slices.
    pub(super) async fn find_core(&mut self, slices: u64) -> Result<(), Stop> {
        let filters = &self.rules.filters;
        if !filters.has_core() {
            return Ok(());
        }
        // The items of each user's events.
        let mut users: Vec<Vec<u32>> = Vec::new();
        for number in 0..slices {
            // The table was built when the events of people who were forgotten since still counted.
            let slice = self.slice_without(None, number, slices).await?;
            users.extend(slice.users.into_values().map(|events| events.iter().map(|e| e.item).collect()));
        }
        let (user_events, item_events) = (filters.core_user_events(), filters.core_item_events());
        self.core = Some(core(users, user_events, item_events));
        Ok(())
    }
}

/// The items of the k-core, by its definition; `users` holds the items of each user's events.
pub(super) fn core(mut users: Vec<Vec<u32>>, user_events: u64, item_events: u64) -> HashSet<u32> {
    loop {
        let before: usize = users.iter().map(Vec::len).sum();
        users.retain(|items| items.len() as u64 >= user_events);
        let mut counts: HashMap<u32, u64> = HashMap::new();
        users.iter().flatten().for_each(|&item| *counts.entry(item).or_default() += 1);
        users.iter_mut().for_each(|items| items.retain(|item| counts[item] >= item_events));
        if users.iter().map(Vec::len).sum::<usize>() == before {
            return users.into_iter().flatten().collect();
        }
    }
}

/// Facts about an event that its row does not hold.
struct Marks {
    /// The item's index.
    item: u32,
    fit: bool,
    new: bool,
}

impl Slice {
    fn add(
        &mut self,
        rules: &HistoryRules,
        places: &mut HashMap<String, u32>,
        fields: &Fields<'_>,
        row: usize,
        Marks { item, fit, new }: Marks,
    ) {
        let source = fields.text(6, row);
        let source = match places.get(source) {
            Some(&place) => place,
            None => {
                let place = self.sources.len() as u32;
                self.sources.push(source.to_owned());
                places.insert(source.to_owned(), place);
                place
            }
        };
        let request = fields.request(row).map(|id| {
            let start = self.requests.len();
            self.requests.push_str(id);
            start..self.requests.len()
        });
        let hash = hash64(fields.text(0, row).as_bytes());
        let event = Event {
            ts: fields.ts(row),
            tie: rules.shuffle.map_or(0, |seed| mix64(seed, hash)),
            source,
            place: fields.place(row),
            hash,
            item,
            fit,
            new,
            request,
        };
        let user = fields.text(1, row);
        match self.users.get_mut(user) {
            Some(events) => events.push(event),
            None => _ = self.users.insert(user.to_owned(), vec![event]),
        }
        self.events += 1;
    }

    /// Sorts every user's events into the order of a history.
    fn order(&mut self) {
        let sources = &self.sources;
        for events in self.users.values_mut() {
            events.sort_by(|a, b| {
                (a.ts, a.tie)
                    .cmp(&(b.ts, b.tie))
                    .then_with(|| sources[a.source as usize].cmp(&sources[b.source as usize]))
                    .then_with(|| (a.place, a.hash).cmp(&(b.place, b.hash)))
            });
        }
    }

    /// Keeps one event of each user and item.
    fn keep_once(&mut self, keep: AtMostOnce) {
        for events in self.users.values_mut() {
            let mut kept: HashMap<u32, usize> = HashMap::new();
            for (t, event) in events.iter().enumerate() {
                match keep {
                    AtMostOnce::First => _ = kept.entry(event.item).or_insert(t),
                    AtMostOnce::Last => _ = kept.insert(event.item, t),
                }
            }
            let kept: HashSet<usize> = kept.into_values().collect();
            let mut t = 0..;
            events.retain(|_| t.next().is_some_and(|t| kept.contains(&t)));
        }
        self.events = self.users.values().map(|events| events.len() as u64).sum();
    }

    /// Keeps the events of the k-core with these items.
    fn keep_core(&mut self, items: &HashSet<u32>, user_events: u64) {
        self.users.retain(|_, events| {
            events.retain(|event| items.contains(&event.item));
            events.len() as u64 >= user_events
        });
        self.events = self.users.values().map(|events| events.len() as u64).sum();
    }

    /// Removes and returns a user's history; `None` if the user has no events or was taken before.
    pub(super) fn take(&mut self, user: &str, rules: &HistoryRules) -> Option<ProvenHistory> {
        let events = self.users.remove(user)?;
        let ts: Vec<i64> = events.iter().map(|event| event.ts).collect();
        let ids: Vec<Option<&str>> =
            events.iter().map(|event| event.request.clone().map(|span| &self.requests[span])).collect();
        let hashes: Vec<u64> = events.iter().map(|event| event.hash).collect();
        let item = events.iter().map(|event| event.item).collect();
        let mut history = ProvenHistory::new(user, ts, item, &ids, &hashes, rules);
        history.fit = events.iter().map(|event| event.fit).collect();
        history.new = events.iter().map(|event| event.new).collect();
        Some(history)
    }

    /// The users that were not taken, by name.
    pub(super) fn users_left(&self) -> Vec<String> {
        let mut users: Vec<String> = self.users.keys().cloned().collect();
        users.sort_unstable();
        users
    }

    /// The first (by name) of the users that were not taken who has new events, and how many.
    pub(super) fn left_with_new(&self) -> Option<(String, usize)> {
        let new = |events: &[Event]| events.iter().filter(|event| event.new).count();
        let with_new =
            self.users.iter().map(|(user, events)| (user, new(events))).filter(|&(_, new)| new > 0);
        with_new.min().map(|(user, new)| (user.clone(), new))
    }

    /// The first (by name) of the users that were not taken, and how many events it has.
    pub(super) fn left(&self) -> Option<(&str, usize)> {
        self.users.iter().map(|(user, events)| (user.as_str(), events.len())).min()
    }
}
