//! Targets, and the history that each protocol shows before them.

use schemas::history::Role;

use super::Protocol;
use crate::data::{ItemIndex, SequencesTable};

/// An event to predict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Index of its row in [`SequencesTable`].
    pub row: usize,
    /// Its position inside the row.
    pub t: usize,
    /// Item of the event.
    pub item: ItemIndex,
    /// `v_t` (Eq. 1), counted inside the row.
    pub visible: usize,
    /// Whether the row omits events before the target.
    pub left_out: bool,
}

impl Target {
    /// Returns the number of events that `protocol` shows, from the start of the row; `None` if the protocol excludes the target.
    pub fn context(&self, protocol: Protocol) -> Option<usize> {
        match protocol {
            Protocol::Standard if self.left_out => None,
            Protocol::Standard => Some(self.t),
            Protocol::AsServed => Some(self.visible),
        }
    }

    /// True if the target counts in the means of `protocol`: its context there is not empty.
    pub fn takes_part(&self, protocol: Protocol) -> bool {
        self.context(protocol).is_some_and(|context| context > 0)
    }

    /// Returns the distinct items that `protocol` shows, including those before the row, sorted.
    pub fn seen(&self, sequences: &SequencesTable, protocol: Protocol) -> Vec<ItemIndex> {
        let Some(context) = self.context(protocol) else { return Vec::new() };
        let Some(last) = context.checked_sub(1) else { return Vec::new() };
        // The visible events are a prefix of the whole history, up to the last visible position of the row.
        let last = sequences.places[sequences.row(self.row).start + last] as usize;
        let mut seen: Vec<ItemIndex> = sequences.history(self.row, last + 1).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }
}

/// Choice of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetSplit {
    /// Events held out for validation.
    Validation,
    /// Events held out for testing.
    Test,
    /// Events that are new in `refresh`, before the model learns them.
    Prequential,
}

impl TargetSplit {
    /// Returns the name used in options and results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validation => "validation",
            Self::Test => "test",
            Self::Prequential => "prequential",
        }
    }
}

/// Returns all targets with `role`, in row order.
pub fn targets(sequences: &SequencesTable, role: Role) -> Vec<Target> {
    targets_at(sequences, |position| sequences.roles[position] == role)
}

/// Returns the events at owned positions for which `asked` returns true, in row order.
pub(super) fn targets_at(sequences: &SequencesTable, asked: impl Fn(usize) -> bool) -> Vec<Target> {
    (0..sequences.rows())
        .flat_map(|row| sequences.owned(row).map(move |position| (row, position)))
        .filter(|&(_, position)| asked(position))
        .map(|(row, position)| {
            let t = position - sequences.row(row).start;
            // A row that begins late also omits events: its target has less context than rows guarantee when nothing is hidden.
            let cut = (sequences.places[position] as usize).min(sequences.max_len / 2) > t;
            Target {
                row,
                t,
                item: sequences.items[position],
                visible: sequences.visible[position] as usize,
                left_out: sequences.leaves_out[row] || cut,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::ids;

    #[test]
    fn seen_is_every_visible_event_also_from_before_the_row() {
        // One user: row 0 owns events 0 to 3; row 1 shows events 1 and 3 and owns 4 and 5.
        let sequences = SequencesTable {
            offsets: vec![0, 4, 8],
            items: ids(&[10, 11, 12, 13, 11, 13, 14, 15]),
            visible: vec![0, 1, 2, 3, 0, 1, 1, 3],
            roles: [vec![Role::Pretrain; 4], vec![Role::Context; 2], vec![Role::Validation, Role::Test]]
                .concat(),
            places: vec![0, 1, 2, 3, 1, 3, 4, 5],
            target_from: vec![0, 2],
            leaves_out: vec![false, true],
            user: vec![0, 0],
            users: vec!["u".into()],
            ts: vec![0; 8],
            max_len: 8,
            ..SequencesTable::default()
        };
        let [validation, test] =
            [Role::Validation, Role::Test].map(|role| targets(&sequences, role).remove(0));
        assert_eq!(validation.seen(&sequences, Protocol::AsServed), [10, 11]);
        // The row omits event 2, but that event was visible to the target.
        assert_eq!(test.seen(&sequences, Protocol::AsServed), [10, 11, 12, 13, 14]);
        assert_eq!(test.context(Protocol::Standard), None);
    }
}
