//! Random generators as functions of the run's seed and their purpose.
//!
//! No generator carries state between uses: each use seeds its own from the run's seed, a purpose and a counter such as the epoch
//! or step. A resumed run therefore draws the numbers of an uninterrupted one, in any order of execution.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use schemas::hash::{hash64, mix64};

/// Returns a generator for `purpose` (a name unique to its use) at `counter`.
pub fn generator(seed: u64, purpose: &str, counter: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(derived(seed, purpose, counter))
}

/// Returns a seed for `purpose` at `counter`.
pub fn derived(seed: u64, purpose: &str, counter: u64) -> u64 {
    mix64(mix64(seed, hash64(purpose.as_bytes())), counter)
}
