//! Builds histories from the log: the events of each user in order, without duplicates, with the range that a model may see.
//! The sinks are [`crate::sequences`] and [`crate::sft`].
//!
//! ```text
//!  stage 1, one stream a thread
//!    events @ V ─▶ scan ─▶ Keys ─▶ Scatter ═▶ buckets (memory, then a scratch file)
//!                            └─▶ sources, items without an index, suspected duplicates
//!  between the stages
//!    items (one commit, if any is new) ─▶ Resolution ◀─ duplicates (only dates that have suspects are read again)
//!                                                    ◀─ k-core, if configured: pairs of the buckets, in rounds
//!  stage 2, one stream a bucket
//!    bucket ─▶ BucketSort ─▶ Histories ─▶ a sink
//! ```
//!
//! **Filters.** `Keys` takes out events by their action, value and time. A bucket's sort drops copies, then all but one event of a
//! user and item, and then what is outside the k-core (`survivors.rs`). Every reader of histories sees what is left.
//!
//! Two builds of the same versions under the same settings give equal histories, whatever the threads and the memory,
//! because the sort key is total (`keys.rs`) and nothing else decides an order.
//!
//! **Memory.** [`Resources`](crate::engine::Resources) divides a budget among the parts that grow: rows waiting in buckets,
//! the buckets being sorted, the suspected duplicates. The rest of the budget is for a row group in each reader and writer,
//! and for the catalogue's indexes (about 32 bytes an item). Rows that do not fit go to disk. Two things must fit: the
//! catalogue, and the longest single history (about 110 bytes an event).
//!
//! **A distributed engine** replaces `Scatter` and the buckets by its shuffle. It must add the state that the streams of the
//! scan share (`Learned`): codes for sources and new items, and the suspects.

mod codes;
mod columns;
mod compared;
mod counts;
mod duplicates;
mod error;
mod event;
mod event_columns;
mod fresh;
mod intervals;
mod items;
mod keys;
mod learned;
mod order;
mod pass;
mod properties;
mod resolve;
mod stages;
mod survivors;

pub use columns::HISTORY_SCHEMA;
pub(crate) use compared::Compared;
pub use counts::{Counts, FilterCounts, TargetCounts};
pub use error::BuildError;
pub(crate) use event_columns::scan_schema as events_scan_schema;
pub(crate) use fresh::Fresh;
pub use intervals::{INTERVALS_MIN, RequestIntervals};
pub(crate) use keys::Quality;
pub use pass::HistorySettings;
pub(crate) use pass::{History, Output, Sink};
pub(crate) use properties::{delta_tau_ms, described, measured, stored_intervals};
pub(crate) use stages::{Builder, Passed, ReadLog};
