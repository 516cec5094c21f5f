//! Random numbers that are functions of the run's seed and of what they are for.
//!
//! No generator is carried along: each use seeds its own from the run's seed, a purpose and a counter such as
//! the epoch or step. So a resumed run draws what an uninterrupted one would have drawn, in whatever order
//! things happen.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use schemas::hash::{hash64, mix64};

/// A generator for `purpose` (a name no other use has) at `counter`.
pub fn generator(seed: u64, purpose: &str, counter: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(derived(seed, purpose, counter))
}

/// A seed for `purpose` at `counter`.
pub fn derived(seed: u64, purpose: &str, counter: u64) -> u64 {
    mix64(mix64(seed, hash64(purpose.as_bytes())), counter)
}
