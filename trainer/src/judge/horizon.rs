//! The horizon curve (Figure 3): one prediction at an anchor `t`, scored against each of the user's next ten events.
//!
//! Anchors are the first test events of users whose last [`HORIZON`] events are the test targets (`sequences.split = "last-n"`,
//! `last_n = 10`). The list for `i_t` is searched for `i_t … i_{t+9}`, horizons 1 to 10. Context and seen items are those visible
//! at the anchor.

use serde::{Deserialize, Serialize};

use super::results::means;
use super::{HR_10, Protocol, Ranks, Target};
use crate::data::SequencesTable;

/// Events that one prediction is scored against.
pub const HORIZON: usize = 10;

/// One curve: hit rates by horizon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HorizonMetrics {
    /// Name of the model.
    pub model: String,
    /// Split of the targets: `validation`, `test` or `prequential`.
    pub split: String,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Whether items that the user has seen are excluded from the ranking.
    pub filter_seen: bool,
    /// Number of users; each has one prediction.
    pub users: usize,
    /// HR@10 for the event 1, 2, …, [`HORIZON`] steps ahead; `None` without users.
    #[serde(rename = "hr@10")]
    pub hr_10: Vec<Option<f64>>,
}

/// Groups `targets` by user, [`HORIZON`] consecutive ones each. Returns an empty list if any user has more or fewer, or has them
/// not consecutive in one row.
pub(super) fn groups<'a>(sequences: &SequencesTable, targets: &'a [Target]) -> Vec<&'a [Target]> {
    let user = |target: &Target| sequences.user[target.row];
    let groups: Vec<&[Target]> = targets.chunk_by(|a, b| user(a) == user(b)).collect();
    let whole = |group: &&[Target]| {
        group.len() == HORIZON
            && group.windows(2).all(|pair| pair[0].row == pair[1].row && pair[0].t + 1 == pair[1].t)
    };
    if groups.iter().all(whole) { groups } else { Vec::new() }
}

/// Returns HR@10 by horizon from the concatenated ranks of users, [`HORIZON`] each.
pub(super) fn hit_rates(ranks: &[Ranks], filter_seen: bool) -> Vec<Option<f64>> {
    (0..HORIZON)
        .map(|h| {
            let ahead = ranks.iter().skip(h).step_by(HORIZON);
            means(ahead.map(|r| r.among(filter_seen))).1[HR_10]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(row: usize, t: usize) -> Target {
        Target { row, t, item: 1.into(), visible: t, left_out: false }
    }

    #[test]
    fn a_curve_needs_ten_neighbours_of_every_user() {
        let sequences = SequencesTable { user: vec![0, 0, 1], ..SequencesTable::default() };
        let row = |row, first: usize| (first..first + HORIZON).map(move |t| target(row, t));
        let targets: Vec<Target> = row(1, 5).chain(row(2, 0)).collect();
        let found = groups(&sequences, &targets);
        assert_eq!(found.iter().map(|g| (g[0].row, g[0].t)).collect::<Vec<_>>(), [(1, 5), (2, 0)]);
        assert!(groups(&sequences, &targets[1..]).is_empty());
        // Ten targets of one user, but in two rows.
        let split: Vec<Target> = row(0, 5).take(5).chain(row(1, 10).take(5)).collect();
        assert!(groups(&sequences, &split).is_empty());
    }

    #[test]
    fn each_horizon_is_a_mean_over_users() {
        let hit = Ranks { all: Some(11), unseen: Some(10) };
        let miss = Ranks { all: Some(12), unseen: Some(11) };
        let ranks: Vec<Ranks> = (0..2 * HORIZON).map(|i| if i < 12 { hit } else { miss }).collect();
        let expected = [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5].map(Some);
        assert_eq!(hit_rates(&ranks, true), expected);
        assert_eq!(hit_rates(&ranks, false), [Some(0.0); HORIZON]);
        assert_eq!(hit_rates(&[], true), [None; HORIZON]);
    }
}
