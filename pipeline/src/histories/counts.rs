//! Counters of a build, from events to rows.

use schemas::history::{Role, Window};
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
