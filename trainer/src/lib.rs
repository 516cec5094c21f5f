//! The Climber-Pilot model: training, evaluation, retrieval and export.

// What is printed goes through `schemas::shown`.
#[macro_use(eprintln)]
extern crate schemas;

pub mod batch;
pub mod checkpoint;
pub mod compare;
pub mod conditions;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod export;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod random;
pub mod records;
pub mod retrieve;
pub mod top_k;
pub mod training;
pub mod vocabulary;

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
