//! The histories once more, from `events`: what the lists of a user's rows must be.
//!
//! A history is sorted in memory by (time, tie, source, position, hash of the event id), where the tie is 0 for
//! `file-order` and `mix64(tie_seed, hash64(event_id))` for `shuffled`; of equal event ids of one date the
//! smallest record counts. From there on the functions of [`schemas::history`] decide. A row is then laid over
//! the history: its targets must be the next events without a gap, its context some events before them.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMillisecondType, UInt32Type};
use schemas::delta::Snapshot;
use schemas::hash::{hash64, hash128, mix64};
use schemas::history::{
    DeltaTau, Role, Split, Window, first_held_out, held_out_roles, request_batches, session_ordinals,
    visible_lengths, with_sft_share,
};
use schemas::tables::EVENTS_SCHEMA;

use super::events::by_date;
use super::reader;
use super::row::{Broken, Row};
use super::violation::{Stop, Violation};

pub(super) const ONCE: &str = "every event is a target exactly once, in order";
pub(super) const CONTEXT: &str = "what comes before target_from are earlier events of the user";
pub(super) const SESSION: &str = "session is the ordinal in the whole history";
pub(super) const REQUEST: &str = "request is the ordinal in the whole history";
pub(super) const VISIBLE: &str = "visible_len counts the positions of the row before v_t";
pub(super) const ROLE: &str = "role follows from the split";
pub(super) const ENOUGH: &str = "a target has the min(v_t, max_len / 2) newest events it may see in its row";
pub(super) const HELD_OUT: &str = "a user's held-out events are targets of one row";

/// What decides a history besides the events.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Actions that become positions; all where there are none.
    pub actions: Vec<String>,
    /// The seed of the `shuffled` order.
    pub shuffle: Option<u64>,
    pub session_gap_ms: i64,
    pub batch_gap_ms: i64,
    pub delta_tau: DeltaTau,
    pub max_len: usize,
    pub split: Split,
    pub sft_share: f64,
}

/// The log that the rows were made from.
pub(super) struct Log {
    pub events: Snapshot,
    /// Item → index.
    pub indexes: HashMap<String, u32>,
    pub rules: Rules,
    repeated: Repeated,
}

const COLUMNS: [&str; 8] =
    ["event_id", "user_id", "item_id", "ts", "request_id", "action", "source", "position"];

/// The events of which a date has several: the smallest record of each id.
#[derive(Default)]
struct Repeated {
    ids: HashSet<(String, u128)>,
    first: HashMap<(String, String), Record>,
}

/// (source, position, ts, user, item, action, request)
type Record = (String, i64, i64, String, String, String, Option<String>);

/// The texts and numbers of a batch with [`COLUMNS`].
struct Fields<'a>(&'a RecordBatch);

impl<'a> Fields<'a> {
    fn text(&self, column: usize, row: usize) -> &'a str {
        self.0.column(column).as_string::<i32>().value(row)
    }

    fn ts(&self, row: usize) -> i64 {
        self.0.column(3).as_primitive::<TimestampMillisecondType>().value(row)
    }

    fn position(&self, row: usize) -> i64 {
        self.0.column(7).as_primitive::<Int64Type>().value(row)
    }

    fn request(&self, row: usize) -> Option<&'a str> {
        self.0.column(4).is_valid(row).then(|| self.text(4, row))
    }

    fn record(&self, row: usize) -> Record {
        let text = |column| self.text(column, row).to_owned();
        let request = self.request(row).map(str::to_owned);
        (text(6), self.position(row), self.ts(row), text(1), text(2), text(5), request)
    }
}

impl Repeated {
    async fn find(events: &Snapshot) -> Result<Self, Stop> {
        let mut repeated = Self::default();
        for (date, shards) in by_date(events) {
            let date = date.unwrap_or_default();
            let (mut seen, mut again) = (HashSet::new(), false);
            for shard in &shards {
                for batch in reader::read(events, shard, &EVENTS_SCHEMA, &["event_id"]).await? {
                    for id in batch.column(0).as_string::<i32>().iter().flatten() {
                        let id = hash128(id.as_bytes());
                        if !seen.insert(id) {
                            again = true;
                            repeated.ids.insert((date.to_owned(), id));
                        }
                    }
                }
            }
            if !again {
                continue;
            }
            for shard in &shards {
                for batch in reader::read(events, shard, &EVENTS_SCHEMA, &COLUMNS).await? {
                    let fields = Fields(&batch);
                    for row in 0..batch.num_rows() {
                        repeated.note(date, &fields, row);
                    }
                }
            }
        }
        Ok(repeated)
    }

