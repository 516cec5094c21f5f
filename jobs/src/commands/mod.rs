//! The command line, one command a file.

pub(crate) mod daily;
pub(crate) mod history;
pub(crate) mod refresh;
pub(crate) mod rollback;
pub(crate) mod status;

/// A model was made, and the gate refused it.
pub(crate) const EXIT_REFUSED: u8 = 4;
/// Days were left out, and the others are done.
pub(crate) const EXIT_SKIPPED: u8 = 5;
