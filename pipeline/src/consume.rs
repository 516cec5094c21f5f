//! From the topic of interactions to the tables.

#[cfg_attr(not(test), expect(dead_code, reason = "messages are taken apart, and not yet polled"))]
mod decode;

pub use decode::DecodeError;
