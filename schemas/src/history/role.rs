//! Roles of events: trained on, held out, or context only.

/// Role of a position as a target; the discriminants are the values of the `role` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Trained on by `trainer pretrain`.
    Pretrain = 0,
    /// Trained on by `trainer sft`, never by pre-training.
    Sft = 1,
    /// Used to select the model.
    Validation = 2,
    /// Used once, for the final evaluation.
    Test = 3,
    /// Context only: not a target of this row.
    Context = 4,
}

impl Role {
    /// Returns the role with this number, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Pretrain, Self::Sft, Self::Validation, Self::Test, Self::Context]
            .get(usize::from(value))
            .copied()
    }

    /// Returns true if the position must not be trained on.
    pub fn is_held_out(self) -> bool {
        matches!(self, Self::Validation | Self::Test)
    }
}

/// Rule that holds out positions of a history.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Split {
    /// The last event is test, the one before it validation.
    LeaveOneOut,
    /// The last `n` events are test, the one before them validation (for the horizon curve).
    LastN(usize),
    /// Two dates, in epoch milliseconds, begin the validation and the test period.
    Temporal {
        /// First instant of the validation period.
        validation_from: i64,
        /// First instant of the test period.
        test_from: i64,
    },
    /// For production: all events of a fixed `guard_share` of users are validation; there is no test.
    None {
        /// Share of users, in `[0, 1)`, whose events guard the published model.
        guard_share: f64,
    },
}

/// Fewest events with which leave-one-out leaves something to train on.
pub const MIN_EVENTS_LEAVE_ONE_OUT: usize = 3;

/// Returns the role of each position of a whole history under `split`: held-out positions, and [`Role::Pretrain`] for the rest.
///
/// `None` if the user has too few events to hold any out; the caller counts such users and trains on all of their events.
/// `user_hash` decides whether the user belongs to the guard share.
pub fn held_out_roles(ts: &[i64], user_hash: u64, split: Split) -> Option<Vec<Role>> {
    let n = ts.len();
    let last = |test: usize| {
        (n >= test + 2).then(|| {
            let mut roles = vec![Role::Pretrain; n];
            roles[n - test..].fill(Role::Test);
            roles[n - test - 1] = Role::Validation;
            roles
        })
    };
    match split {
        Split::LeaveOneOut if n < MIN_EVENTS_LEAVE_ONE_OUT => None,
        Split::LeaveOneOut => last(1),
        Split::LastN(test) => last(test),
        Split::Temporal { validation_from, test_from } => Some(
            ts.iter()
                .map(|&t| match t {
                    t if t >= test_from => Role::Test,
                    t if t >= validation_from => Role::Validation,
                    _ => Role::Pretrain,
                })
                .collect(),
        ),
        Split::None { guard_share } => {
            let role = if unit_interval(user_hash) < guard_share { Role::Validation } else { Role::Pretrain };
            Some(vec![role; n])
        }
    }
}

/// Turns `share` of the pre-training positions into SFT positions. The hash of the event's id decides, so an event never changes
/// sides.
pub fn with_sft_share(roles: &mut [Role], event_hashes: &[u64], share: f64) {
    debug_assert_eq!(roles.len(), event_hashes.len());
    for (role, &hash) in roles.iter_mut().zip(event_hashes) {
        if *role == Role::Pretrain && unit_interval(hash) < share {
            *role = Role::Sft;
        }
    }
}

/// Returns the first held-out position if the split keeps a user's held-out positions in one row; `None` under [`Split::None`],
/// where a guard user's whole history is held out and may span rows.
pub fn first_held_out(roles: &[Role], split: Split) -> Option<usize> {
    match split {
        Split::None { .. } => None,
        _ => roles.iter().position(|role| role.is_held_out()),
    }
}

/// Maps a hash to `[0, 1)`.
fn unit_interval(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_one_out_holds_the_last_two() {
        use Role::*;
        assert_eq!(held_out_roles(&[1, 2], 0, Split::LeaveOneOut), None);
        assert_eq!(held_out_roles(&[1, 2, 3], 0, Split::LeaveOneOut), Some(vec![Pretrain, Validation, Test]));
        assert_eq!(held_out_roles(&[1, 2, 3], 0, Split::LastN(2)), None);
        assert_eq!(
            held_out_roles(&[1, 2, 3, 4], 0, Split::LastN(2)),
            Some(vec![Pretrain, Validation, Test, Test])
        );
        let temporal = Split::Temporal { validation_from: 2, test_from: 3 };
        assert_eq!(held_out_roles(&[1, 2, 3], 0, temporal), Some(vec![Pretrain, Validation, Test]));
    }

    #[test]
    fn guard_users_are_validation_whole() {
        let split = Split::None { guard_share: 0.5 };
        assert_eq!(held_out_roles(&[1, 2], 0, split), Some(vec![Role::Validation; 2]));
        assert_eq!(held_out_roles(&[1, 2], u64::MAX, split), Some(vec![Role::Pretrain; 2]));
    }

    #[test]
    fn the_sft_share_touches_pretraining_only() {
        let mut roles = [Role::Pretrain, Role::Validation, Role::Pretrain];
        with_sft_share(&mut roles, &[0, 0, u64::MAX], 0.5);
        assert_eq!(roles, [Role::Sft, Role::Validation, Role::Pretrain]);
    }
}
