//! A person's right to erasure, and the hashes by which forgotten users stay forgotten.
//!
//! | at the bottom, used by [`crate::records`] and all that reads records | on top |
//! |---|---|
//! | [`keys`]: the secret key; [`forgotten`]: the hashes; [`named`]: whom a rejected record names | [`mod@forget`]: the command; [`erase`]: tables and files without a user's rows; [`look_alikes`]: ids that look like the erased one |

mod erase;
mod error;
mod forget;
mod forgotten;
mod keys;
mod look_alikes;
mod named;
mod report;

pub use error::ForgetError;
pub use forget::{forget, sweep, sweep_models};
pub(crate) use forgotten::Forgotten;
pub(crate) use named::UserColumn;
pub use report::{ErasedFile, ErasedTable, ErasureReport};
