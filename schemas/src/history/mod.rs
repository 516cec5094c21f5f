//! The meaning of one user's history: the invariants that every part of the system shares, as pure functions.
//!
//! A history is a user's interactions in event-time order, as far as the filters of `[sequences]` keep them (`filters.rs`). It determines, in this order:
//!
//! ```text
//! times, request ids ──► sessions        session.rs   a gap longer than `session_gap` starts a new one
//!                   ├──► request batches request.rs   equal request ids, or runs within `batch_gap`
//!                   ├──► request intervals interval.rs  the gaps that suggest `Δτ`
//!                   ├──► visible lengths visible.rs   v_t: the prefix a target may see (Eq. 1)
//!                   ├──► roles           role.rs      pre-training, SFT, validation, test
//!                   └──► windows         window.rs    rows of at most `max_len`, each event owned once
//! ```
//!
//! These functions read no file, allocate little more than their result, and depend only on their arguments, so that the
//! pipeline, the trainer, `inspect --verify` and the tests call the same ones. Positions, ordinals and lengths count from zero;
//! times are epoch milliseconds.

mod filters;
mod interval;
mod request;
mod role;
mod session;
mod visible;
mod window;

pub use filters::{AtMostOnce, EventFilter, LogFilters};
pub use interval::request_intervals;
pub use request::{RequestBatches, request_batches};
pub use role::{MIN_EVENTS_LEAVE_ONE_OUT, Role, Split, first_held_out, held_out_roles, with_sft_share};
pub use session::session_ordinals;
pub use visible::{DeltaTau, visible_lengths};
pub use window::{Window, WindowError, windows};
