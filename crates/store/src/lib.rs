//! The only room that knows storage.
//!
//! | file | holds |
//! |---|---|
//! | `root.rs` | the directory of all tables and models; a table at its newest version, or at the one a run began with |
//! | `snapshot/` | one version of one table: its shards, writers' offsets, what was appended since; tables of other engines |
//! | `commit/` | shards that are not committed yet, commits, conflicts, and whether a lost answer was ours |
//! | `publication.rs` | which model is served, and every publication before |
//! | `lease.rs` | one run of a job at a time |
//! | `files.rs` | files that are there as a whole or not at all |
//! | `sealed.rs` | records in JSON that know their own damage |
//! | `clean.rs`, `vacuum/` | deleting old entries of logs, and files that no version needs, behind publications |
//! | `failpoint.rs` | points where a test kills a program |

// Prints go through `terminal::shown`.
#[macro_use(eprintln)]
extern crate terminal;

pub mod boxed;
pub mod clean;
pub mod commit;
mod directories;
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
