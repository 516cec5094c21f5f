//! The claims on an instruction example: by itself, against the catalogue, and against its user's history.

use std::collections::HashMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, TimestampMillisecondType, UInt8Type, UInt32Type};
use schemas::config::Conditions;
use schemas::history::{Role, Window, windows};
use schemas::tables::NO_ITEM;

use super::carried::Carried;
use super::history::{HistoryRules, ProvenHistory};
use super::row::{Broken, list};

/// The columns of [`example`], in this order.
pub(super) const COLUMNS: [&str; 12] = [
    "user_id",
    "item_index",
    "ts",
    "session",
    "request",
    "matches",
    "target_item",
    "target_ts",
    "visible_len",
    "role",
    "condition",
    "weight",
];

pub(super) const LENGTHS: &str = "the lists of an example have equal length, below max_len";
pub(super) const ITEMS: &str = "item_index and target_item refer to an item";
pub(super) const ASCENDING: &str = "ts ascends, up to target_ts";
pub(super) const PREFIX: &str = "visible_len is at most the length of the history";
pub(super) const ROLES: &str = "role is 1, 2 or 3";
pub(super) const VALUE: &str = "condition is a value of the catalogue, and the target carries it";
pub(super) const MATCHES: &str =
    "matches says which items of the history carry the condition, each at its own time";
pub(super) const WEIGHT: &str = "weight is one by the number of the target's values";

pub(super) const TARGET: &str = "the target is an event of the user";
pub(super) const DISJOINT: &str = "no target of pre-training is an example";
pub(super) const ROLE: &str = "role is that of the target's position";
pub(super) const HISTORY: &str = "the history is that of the row of sequences that owns the target, up to it";
pub(super) const VISIBLE: &str = "visible_len is that of the target in this row";
pub(super) const ONCE: &str =
    "targets of role 2 and 3, and those of role 1 that pass [conditions], are examples once for each value";

/// One example.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ExampleRow<'a> {
    pub user: &'a str,
    pub item: &'a [u32],
    pub ts: &'a [i64],
    pub session: &'a [u32],
    pub request: &'a [u32],
    pub matches: Vec<bool>,
    pub target_item: u32,
    pub target_ts: i64,
    pub visible_len: u32,
    pub role: u8,
    pub condition: &'a str,
    pub weight: f32,
}

/// A row of a batch with [`COLUMNS`].
pub(super) fn example(batch: &RecordBatch, row: usize) -> ExampleRow<'_> {
    let matches = batch.column(5).as_list::<i32>().value(row);
    ExampleRow {
        user: batch.column(0).as_string::<i32>().value(row),
        item: list::<UInt32Type>(batch.column(1).as_list(), row),
        ts: list::<TimestampMillisecondType>(batch.column(2).as_list(), row),
        session: list::<UInt32Type>(batch.column(3).as_list(), row),
        request: list::<UInt32Type>(batch.column(4).as_list(), row),
        matches: matches.as_boolean().iter().flatten().collect(),
        target_item: batch.column(6).as_primitive::<UInt32Type>().value(row),
        target_ts: batch.column(7).as_primitive::<TimestampMillisecondType>().value(row),
        visible_len: batch.column(8).as_primitive::<UInt32Type>().value(row),
        role: batch.column(9).as_primitive::<UInt8Type>().value(row),
        condition: batch.column(10).as_string::<i32>().value(row),
        weight: batch.column(11).as_primitive::<Float32Type>().value(row),
    }
}

