//! The only room that knows storage: the root, its Delta tables, commits to them, publications, and files that are there as a whole
//! or not at all.

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

pub use error::TableError;
pub use root::Root;
pub use snapshot::{
    CONTENT_HASH, ENTRY_HASH, EntryState, REST_OF, Shard, Snapshot, entry_hash, hash_text, misfit,
    shard_batches,
};
