//! Topics: reading them into tables, and sending to them.
//!
//! | | |
//! |---|---|
//! | [`consume`] | a topic's messages → `events`, `dead_letters`, exactly once |
//! | [`decode`] | a message's bytes → the fields of a record: JSON, Avro, Protobuf, a schema registry |
//! | [`producer`] | messages → a topic, each once |
//! | [`replay`] | rejected records → a topic |
//! | [`simulated`] | a simulated log → a topic |

pub mod consume;
pub(crate) mod decode;
pub mod producer;
pub mod replay;
pub mod simulated;

pub use decode::DecodeError;
