//! Rejected records, once the reason for the rejection is gone: sending them again.

mod error;
mod replays;
mod report;
mod resend;
#[cfg(test)]
mod tests;

pub use error::ReplayError;
pub use report::{ReplayGroup, ReplayReport};
pub use resend::{Filter, ReplayRequest, replay};