impl ExampleRow<'_> {
    /// The first claim that the example breaks by itself.
    pub(super) fn check(&self, max_len: usize, last_item: Option<u32>) -> Result<(), Broken> {
        let n = self.item.len();
        if n >= max_len {
            let expected = format!("fewer than {max_len} positions");
            return Err(Broken::new(LENGTHS, "item_index", None, format!("{n} positions"), expected));
        }
        let others = [
            ("ts", self.ts.len()),
            ("session", self.session.len()),
            ("request", self.request.len()),
            ("matches", self.matches.len()),
        ];
        if let Some((column, length)) = others.into_iter().find(|&(_, length)| length != n) {
            let expected = format!("{n} positions, as item_index");
            return Err(Broken::new(LENGTHS, column, None, format!("{length} positions"), expected));
        }
        let last = last_item.unwrap_or(u32::MAX);
        let unknown = |item: u32| item == NO_ITEM || item > last;
        if let Some(k) = self.item.iter().position(|&item| unknown(item)) {
            return Err(Broken::new(ITEMS, "item_index", k, self.item[k], format!("1 to {last}")));
        }
        if unknown(self.target_item) {
            let expected = format!("1 to {last}");
            return Err(Broken::new(ITEMS, "target_item", None, self.target_item, expected));
        }
        if let Some(k) = (1..n).find(|&k| self.ts[k] < self.ts[k - 1]) {
            let expected = format!("at least {} (milliseconds)", self.ts[k - 1]);
            return Err(Broken::new(ASCENDING, "ts", k, self.ts[k], expected));
        }
        if let Some(&newest) = self.ts.last().filter(|&&newest| newest > self.target_ts) {
            let expected = format!("at least {newest} (milliseconds)");
            return Err(Broken::new(ASCENDING, "target_ts", None, self.target_ts, expected));
        }
        if self.visible_len as usize > n {
            return Err(Broken::new(PREFIX, "visible_len", None, self.visible_len, format!("at most {n}")));
        }
        match Role::from_u8(self.role) {
            Some(Role::Sft | Role::Validation | Role::Test) => Ok(()),
            _ => Err(Broken::new(ROLES, "role", None, self.role, "1, 2 or 3")),
        }
    }

    /// The first claim that the example breaks according to the catalogue.
    pub(super) fn check_condition(&self, carried: &Carried) -> Result<(), Broken> {
        let values = carried.values(self.target_item, self.target_ts);
        if !values.contains(&self.condition) {
            let expected = format!("one of the target's values {values:?}");
            return Err(Broken::new(VALUE, "condition", None, format!("`{}`", self.condition), expected));
        }
        for (k, (&item, &ts)) in self.item.iter().zip(self.ts).enumerate() {
            let carries = carried.carries(item, ts, self.condition);
            if self.matches[k] != carries {
                return Err(Broken::new(MATCHES, "matches", k, self.matches[k], carries));
            }
        }
        let weight = 1.0 / values.len() as f32;
        if self.weight.to_bits() != weight.to_bits() {
            return Err(Broken::new(WEIGHT, "weight", None, self.weight, weight));
        }
        Ok(())
    }
}

/// The rules by which a history gives examples.
pub(super) struct ExampleRules<'a> {
    pub rules: &'a HistoryRules,
    pub carried: &'a Carried,
    pub limits: &'a Conditions,
    /// Value met so far → number of active items that carry it.
    pub pools: HashMap<String, u64>,
    /// The time of the newest event.
    pub newest: i64,
}

/// The examples that a user's history gives, in order, and the number of them seen so far.
pub(super) struct Expected {
    history: ProvenHistory,
    windows: Vec<Window>,
    /// Window, place in it, value.
    examples: Vec<(usize, usize, String)>,
    next: usize,
}

impl ExampleRules<'_> {
    /// All examples of a history.
    pub(super) fn examples(&mut self, history: ProvenHistory) -> Expected {
        // A history that cannot be cut gives no rows, so no table has it.
        let windows =
            windows(&history.visible, self.rules.max_len, history.first_held_out).unwrap_or_default();
        let mut examples = Vec::new();
        for (w, window) in windows.iter().enumerate() {
            for k in window.target_from..window.positions.len() {
                let t = window.positions[k] as usize;
                if matches!(history.roles[t], Role::Pretrain | Role::Context) {
                    continue;
                }
                for value in self.carried.values(history.item[t], history.ts[t]) {
                    if history.roles[t] != Role::Sft || self.is_learned(&history, window, k, value) {
                        examples.push((w, k, value.to_owned()));
                    }
                }
            }
        }
        Expected { history, windows, examples, next: 0 }
    }

    /// Whether the target at position `k` of the window passes the limits of quality.
    fn is_learned(&mut self, history: &ProvenHistory, window: &Window, k: usize, value: &str) -> bool {
        let t = window.positions[k] as usize;
        let (carried, newest) = (self.carried, self.newest);
        let pool = match self.pools.get(value) {
            Some(&pool) => pool,
            None => {
                let pool = carried.pool(value, newest).unwrap_or_default();
                *self.pools.entry(value.to_owned()).or_insert(pool)
            }
        };
        let visible = window.visible_len(history.visible[t]) as usize;
        let seen = window.positions[..visible].iter().map(|&p| p as usize);
        let matching = seen.filter(|&p| carried.carries(history.item[p], history.ts[p], value)).count();
        history.fit[t] && pool >= self.limits.min_pool as u64 && matching >= self.limits.min_matching_history
    }
}

