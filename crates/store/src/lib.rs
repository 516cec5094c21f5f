//! The storage layer: Delta tables, commits, publications, leases and whole files under one root directory.
//!
//! | file | holds |
//! |---|---|
//! | `root.rs` | the root directory; opens tables at their newest or at a pinned version |
//! | `snapshot/` | one version of one table: shards, writers' offsets, later appends; checks on tables of other engines |
//! | `commit/` | uncommitted shards, commits, conflicts, and recovery from a lost answer of the store |
//! | `publication.rs` | the served model, and every publication before it |
//! | `lease.rs` | one run of a job at a time |
//! | `files.rs` | files that appear as a whole or not at all |
//! | `sealed.rs` | JSON records that carry their own hash |
//! | `clean.rs`, `vacuum/` | deletion of log entries and files that no retained version or publication needs |
//! | `failpoint.rs` | points where a test kills a program |

// Prints go through `terminal::shown`.
#[macro_use(eprintln)]
extern crate terminal;

pub mod boxed;
pub mod clean;
pub mod commit;
mod directories;
mod encode;
mod error;
pub mod failpoint;
pub mod files;
pub mod lease;
pub mod publication;
mod root;
pub mod sealed;
mod snapshot;
pub mod vacuum;

pub use error::TableError;
pub use root::Root;
pub use snapshot::{
    CONTENT_HASH, ENTRY_HASH, EntryState, REST_OF, Shard, Snapshot, entry_hash, hash_text, misfit,
    shard_batches,
};
