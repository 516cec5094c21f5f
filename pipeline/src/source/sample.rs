//! Reads the first records of a file, as a whole run would read them.

use super::counts::RecordCounts;
use super::files::{ByteCount, InputFile, ReadOptions};
use super::formats::{Carry, SeenFields, Source};
use super::record::Raw;
use super::walk::Visit;
use crate::records::{Exploding, Rejection, Wanted};

/// Where reading stops, at the end of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SampleLimits {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// The first records of a file.
pub(crate) struct Sample {
    pub(crate) counts: RecordCounts,
    /// The first rejected records: position, reason, and the record if it is text or can be read again.
    pub(crate) rejected: Vec<(u64, Rejection, String)>,
    /// Whether these are all records of the file.
    pub(crate) is_whole: bool,
}

/// Rejected records that are kept.
const REJECTED_MAX: usize = 100;

/// Shows the first records of `file` to `visit`.
pub(crate) fn sample<V: Visit>(
    file: &InputFile,
    wanted: &[Wanted],
    exploding: Option<&Exploding>,
    reading: &ReadOptions,
    limits: SampleLimits,
    visit: &mut V,
) -> Result<Sample, V::Error> {
    let mut source = Source::open(file, wanted, reading, &ByteCount::default())?;
    let mut sample = Sample { counts: RecordCounts::default(), rejected: Vec::new(), is_whole: true };
    let (mut carry, mut seen) = (Carry::default(), SeenFields::default());
    let (mut bytes, mut records) = (0, 0);
    while let Some(block) = source.next()? {
        let block = carry.join(block);
        let walked = block.walk(exploding, visit)?;
        carry.keep(&block, &walked);
        let mut again = Vec::new();
        for rejected in walked.counted.rejected {
            if sample.rejected.len() == REJECTED_MAX {
                break;
            }
            let raw = match rejected.raw {
                Raw::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Raw::Again => {
                    again.push((sample.rejected.len(), records + rejected.at.record));
                    String::new()
                }
            };
            sample.rejected.push((records + rejected.at.record, rejected.rejection, raw));
        }
        if let Some(whole) = &walked.whole {
            for (at, row) in again {
                whole.read::<V::Error>(&[row], |json| {
                    sample.rejected[at].2 = String::from_utf8_lossy(&json).into_owned();
                    Ok(())
                })?;
            }
        }
        sample.counts.add(walked.counted.counts);
        records += walked.counted.records;
        bytes += block.bytes() as u64;
        seen.add(walked.seen);
        if records >= limits.records || bytes >= limits.bytes {
            sample.is_whole = false;
            break;
        }
    }
    // Whether an absent field is missing from the whole file shows here too.
    seen.check(file, wanted, sample.is_whole)?;
    Ok(sample)
}
