//! Counters of a build of examples. All numbers are integers, so sums do not depend on the order in which
//! threads add to them.

use schemas::history::Role;
use serde::Serialize;

/// Numbers by role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ByRole {
    /// Role 1: to be learned.
    pub sft: u64,
    /// Role 2.
    pub validation: u64,
    /// Role 3.
    pub test: u64,
}

impl ByRole {
    /// Adds `n` for a role; ignores pre-training targets and context.
    pub(crate) fn add(&mut self, role: Role, n: u64) {
        match role {
            Role::Sft => self.sft += n,
            Role::Validation => self.validation += n,
            Role::Test => self.test += n,
            Role::Pretrain | Role::Context => {}
        }
    }

    /// The sum over the roles.
    pub fn total(&self) -> u64 {
        self.sft + self.validation + self.test
    }

    fn merge(&mut self, other: &Self) {
        self.sft += other.sft;
        self.validation += other.validation;
        self.test += other.test;
    }
}

/// Examples of role 1 that `[conditions]` leaves out, each counted under the first reason that applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The event's action is not of `conditions.actions`, or its value is below `conditions.min_value`.
    pub by_event: u64,
    /// Fewer than `conditions.min_pool` active items carry the value.
    pub by_pool: u64,
    /// Fewer than `conditions.min_matching_history` visible items carry the value.
    pub by_history: u64,
}

impl LeftOut {
    /// The sum over the reasons.
    pub fn total(&self) -> u64 {
        self.by_event + self.by_pool + self.by_history
    }
}

/// Shares are stored in units of 2⁻³²; this is a share of 1.
const SHARE_UNIT: u64 = 1 << 32;

/// How well the visible history fits the condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Matched {
    examples: u64,
    /// Examples that see something.
    seeing: u64,
    /// Examples without a visible position that carries the value.
    none: u64,
    /// Shares of the visible positions that match, in [`SHARE_UNIT`]s, over the examples that see something.
    shares: u64,
}

impl Matched {
    /// Adds an example that sees `visible` positions, `matching` of which carry its value.
    pub(crate) fn add(&mut self, visible: u64, matching: u64) {
        self.examples += 1;
        self.none += u64::from(matching == 0);
        self.seeing += u64::from(visible > 0);
        self.shares += (matching * SHARE_UNIT).checked_div(visible).unwrap_or(0);
    }

    fn merge(&mut self, other: &Self) {
        self.examples += other.examples;
        self.seeing += other.seeing;
        self.none += other.none;
        self.shares += other.shares;
    }

    /// The means for the report.
    pub(crate) fn summary(&self) -> MatchRate {
        let share = |part: f64, of: u64| if of == 0 { 0.0 } else { part / of as f64 };
        MatchRate {
            mean: share(self.shares as f64 / SHARE_UNIT as f64, self.seeing),
            without: share(self.none as f64, self.examples),
        }
    }
}

/// How well the visible histories fit their conditions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct MatchRate {
    /// Mean share of the visible positions that carry the value, over the examples that see something.
    pub mean: f64,
    /// Share of the examples that see no position that carries the value.
    pub without: f64,
}

/// All counters of one condition's examples.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ExampleTally {
    pub users: u64,
    /// Events with a role that an example may have.
    pub targets: ByRole,
    /// Those of `targets` whose item carries no value.
    pub without_value: ByRole,
    pub examples: ByRole,
    pub left_out: LeftOut,
    pub matched: Matched,
    /// Examples of each value.
    pub by_value: Vec<u64>,
    /// Events of all users.
    pub events: u64,
}

impl ExampleTally {
    pub(super) fn merge(&mut self, other: &Self) {
        self.users += other.users;
        self.targets.merge(&other.targets);
        self.without_value.merge(&other.without_value);
        self.examples.merge(&other.examples);
        self.left_out.by_event += other.left_out.by_event;
        self.left_out.by_pool += other.left_out.by_pool;
        self.left_out.by_history += other.left_out.by_history;
        self.matched.merge(&other.matched);
        self.by_value.resize(self.by_value.len().max(other.by_value.len()), 0);
        self.by_value.iter_mut().zip(&other.by_value).for_each(|(all, part)| *all += part);
        self.events += other.events;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_match_rate_is_a_mean_over_examples() {
        let mut matched = Matched::default();
        assert_eq!(matched.summary(), MatchRate::default());
        for (visible, matching) in [(4, 1), (2, 1), (3, 0), (0, 0)] {
            matched.add(visible, matching);
        }
        assert_eq!(matched.summary(), MatchRate { mean: 0.25, without: 0.5 });
    }
}
