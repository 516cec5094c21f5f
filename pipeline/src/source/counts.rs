//! Counts of records by outcome.

use serde::Serialize;

/// Records of a file or of all files, by outcome. Always
/// `read = accepted + duplicates + dead_letters + forgotten`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RecordCounts {
    /// Records in the file; a CSV header and empty lines do not count.
    pub read: u64,
    /// Events stored by this run, or different items in the catalogue.
    pub accepted: u64,
    /// Events that were stored before or occur earlier in the files, or repeated items of the catalogue.
    pub duplicates: u64,
    /// Rejected records, whether this run or an earlier one stored them.
    pub dead_letters: u64,
    /// Records of users who were forgotten (`pipeline forget`): not stored.
    pub forgotten: u64,
}

impl RecordCounts {
    pub(crate) fn add(&mut self, other: RecordCounts) {
        self.read += other.read;
        self.accepted += other.accepted;
        self.duplicates += other.duplicates;
        self.dead_letters += other.dead_letters;
        self.forgotten += other.forgotten;
    }

    /// Whether every record that was read has an outcome.
    pub(crate) fn is_complete(&self) -> bool {
        self.read == self.accepted + self.duplicates + self.dead_letters + self.forgotten
    }
}
