//! Walks a block record by record, whatever its format. Each record is accepted, a duplicate, a dead letter or forgotten, and
//! counted as one of the four; of a record that holds several events, each element is. Memory: the block that is walked, and the
//! beginning of a record that ends in the next block.

use std::ops::Range;

use schemas::tables::Reason;

use super::counts::RecordCounts;
use super::error::SourceError;
use super::record::{Accepted, Raw, Records, Step};
use crate::privacy::UserColumn;
use crate::records::{Exploding, Fields, OrdinaryRows, Rejection};

/// Takes the records of any format.
pub(crate) trait Visit {
    /// Errors that stop the walk.
    type Error: From<SourceError>;

    /// Accepts or rejects a record or an element of one.
    fn record(&mut self, record: &impl Fields, at: At) -> Result<Result<Accepted, Rejection>, Self::Error>;

    /// The rows of a block of columns, if the visitor takes ordinary ones without a look at each.
    fn ordinary(&self, _records: &impl Records) -> Option<OrdinaryRows> {
        None
    }

    /// Accepts ordinary rows, the first of which stands at `at`.
    fn rows(&mut self, _from: &OrdinaryRows, _rows: Range<usize>, _at: At) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Whether the user of a rejected record cannot be read.
    fn user_unreadable(&self, _record: &impl Fields) -> bool {
        false
    }

    /// Whether a record whose user cannot be read names a forgotten user.
    fn is_forgotten(&self, _column: UserColumn, _raw: &[u8]) -> bool {
        false
    }
}

/// Where a record or an element of one stands in its block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At {
    /// Records before it.
    pub(crate) record: u64,
    /// Elements before it in its record, where records hold several.
    pub(crate) element: Option<u32>,
    /// Elements before it in the block; records, where they are not taken apart.
    pub(crate) place: u64,
}

/// A rejected record, or a rejected element of one.
pub(crate) struct Rejected {
    pub(crate) at: At,
    pub(crate) raw: Raw,
    pub(crate) rejection: Rejection,
    /// Whether its user cannot be read.
    pub(crate) user_unreadable: bool,
}

/// The counts and the rejected records of a block.
#[derive(Default)]
pub(crate) struct Counted {
    /// Records, or where they hold several events, elements and the records that could not be taken apart.
    pub(crate) counts: RecordCounts,
    /// Records as the file has them.
    pub(crate) records: u64,
    pub(crate) rejected: Vec<Rejected>,
    /// Bytes of the block that were read.
    pub(super) done: usize,
}

/// Shows the records of a block, taken apart by `exploding` if there is one, to `visit`, and counts what came of them.
pub(super) fn walk<R: Records, V: Visit>(
    records: &mut R,
    exploding: Option<&Exploding>,
    visit: &mut V,
) -> Result<Counted, V::Error> {
    if exploding.is_none()
        && let Some(ordinary) = visit.ordinary(records)
    {
        return walk_columns(records, &ordinary, visit);
    }
    let mut counted = Counted::default();
    loop {
        match (records.advance(), exploding) {
            (Step::End, _) => break,
            (Step::Rejected(rejection), _) => {
                let outcome = Outcome::Rejected { rejection, user_unreadable: true };
                counted.add(records, None, outcome, visit);
            }
            (Step::Record, None) => {
                let outcome = outcome(records, counted.at(None), visit)?;
                counted.add(records, None, outcome, visit);
            }
            (Step::Record, Some(exploding)) => explode(records, exploding, &mut counted, visit)?,
        }
        counted.records += 1;
    }
    counted.done = records.done();
    Ok(counted)
}

/// Shows the ordinary rows of a block of columns to `visit` run by run, and each of the others by itself.
fn walk_columns<R: Records, V: Visit>(
    records: &mut R,
    ordinary: &OrdinaryRows,
    visit: &mut V,
) -> Result<Counted, V::Error> {
    let mut counted = Counted::default();
    for run in ordinary.runs() {
        visit.rows(ordinary, run.clone(), counted.at(None))?;
        for _ in run.clone() {
            records.advance();
        }
        let accepted = run.len() as u64;
        counted.counts.accepted += accepted;
        counted.counts.read += accepted;
        counted.records += accepted;
        if records.advance() == Step::Record {
            let outcome = outcome(records, counted.at(None), visit)?;
            counted.add(records, None, outcome, visit);
            counted.records += 1;
        }
    }
    counted.done = records.done();
    Ok(counted)
}

/// Shows the elements of the current record to `visit`.
fn explode<R: Records, V: Visit>(
    records: &mut R,
    exploding: &Exploding,
    counted: &mut Counted,
    visit: &mut V,
) -> Result<(), V::Error> {
    // What comes of the elements is counted after the last: until then they borrow the record.
    let mut outcomes = Vec::new();
    match exploding.elements(&*records) {
        Ok(elements) => {
            for number in 0..elements.len() {
                let at = counted.at(Some(number));
                let at = At { place: at.place + u64::from(number), ..at };
                let outcome = match elements.get(number as usize) {
                    Ok(element) => outcome(&element, at, visit)?,
                    Err(rejection) => {
                        Outcome::Rejected { rejection, user_unreadable: visit.user_unreadable(&*records) }
                    }
                };
                outcomes.push((Some(number), outcome));
            }
        }
        Err(rejection) => {
            let user_unreadable = visit.user_unreadable(&*records);
            outcomes.push((None, Outcome::Rejected { rejection, user_unreadable }));
        }
    }
    for (element, outcome) in outcomes {
        counted.add(records, element, outcome, visit);
    }
    Ok(())
}

/// What came of a record or an element.
enum Outcome {
    Accepted(Accepted),
    Forgotten,
    Rejected { rejection: Rejection, user_unreadable: bool },
}

fn outcome<V: Visit>(record: &impl Fields, at: At, visit: &mut V) -> Result<Outcome, V::Error> {
    Ok(match visit.record(record, at)? {
        Ok(accepted) => Outcome::Accepted(accepted),
        Err(Rejection { reason: Reason::Forgotten, .. }) => Outcome::Forgotten,
        Err(rejection) => {
            let user_unreadable = visit.user_unreadable(record);
            Outcome::Rejected { rejection, user_unreadable }
        }
    })
}

impl Counted {
    /// Where the next record, or an element of it, stands.
    fn at(&self, element: Option<u32>) -> At {
        At { record: self.records, element, place: self.counts.read }
    }

    /// Counts the outcome of the current record or of one of its elements.
    fn add(
        &mut self,
        records: &mut impl Records,
        element: Option<u32>,
        outcome: Outcome,
        visit: &impl Visit,
    ) {
        let counts = &mut self.counts;
        match outcome {
            Outcome::Accepted(Accepted::New) => counts.accepted += 1,
            Outcome::Accepted(Accepted::Duplicate) => counts.duplicates += 1,
            Outcome::Forgotten => counts.forgotten += 1,
            Outcome::Rejected { rejection, user_unreadable } => {
                let column = records.user_column();
                match records.raw() {
                    Raw::Bytes(bytes) if user_unreadable && visit.is_forgotten(column, &bytes) => {
                        counts.forgotten += 1;
                    }
                    raw => {
                        counts.dead_letters += 1;
                        let at = At { record: self.records, element, place: counts.read };
                        self.rejected.push(Rejected { at, raw, rejection, user_unreadable });
                    }
                }
            }
        }
        counts.read += 1;
    }
}
