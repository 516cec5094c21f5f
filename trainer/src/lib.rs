//! Training, evaluation, retrieval and export of models, from tables to recommended lists.
//!
//! ```text
//! data ─► batch ─► models ─► objectives ─┐
//!              └─► serve (Recommender) ──┴─► kinds (TrainedModel, Learner) ─► checkpoint ─► judge ─► records ─► learn
//!                                                                                      └─► retrieve, export └─► compare
//! ```

// Output goes through `terminal::shown`.
#[macro_use(eprintln)]
extern crate terminal;

pub mod batch;
pub mod bench;
pub mod checkpoint;
pub mod compare;
pub mod data;
pub mod device;
pub mod export;
pub mod judge;
pub mod kinds;
pub mod learn;
pub mod models;
pub mod objectives;
pub mod random;
pub mod records;
pub mod retrieve;
pub mod serve;

/// Reserves all threads for this crate's own operations; call it first in `main`.
///
/// Candle has its own pool, whose idle workers spin; two pools on the same cores slow each other down. The operations left to
/// Candle are too small to parallelize.
///
/// # Safety
///
/// No other thread may be running, because this sets an environment variable.
pub unsafe fn init_threads() {
    // SAFETY: the caller guarantees that no other thread runs.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
}
