//! The held-out targets, and what each protocol shows before them.

use schemas::history::Role;

use super::Protocol;
use crate::data::Sequences;

/// One held-out event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its row in [`Sequences`].
    pub row: usize,
    /// Its place inside that row.
    pub t: usize,
    /// Its item.
    pub item: u32,
    /// `v_t` inside the row.
    pub visible: usize,
    /// Whether the row leaves out events that came before the target.
    pub left_out: bool,
}

impl Target {
    /// The items of the row that `protocol` shows, from the first on; `None` where the target takes no part.
    pub fn context(&self, protocol: Protocol) -> Option<usize> {
        match protocol {
            Protocol::Standard if self.left_out => None,
            Protocol::Standard => Some(self.t),
            Protocol::AsServed => Some(self.visible),
        }
    }

    /// Every item that `protocol` shows, also from before the row: sorted, each once.
    pub fn seen(&self, sequences: &Sequences, protocol: Protocol) -> Vec<u32> {
        let Some(context) = self.context(protocol) else { return Vec::new() };
        let start = sequences.row(self.row).start;
        let mut seen = sequences.items[start..start + context].to_vec();
        // Whoever sees anything of the row sees everything before it: what is visible is a prefix, and a row
        // holds the most recent part of it.
        if context > 0 {
            seen.extend(sequences.items_before(self.row));
        }
        seen.sort_unstable();
        seen.dedup();
        seen
    }
}

/// All targets with `role`, in the order of the rows.
pub fn targets(sequences: &Sequences, role: Role) -> Vec<Target> {
    (0..sequences.rows())
        .flat_map(|row| sequences.owned(row).map(move |position| (row, position)))
        .filter(|&(_, position)| sequences.roles[position] == role)
        .map(|(row, position)| Target {
            row,
            t: position - sequences.row(row).start,
            item: sequences.items[position],
            visible: sequences.visible[position] as usize,
            left_out: sequences.leaves_out[row],
        })
        .collect()
}