impl Expected {
    /// Compares the user's next example with the history.
    pub(super) fn check(&mut self, example: &ExampleRow<'_>) -> Result<(), Broken> {
        let shown = format!("item {} at {} ms", example.target_item, example.target_ts);
        let is_target =
            |t: usize| (self.history.ts[t], self.history.item[t]) == (example.target_ts, example.target_item);
        let next = self.examples.get(self.next).map(|(w, k, value)| (&self.windows[*w], *k, value));
        let next = next.filter(|(window, k, value)| {
            is_target(window.positions[*k] as usize) && **value == example.condition
        });
        let Some((window, k, _)) = next else {
            let mut places = (0..self.history.ts.len()).filter(|&t| is_target(t)).peekable();
            if places.peek().is_none() {
                return Err(Broken::new(TARGET, "target_item", None, shown, "an event of the user"));
            }
            if places.all(|t| self.history.roles[t] == Role::Pretrain) {
                return Err(Broken::new(DISJOINT, "target_item", None, shown, "a target of role 1, 2 or 3"));
            }
            let found = format!("{shown} for `{}`", example.condition);
            return Err(Broken::new(ONCE, "target_item", None, found, self.expected()));
        };
        let t = window.positions[k] as usize;
        let role = self.history.roles[t] as u8;
        if example.role != role {
            return Err(Broken::new(ROLE, "role", None, example.role, role));
        }
        if example.item.len() != k {
            let found = format!("{} positions", example.item.len());
            return Err(Broken::new(HISTORY, "item_index", None, found, format!("{k} positions")));
        }
        for (p, &at) in window.positions[..k].iter().enumerate() {
            let at = at as usize;
            let lists = [
                ("ts", example.ts[p], self.history.ts[at]),
                ("item_index", example.item[p].into(), self.history.item[at].into()),
                ("session", example.session[p].into(), self.history.session[at].into()),
                ("request", example.request[p].into(), self.history.request[at].into()),
            ];
            if let Some((column, found, expected)) = lists.into_iter().find(|list| list.1 != list.2) {
                return Err(Broken::new(HISTORY, column, p, found, expected));
            }
        }
        let visible = window.visible_len(self.history.visible[t]);
        if example.visible_len != visible {
            return Err(Broken::new(VISIBLE, "visible_len", None, example.visible_len, visible));
        }
        self.next += 1;
        Ok(())
    }

    /// Whether no other event of the history has the target's item and time.
    pub(super) fn is_alone(&self, example: &ExampleRow<'_>) -> bool {
        let events = self.history.ts.iter().zip(&self.history.item);
        events.filter(|&(&ts, &item)| (ts, item) == (example.target_ts, example.target_item)).count() == 1
    }

    /// Whether all examples were seen.
    pub(super) fn is_done(&self) -> bool {
        self.next == self.examples.len()
    }

    /// The next example, in words.
    pub(super) fn expected(&self) -> String {
        match self.examples.get(self.next) {
            None => format!("nothing: the {} examples of the user are all there", self.next),
            Some((w, k, value)) => {
                let t = self.windows[*w].positions[*k] as usize;
                let (item, ts, role) =
                    (self.history.item[t], self.history.ts[t], self.history.roles[t] as u8);
                format!("item {item} at {ts} ms for `{value}`, of role {role}")
            }
        }
    }
}
