//! The Climber-Pilot model: training and evaluation.

pub mod checkpoint;
pub mod compare;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod pretrain;
pub mod random;
pub mod records;
pub mod vocabulary;

/// How long the allocator keeps freed memory before it gives it back to the system, in milliseconds.
///
/// Each step takes and frees the same memory, which the system would otherwise clear anew for every one of them.
const PURGE_DELAY_MS: std::ffi::c_long = 1000;

/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Prepares the process for training; call it first in `main`, where `mimalloc` is the global allocator.
///
/// All threads are for this crate's own operations: Candle has a pool of its own whose idle workers spin, and two
/// pools on the same cores slow each other down. What is left to Candle's operations is too small to share out.
///
/// # Safety
///
/// No other thread may be running yet: it sets an environment variable.
pub unsafe fn init_process() {
    // SAFETY: the caller's promise; the option is a number that the allocator reads when it frees memory.
    unsafe {
        std::env::set_var("CANDLE_NUM_THREADS", "1");
        libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_DELAY_MS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_has_the_documented_default() {
        // SAFETY: reads a number.
        assert_eq!(unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) }, 10);
    }
}
