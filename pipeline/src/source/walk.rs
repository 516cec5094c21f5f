//! Walks a block record by record, whatever its format. Each record is accepted, a duplicate, a dead letter or forgotten, and
//! counted as one of the four. Memory: the block that is walked, and the beginning of a record that ends in the next block.

use schemas::tables::Reason;

use super::counts::RecordCounts;
use super::error::SourceError;
use super::record::{Accepted, Raw, Records, Step};
use crate::privacy::UserColumn;
use crate::records::Rejection;

/// Takes the records of any format.
pub(crate) trait Visit {
    /// Errors that stop the walk.
    type Error: From<SourceError>;

    /// Accepts or rejects a record; `at` is its number in the block.
    fn record(&mut self, record: &impl Records, at: u64) -> Result<Result<Accepted, Rejection>, Self::Error>;

    /// Whether the user of a rejected record cannot be read.
    fn user_unreadable(&self, _record: &impl Records) -> bool {
        false
    }

    /// Whether a record whose user cannot be read names a forgotten user.
    fn is_forgotten(&self, _column: UserColumn, _raw: &[u8]) -> bool {
        false
    }
}

/// A rejected record.
pub(crate) struct Rejected {
    /// Its place in the block.
    pub(crate) at: u64,
    pub(crate) raw: Raw,
    pub(crate) rejection: Rejection,
    /// Whether its user cannot be read.
    pub(crate) user_unreadable: bool,
}

/// The counts and the rejected records of a block.
#[derive(Default)]
pub(crate) struct Counted {
    pub(crate) counts: RecordCounts,
    pub(crate) rejected: Vec<Rejected>,
    /// Bytes of the block that were read.
    pub(super) done: usize,
}

/// Shows the records of a block to `visit`, and counts what came of them.
pub(super) fn walk<R: Records, V: Visit>(records: &mut R, visit: &mut V) -> Result<Counted, V::Error> {
    let mut counted = Counted::default();
    let counts = &mut counted.counts;
    loop {
        let (rejection, user_unreadable) = match records.advance() {
            Step::End => break,
            Step::Rejected(rejection) => (Some(rejection), true),
            Step::Record => match visit.record(records, counts.read)? {
                Ok(Accepted::New) => {
                    counts.accepted += 1;
                    (None, false)
                }
                Ok(Accepted::Duplicate) => {
                    counts.duplicates += 1;
                    (None, false)
                }
                Err(Rejection { reason: Reason::Forgotten, .. }) => {
                    counts.forgotten += 1;
                    (None, false)
                }
                Err(rejection) => (Some(rejection), visit.user_unreadable(records)),
            },
        };
        if let Some(rejection) = rejection {
            let column = records.user_column();
            match records.raw() {
                Raw::Bytes(bytes) if user_unreadable && visit.is_forgotten(column, &bytes) => {
                    counts.forgotten += 1
                }
                raw => {
                    counts.dead_letters += 1;
                    counted.rejected.push(Rejected { at: counts.read, raw, rejection, user_unreadable });
                }
            }
        }
        counts.read += 1;
    }
    counted.done = records.done();
    Ok(counted)
}
