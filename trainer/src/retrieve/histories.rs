//! The history visible to a request: the user's events before it, except those of the last `Δτ`. [`Stored`] borrows table
//! `sequences` and adds one map entry per user.

use std::collections::HashMap;

use schemas::history::{DeltaTau, request_batches, visible_lengths};

use crate::data::{ItemIndex, SequencesTable};

/// The visible events of one user, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VisibleHistory {
    /// Item of each event.
    pub items: Vec<ItemIndex>,
    /// Time of each event, epoch milliseconds, ascending.
    pub ts: Vec<i64>,
    /// `v_t` of each event, counted in this history: the number of events visible to it in training under mask `row`.
    pub visible: Vec<u32>,
}

/// Returns the number of events at `ts` (ascending) visible to a request at `at`: those before `at − Δτ`, all times in epoch
/// milliseconds. This equals `v_t` (Eq. 1) of an event at `at`.
pub fn visible_at(ts: &[i64], at: i64, delta_tau: DeltaTau) -> usize {
    let horizon = match delta_tau {
        DeltaTau::Off => at,
        DeltaTau::Margin(margin_ms) => at.saturating_sub(margin_ms),
    };
    ts.partition_point(|&ts| ts < horizon)
}

/// Parses `Δτ` from the property of `sequences`; `None` if it is neither `off` nor an integer of milliseconds.
pub fn delta_tau(property: &str) -> Option<DeltaTau> {
    match property {
        "off" => Some(DeltaTau::Off),
        margin => margin.parse().ok().map(DeltaTau::Margin),
    }
}

impl VisibleHistory {
    /// Builds a history from events in any order; events at equal times keep their order.
    pub fn from_events(mut events: Vec<(ItemIndex, i64)>, delta_tau: DeltaTau) -> Self {
        events.sort_by_key(|&(_, ts)| ts);
        let (items, ts): (Vec<ItemIndex>, Vec<i64>) = events.into_iter().unzip();
        let visible = visible_lengths(&ts, &request_batches(&ts, &vec![None::<u32>; ts.len()], 0), delta_tau);
        Self { items, ts, visible }
    }

    /// Returns the first `events` events.
    #[must_use]
    pub fn prefix(mut self, events: usize) -> Self {
        self.items.truncate(events);
        self.ts.truncate(events);
        self.visible.truncate(events);
        self
    }

    /// Returns the last `events` events, which the model reads.
    #[must_use]
    pub fn newest(&self, events: usize) -> Self {
        let from = self.items.len().saturating_sub(events);
        Self {
            items: self.items[from..].to_vec(),
            ts: self.ts[from..].to_vec(),
            visible: self.visible[from..].iter().map(|v| v.saturating_sub(from as u32)).collect(),
        }
    }

    /// True if no event is visible.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns the distinct items, sorted.
    pub fn seen(&self) -> Vec<ItemIndex> {
        let mut seen = self.items.clone();
        seen.sort_unstable();
        seen.dedup();
        seen
    }
}

/// Histories of table `sequences`, by user.
#[derive(Debug)]
pub struct Stored<'a> {
    sequences: &'a SequencesTable,
    users: HashMap<&'a str, u32>,
}

impl<'a> Stored<'a> {
    /// Indexes the users of `sequences`.
    pub fn new(sequences: &'a SequencesTable) -> Self {
        let users = sequences.users.iter().map(String::as_str).zip(0..).collect();
        Self { sequences, users }
    }

    /// Returns the whole history of a user; `None` if the table does not contain the user. Each event is owned by exactly one
    /// row, so the owned events of all rows form the history, even if the newest row omits events.
    pub fn history(&self, user: &str) -> Option<VisibleHistory> {
        let sequences = self.sequences;
        let user = *self.users.get(user)?;
        let first = sequences.user.partition_point(|&u| u < user);
        let end = sequences.user.partition_point(|&u| u <= user);
        let mut history = VisibleHistory::default();
        for row in first..end {
            let (start, owned) = (sequences.row(row).start, sequences.owned(row));
            history.items.extend_from_slice(&sequences.items[owned.clone()]);
            history.ts.extend_from_slice(&sequences.ts[owned.clone()]);
            // `visible` is counted inside the row; here it is counted in the whole history.
            let visible = |&v: &u32| match v {
                0 => 0,
                v => sequences.places[start + v as usize - 1] + 1,
            };
            history.visible.extend(sequences.visible[owned].iter().map(visible));
        }
        Some(history)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::history::Role;

    use super::*;
    use crate::data::ids;

    proptest! {
        /// A request at the time of an event sees the events visible to that event as a target.
        #[test]
        fn a_request_sees_what_the_mask_shows(
            mut ts in prop::collection::vec(-50i64..50, 1..40),
            margin in 0i64..30,
        ) {
            ts.sort_unstable();
            let unlogged = request_batches(&ts, &vec![None::<u32>; ts.len()], 0);
            let seen = |delta_tau| -> Vec<u32> {
                ts.iter().map(|&at| visible_at(&ts, at, delta_tau) as u32).collect()
            };
            let margin = DeltaTau::Margin(margin);
            prop_assert_eq!(seen(margin), visible_lengths(&ts, &unlogged, margin));
            ts.dedup();
            let unlogged = request_batches(&ts, &vec![None::<u32>; ts.len()], 0);
            let off: Vec<u32> = ts.iter().map(|&at| visible_at(&ts, at, DeltaTau::Off) as u32).collect();
            prop_assert_eq!(off, visible_lengths(&ts, &unlogged, DeltaTau::Off));
        }
    }

    #[test]
    fn the_property_says_off_or_milliseconds() {
        assert_eq!(delta_tau("off"), Some(DeltaTau::Off));
        assert_eq!(delta_tau("900000"), Some(DeltaTau::Margin(900_000)));
        assert_eq!(delta_tau(""), None);
    }

    #[test]
    fn a_stored_history_is_what_the_rows_own() {
        // Row 0 owns events 0 to 3; row 1 shows events 1 and 3 and owns 4 and 5.
        let sequences = SequencesTable {
            offsets: vec![0, 4, 8, 9],
            items: ids(&[10, 11, 12, 13, 11, 13, 14, 15, 20]),
            visible: vec![0, 1, 2, 3, 0, 1, 1, 2, 0],
            roles: vec![Role::Pretrain; 9],
            places: vec![0, 1, 2, 3, 1, 3, 4, 5, 0],
            target_from: vec![0, 2, 0],
            leaves_out: vec![false, true, false],
            user: vec![0, 0, 1],
            users: vec!["u".into(), "v".into()],
            ts: vec![0, 1, 2, 3, 1, 3, 4, 5, 9],
            ..SequencesTable::default()
        };
        let stored = Stored::new(&sequences);
        let history = stored.history("u").unwrap();
        assert_eq!(history.items, [10, 11, 12, 13, 14, 15]);
        assert_eq!(history.ts, [0, 1, 2, 3, 4, 5]);
        assert_eq!(history.visible, [0, 1, 2, 3, 2, 4]);
        assert_eq!(history.newest(3).visible, [0, 0, 1]);
        assert_eq!(history.prefix(2).items, [10, 11]);
        assert_eq!(stored.history("v").unwrap().items, [20]);
        assert_eq!(stored.history("w"), None);
    }
}
