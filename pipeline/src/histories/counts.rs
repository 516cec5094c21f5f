//! Counters of a build, from events to rows.

use schemas::history::{EventFilter, LogFilters, Role, Window};
use serde::Serialize;

/// Numbers of events, users, rows and positions of one build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows of `events`.
    pub events: u64,
    /// Further copies of events, dropped.
    pub duplicates: u64,
    /// Events whose action `sequences.actions` leaves out.
    pub filtered: u64,
    /// Events that the other filters of `[sequences]` take out; absent where none is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<FilterCounts>,
    /// Events of users who have no fresh one, passed over by a refresh.
    pub other_users: u64,
    /// Items that only events name; the build has given them an index.
    pub new_items: u64,
    /// Users with at least one row.
    pub users: u64,
    /// Users with too few events for the split to hold anything out.
    pub users_too_few: u64,
    /// Rows of `sequences`.
    pub rows: u64,
    /// Rows that leave out events which none of their targets may see.
    pub rows_leave_out: u64,
    /// Rows in which held-out positions see less than the guaranteed context.
    pub rows_short_context: u64,
    /// Positions of all rows.
    pub positions: u64,
    /// Positions that a row owns; in a refresh, not all of them are targets.
    pub owned: u64,
    /// Targets by role.
    pub targets: TargetCounts,
    /// Targets that see nothing; every user's first event is one.
    pub nothing_visible: u64,
    /// Earlier positions of the row, summed over the targets.
    pub earlier: u64,
    /// Those of [`earlier`](Self::earlier) that the target may not see.
    pub hidden: u64,
}

/// Events that filters of `[sequences]` take out, each counted at the first filter that it fails. A refresh counts only the
/// events of the users whose histories it reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct FilterCounts {
    /// Events that do not reach `min_value`, or have no value.
    pub by_value: u64,
    /// Events outside `from` and `until`.
    pub by_time: u64,
    /// Events that `at_most_once` takes out: of a user and item of which another event is kept.
    pub by_once: u64,
    /// Events outside the k-core of `min_user_events` and `min_item_events`.
    pub by_core: u64,
    /// Users whose last event the k-core takes out.
    pub core_users: u64,
    /// Items whose last event the k-core takes out.
    pub core_items: u64,
    /// Rounds of the k-core that took out a user or an item.
    pub core_rounds: u64,
}

impl FilterCounts {
    /// Events that the filters take out.
    pub fn events(&self) -> u64 {
        self.by_value + self.by_time + self.by_once + self.by_core
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.by_value += other.by_value;
        self.by_time += other.by_time;
        self.by_once += other.by_once;
        self.by_core += other.by_core;
        self.core_users += other.core_users;
        self.core_items += other.core_items;
        self.core_rounds += other.core_rounds;
    }

    /// The lines of a report, for the filters that are set: what they take out, the number of events, a note.
    pub(crate) fn lines(&self, filters: &LogFilters) -> Vec<(&'static str, u64, String)> {
        let mut lines = Vec::new();
        if filters.min_value.is_some() {
            lines.push(("filtered by value", self.by_value, String::new()));
        }
        if filters.from_ms.is_some() || filters.until_ms.is_some() {
            lines.push(("filtered by time", self.by_time, String::new()));
        }
        if filters.at_most_once.is_some() {
            lines.push(("filtered by at_most_once", self.by_once, String::new()));
        }
        if filters.has_core() {
            let note =
                format!("{} users, {} items, rounds {}", self.core_users, self.core_items, self.core_rounds);
            lines.push(("outside the k-core", self.by_core, note));
        }
        lines
    }
}

/// Owned positions by their role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TargetCounts {
    /// Role 0.
    pub pretrain: u64,
    /// Role 1.
    pub sft: u64,
    /// Role 2.
    pub validation: u64,
    /// Role 3.
    pub test: u64,
}

impl TargetCounts {
    /// Counts one target.
    pub fn count(&mut self, role: Role) {
        match role {
            Role::Pretrain => self.pretrain += 1,
            Role::Sft => self.sft += 1,
            Role::Validation => self.validation += 1,
            Role::Test => self.test += 1,
            Role::Context => {}
        }
    }

    /// All targets.
    pub fn total(&self) -> u64 {
        self.pretrain + self.sft + self.validation + self.test
    }
}

impl Counts {
    /// Adds what another pass counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.duplicates += other.duplicates;
        self.filtered += other.filtered;
        if let Some(filters) = &other.filters {
            self.filters.get_or_insert_default().add(filters);
        }
        self.other_users += other.other_users;
        self.new_items += other.new_items;
        self.users += other.users;
        self.users_too_few += other.users_too_few;
        self.rows += other.rows;
        self.rows_leave_out += other.rows_leave_out;
        self.rows_short_context += other.rows_short_context;
        self.positions += other.positions;
        self.owned += other.owned;
        self.targets.pretrain += other.targets.pretrain;
        self.targets.sft += other.targets.sft;
        self.targets.validation += other.targets.validation;
        self.targets.test += other.targets.test;
        self.nothing_visible += other.nothing_visible;
        self.earlier += other.earlier;
        self.hidden += other.hidden;
    }

    /// Counts an event that a filter takes out by itself.
    pub(crate) fn take_out(&mut self, by: EventFilter) {
        match by {
            EventFilter::Action => self.filtered += 1,
            EventFilter::Value => self.filters.get_or_insert_default().by_value += 1,
            EventFilter::Time => self.filters.get_or_insert_default().by_time += 1,
        }
    }

    /// Events that all filters take out.
    pub(crate) fn taken_out(&self) -> u64 {
        self.filtered + self.filters.as_ref().map_or(0, FilterCounts::events)
    }

    /// Counts one row; `roles` and `visible` are those of the whole history.
    pub(crate) fn row(&mut self, window: &Window, roles: &[Role], visible: &[u32]) {
        self.rows += 1;
        self.positions += window.positions.len() as u64;
        self.rows_leave_out += u64::from(window.leaves_out());
        self.rows_short_context += u64::from(window.short_context);
        for (k, &t) in window.positions.iter().enumerate().skip(window.target_from) {
            self.owned += 1;
            if roles[t as usize] == Role::Context {
                continue;
            }
            let seen = window.visible_len(visible[t as usize]);
            self.targets.count(roles[t as usize]);
            self.nothing_visible += u64::from(seen == 0);
            self.earlier += k as u64;
            self.hidden += k as u64 - u64::from(seen);
        }
    }

    /// Share of a target's earlier positions in its row that it may not see.
    pub fn hidden_share(&self) -> f64 {
        if self.earlier == 0 { 0.0 } else { self.hidden as f64 / self.earlier as f64 }
    }
}