    fn key(&self, date: &str, id: &str) -> Option<(String, String)> {
        let repeats = !self.ids.is_empty() && self.ids.contains(&(date.to_owned(), hash128(id.as_bytes())));
        repeats.then(|| (date.to_owned(), id.to_owned()))
    }

    fn note(&mut self, date: &str, fields: &Fields<'_>, row: usize) {
        if let Some(key) = self.key(date, fields.text(0, row)) {
            let record = fields.record(row);
            let first = self.first.entry(key).or_insert_with(|| record.clone());
            if record < *first {
                *first = record;
            }
        }
    }

    /// Whether the row counts; of records that are equal in everything, the first that is asked about.
    fn counts(
        &self,
        date: &str,
        fields: &Fields<'_>,
        row: usize,
        taken: &mut HashSet<(String, String)>,
    ) -> bool {
        match self.key(date, fields.text(0, row)) {
            None => true,
            Some(key) => self.first.get(&key) == Some(&fields.record(row)) && taken.insert(key),
        }
    }
}

/// One event of a history.
struct Event {
    ts: i64,
    tie: u64,
    source: u32,
    position: i64,
    hash: u64,
    item: u32,
    /// Place in [`Slice::requests`].
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

impl Log {
    pub(super) async fn open(events: Snapshot, items: &Snapshot, rules: Rules) -> Result<Self, Stop> {
        let mut indexes = HashMap::new();
        for batch in items.read(&["item_id", "item_index"]).await? {
            let ids = batch.column(0).as_string::<i32>().iter().flatten();
            let numbers = batch.column(1).as_primitive::<UInt32Type>().values();
            indexes.extend(ids.zip(numbers).map(|(id, &index)| (id.to_owned(), index)));
        }
        let repeated = Repeated::find(&events).await?;
        Ok(Self { events, indexes, rules, repeated })
    }

    /// The events of the users of slice `number` of `slices`.
    pub(super) async fn slice(&self, number: u64, slices: u64) -> Result<Slice, Stop> {
        let mut slice = Slice::default();
        let (mut places, mut taken) = (HashMap::new(), HashSet::new());
        for (date, shards) in by_date(&self.events) {
            for shard in shards {
                let mut first_row = 0;
                for batch in reader::read(&self.events, shard, &EVENTS_SCHEMA, &COLUMNS).await? {
                    let fields = Fields(&batch);
                    for row in 0..batch.num_rows() {
                        let (user, action) = (fields.text(1, row), fields.text(5, row));
                        let actions = &self.rules.actions;
                        if slice_of(user, slices) != number
                            || !self.repeated.counts(date.unwrap_or_default(), &fields, row, &mut taken)
                            || !(actions.is_empty() || actions.iter().any(|known| known == action))
                        {
                            continue;
                        }
                        let item = fields.text(2, row);
                        let Some(&item) = self.indexes.get(item) else {
                            let found = format!("`{item}`, which has no index");
                            let expected = "an item of the catalogue that the rows were built with";
                            let violation = Violation::new(&self.events, super::row::ITEMS, found, expected);
                            let row = first_row + row as u64;
                            return Err(violation.shard(shard).row(row).column("item_id").into());
                        };
                        slice.add(&self.rules, &mut places, &fields, row, item);
                    }
                    first_row += batch.num_rows() as u64;
                }
            }
        }
        Ok(slice)
    }
}

impl Slice {
    fn add(
        &mut self,
        rules: &Rules,
        places: &mut HashMap<String, u32>,
        fields: &Fields<'_>,
        row: usize,
        item: u32,
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
            position: fields.position(row),
            hash,
            item,
            request,
        };
        let user = fields.text(1, row);
        match self.users.get_mut(user) {
            Some(events) => events.push(event),
            None => _ = self.users.insert(user.to_owned(), vec![event]),
        }
        self.events += 1;
    }

