//! Reads files into columns of events. Knows formats and records; knows no table.
//!
//! ```text
//!   paths ─▶ files ─▶ blocks ─▶ records ([`formats`]) ─▶ [`walk`] ─▶ columns, rejected records
//!                     └── in order again, whatever the threads ([`read`]) ──┘
//! ```
//!
//! Depends on [`crate::records`] (the definition of an event) and on [`crate::privacy`] (the user of a rejected record).
//! Memory: two blocks a thread and two more.

mod blocks;
mod counts;
mod error;
mod files;
mod formats;
#[cfg(all(unix, any(test, feature = "fuzzing")))]
pub(crate) mod fuzzing;
mod partition;
mod paths;
mod read;
mod record;
mod sample;
mod walk;

pub use counts::RecordCounts;
pub use error::SourceError;
pub(crate) use files::{ByteCount, InputFile, Packing, ReadOptions, Unpacking, open};
pub(crate) use formats::{Carry, SeenFields, Source, Walked, WholeRows, parquet_columns};
pub(crate) use paths::{check_stdin, one_file, resolve};
pub(crate) use read::{Delivered, LogReader};
pub(crate) use record::{Accepted, Raw};
pub(crate) use sample::{Sample, SampleLimits, sample};
pub(crate) use walk::{At, Rejected, Visit};
