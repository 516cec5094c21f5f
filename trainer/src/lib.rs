//! Tables to models to lists: training, evaluation, retrieval and export.
//!
//! ```text
//! data ─► batch ─► models ─► objectives ─┐
//!              └─► serve (Recommender) ──┴─► kinds (TrainedModel, Learner) ─► checkpoint ─► judge ─► records ─► learn
//!                                                                                      └─► retrieve, export └─► compare
//! ```

// What is printed goes through `terminal::shown`.
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

/// Gives all threads to this crate's own operations; call it first in `main`.
///
/// Candle has a pool of its own whose idle workers spin, and two pools on the same cores slow each other
/// down. What is left to Candle's operations is too small to share out.
///
/// # Safety
///
/// No other thread may be running yet: it sets an environment variable.
pub unsafe fn init_threads() {
    // SAFETY: the caller's promise.
    unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
}