    /// Takes a user's history out; `None` where the user has no events, or was taken before.
    pub(super) fn take(&mut self, user: &str, rules: &Rules) -> Option<History> {
        let mut events = self.users.remove(user)?;
        let sources = &self.sources;
        events.sort_by(|a, b| {
            (a.ts, a.tie)
                .cmp(&(b.ts, b.tie))
                .then_with(|| sources[a.source as usize].cmp(&sources[b.source as usize]))
                .then_with(|| (a.position, a.hash).cmp(&(b.position, b.hash)))
        });
        let ts: Vec<i64> = events.iter().map(|event| event.ts).collect();
        let ids: Vec<Option<&str>> =
            events.iter().map(|event| event.request.clone().map(|span| &self.requests[span])).collect();
        let hashes: Vec<u64> = events.iter().map(|event| event.hash).collect();
        let item = events.iter().map(|event| event.item).collect();
        Some(History::new(user, ts, item, &ids, &hashes, rules))
    }

    /// The first (by name) of the users that were not taken, and how many events it has.
    pub(super) fn left(&self) -> Option<(&str, usize)> {
        self.users.iter().map(|(user, events)| (user.as_str(), events.len())).min()
    }
}

/// A user's history, and how far the rows seen so far own it.
pub(super) struct History {
    ts: Vec<i64>,
    item: Vec<u32>,
    session: Vec<u32>,
    request: Vec<u32>,
    visible: Vec<u32>,
    roles: Vec<Role>,
    first_held_out: Option<usize>,
    next: usize,
}

impl History {
    fn new(
        user: &str,
        ts: Vec<i64>,
        item: Vec<u32>,
        ids: &[Option<&str>],
        hashes: &[u64],
        rules: &Rules,
    ) -> Self {
        let session = session_ordinals(&ts, rules.session_gap_ms);
        let requests = request_batches(&ts, ids, rules.batch_gap_ms);
        let visible = visible_lengths(&ts, &requests, rules.delta_tau);
        let mut roles = held_out_roles(&ts, hash64(user.as_bytes()), rules.split)
            .unwrap_or_else(|| vec![Role::Pretrain; ts.len()]);
        with_sft_share(&mut roles, hashes, rules.sft_share);
        let first_held_out = first_held_out(&roles, rules.split);
        Self { ts, item, session, request: requests.ordinal, visible, roles, first_held_out, next: 0 }
    }

    /// Events of the history, and how many of them rows have owned so far.
    pub(super) fn owned(&self) -> (usize, usize) {
        (self.ts.len(), self.next)
    }

    /// Holds the user's next row against the history. With `gaps`, rows in between may be missing and targets
    /// may be of role 4, as in `refresh`.
    pub(super) fn check(&mut self, row: &Row<'_>, max_len: usize, gaps: bool) -> Result<(), Broken> {
        let start = self.place_targets(row, gaps)?;
        self.next = start + row.item.len() - row.target_from;
        // Context events that are equal in everything that a row holds can be told apart by nothing; either
        // choice may make the row right.
        let mut result = Err(Broken::new(
            CONTEXT,
            "item_index",
            row.target_from.checked_sub(1),
            "an event that the user does not have there",
            "an earlier event",
        ));
        for (exact, newest_first) in [(true, true), (true, false), (false, true)] {
            if let Some(context) = self.place_context(row, start, exact, newest_first) {
                let positions = context.into_iter().chain(start as u32..self.next as u32).collect();
                let window = Window { positions, target_from: row.target_from, short_context: false };
                result = self.compare(row, &window, max_len, gaps);
                if result.is_ok() {
                    break;
                }
            }
        }
        result
    }

    fn is_event(&self, t: usize, row: &Row<'_>, k: usize) -> bool {
        self.ts[t] == row.ts[k] && self.item[t] == row.item[k]
    }

