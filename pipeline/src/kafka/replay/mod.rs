//! Sends rejected records again, after the reason for their rejection is gone.

mod error;
mod replays;
mod report;
mod resend;
#[cfg(test)]
mod tests;

pub use error::ReplayError;
pub use report::{ReplayGroup, ReplayReport};
pub use resend::{Filter, ReplayRequest, replay};
