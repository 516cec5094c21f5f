//! Operators that move events, where DataFusion's do not suit a build of histories.
//!
//! ```text
//!   stage 1, as many streams as threads          stage 2, one stream for each bucket
//!   scan ─▶ PassExec ─▶ Scatter ══▶ Buckets ══▶ BucketExec ─▶ BucketSortExec ─▶ PassExec …
//!                          (memory, then scratch files)
//! ```
//!
//! Stage 1 hashes rows into buckets, stage 2 works on each bucket by itself: a bucket is the unit of
//! parallelism, of memory and of a retry. `Scatter` and `BucketExec` are the two ends of a local shuffle. The
//! shuffle of a distributed engine can replace them: the operators before it need batches only, the operators after
//! it only the batches of one bucket.

mod hash_filter;
mod pass;
mod scan;
mod scatter;
mod scratch;
mod suspects;

pub(crate) use hash_filter::HashPredicate;
pub use pass::{Pass, PassExec, PassSpec};
pub(crate) use scan::RowsWith;
pub use scan::{Resources, SnapshotTable, balanced};
pub(crate) use scatter::{BucketExec, Buckets, Scatter};
pub(crate) use scatter::{bucket_field, bucket_schema, scattered_schema};
pub use scratch::ScratchError;
pub(crate) use suspects::{Found, PartitionBuffers, SuspectSet, Suspects, date_in, hash_in, suspect};