    /// Where in the history the row's targets begin.
    fn place_targets(&self, row: &Row<'_>, gaps: bool) -> Result<usize, Broken> {
        let from = row.target_from;
        let owned = row.item.len() - from;
        let fits = |start: usize| {
            start + owned <= self.ts.len() && (0..owned).all(|i| self.is_event(start + i, row, from + i))
        };
        if gaps {
            let first = self.next.max(self.ts.partition_point(|&ts| ts < row.ts[from]));
            let mut starts = (first..self.ts.len()).take_while(|&t| self.ts[t] == row.ts[from]);
            return starts.find(|&start| fits(start)).ok_or_else(|| {
                Broken::new(ONCE, "ts", from, self.shown(row, from), "an event that no row before owns")
            });
        }
        for i in 0..owned {
            let (t, k) = (self.next + i, from + i);
            if t >= self.ts.len() {
                let expected = format!("nothing: all {t} events of the user are owned by then");
                return Err(Broken::new(ONCE, "item_index", k, self.shown(row, k), expected));
            }
            if !self.is_event(t, row, k) {
                let column = if self.ts[t] == row.ts[k] { "item_index" } else { "ts" };
                let expected = format!("event {t} of the user, item {} at {} ms", self.item[t], self.ts[t]);
                return Err(Broken::new(ONCE, column, k, self.shown(row, k), expected));
            }
        }
        Ok(self.next)
    }

    fn shown(&self, row: &Row<'_>, k: usize) -> String {
        format!("item {} at {} ms", row.item[k], row.ts[k])
    }

    /// The events that stand before the targets, which begin at event `start`.
    fn place_context(
        &self,
        row: &Row<'_>,
        start: usize,
        exact: bool,
        newest_first: bool,
    ) -> Option<Vec<u32>> {
        let same = |t: usize, k: usize| {
            self.is_event(t, row, k)
                && (!exact || (self.session[t] == row.session[k] && self.request[t] == row.request[k]))
        };
        let mut places = Vec::with_capacity(row.target_from);
        if newest_first {
            let mut end = start;
            for k in (0..row.target_from).rev() {
                end = (0..end).rev().find(|&t| same(t, k))?;
                places.push(end as u32);
            }
            places.reverse();
        } else {
            let mut first = self.ts.partition_point(|&ts| ts < row.ts[0]);
            for k in 0..row.target_from {
                let place = (first..start).find(|&t| same(t, k))?;
                places.push(place as u32);
                first = place + 1;
            }
        }
        Some(places)
    }

    /// Compares the lists, now that it is known which events the row shows.
    fn compare(&self, row: &Row<'_>, window: &Window, max_len: usize, gaps: bool) -> Result<(), Broken> {
        let held_out_row = self.first_held_out.is_some_and(|first| first < self.next);
        for (k, &t) in window.positions.iter().enumerate() {
            let t = t as usize;
            let seen = window.visible_len(self.visible[t]);
            let lists = [
                (SESSION, "session", row.session[k], self.session[t]),
                (REQUEST, "request", row.request[k], self.request[t]),
                (VISIBLE, "visible_len", row.visible[k], seen),
            ];
            if let Some((claim, column, found, expected)) = lists.into_iter().find(|l| l.2 != l.3) {
                return Err(Broken::new(claim, column, k, found, expected));
            }
            if k < row.target_from {
                continue;
            }
            let role = self.roles[t] as u8;
            if row.role[k] != role && !(gaps && row.role[k] == Role::Context as u8) {
                return Err(Broken::new(ROLE, "role", k, row.role[k], role));
            }
            let needed = self.visible[t].saturating_sub(max_len as u32 / 2)..self.visible[t];
            let present = seen - window.visible_len(needed.start);
            // Held-out events must share a row, which may then be too short for the context of all.
            let excused = held_out_row && row.item.len() == max_len;
            if (present as usize) < needed.len() && !excused {
                let found = format!("{present} of them");
                return Err(Broken::new(ENOUGH, "item_index", k, found, format!("{}", needed.len())));
            }
        }
        match self.first_held_out {
            Some(first) if !gaps && first < self.next && self.next < self.ts.len() => {
                let k = (first + row.item.len()).saturating_sub(self.next);
                let expected = format!("in the row that owns the newest of {} events", self.ts.len());
                Err(Broken::new(HELD_OUT, "role", k, "held out in an earlier row", expected))
            }
            _ => Ok(()),
        }
    }
}
