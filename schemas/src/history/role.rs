//! Which events are learned, held out, or context alone.

/// What a position is as a target; the numbers are those of the `role` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Role {
    /// Trained on by `trainer pretrain`.
    Pretrain = 0,
    /// Trained on by `trainer sft`; never by pre-training.
    Sft = 1,
    /// Selects the model.
    Validation = 2,
    /// Read once.
    Test = 3,
    /// Never a target of this row.
    Context = 4,
}

impl Role {
    /// The role with this number, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        [Self::Pretrain, Self::Sft, Self::Validation, Self::Test, Self::Context]
            .get(usize::from(value))
            .copied()
    }

    /// Whether nothing may be learned from the position.
    pub fn is_held_out(self) -> bool {
        matches!(self, Self::Validation | Self::Test)
    }
}

/// Which positions of a history are held out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Split {
    /// The last event is the test, the one before it validation.
    LeaveOneOut,
    /// The last `n` events are the test, the one before them validation (for the horizon curve).
    LastN(usize),
    /// By two dates, in epoch milliseconds: validation from the first on, test from the second on.
    Temporal {
        /// First instant of the validation period.
        validation_from: i64,
        /// First instant of the test period.
        test_from: i64,
    },
    /// Production: every event of a permanent `guard_share` of the users is validation, nothing is a test.
    None {
        /// Share of the users, 0 to 1, that guard the published model.
        guard_share: f64,
    },
}

/// Fewer events than this leave nothing to learn from once two are held out.
pub const MIN_EVENTS_LEAVE_ONE_OUT: usize = 3;

/// The roles of a whole history under `split`: held-out positions, and [`Role::Pretrain`] for the rest.
///
/// `None` where the user has too few events for the split to hold anything out; the caller counts those and
/// trains on all of their events. `user_hash` places the user in or out of the guard share.
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

/// Turns `share` of the pre-training positions into SFT positions, by the hash of each event's id and so for
/// ever: an event never changes sides.
pub fn with_sft_share(roles: &mut [Role], event_hashes: &[u64], share: f64) {
    debug_assert_eq!(roles.len(), event_hashes.len());
    for (role, &hash) in roles.iter_mut().zip(event_hashes) {
        if *role == Role::Pretrain && unit_interval(hash) < share {
            *role = Role::Sft;
        }
    }
}

/// The first held-out position, where the split keeps a user's held-out positions in one row
/// (a guard user's whole history is held out, and long ones span rows).
pub fn first_held_out(roles: &[Role], split: Split) -> Option<usize> {
    match split {
        Split::None { .. } => None,
        _ => roles.iter().position(|role| role.is_held_out()),
    }
}

/// A hash as a number in `[0, 1)`.
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
