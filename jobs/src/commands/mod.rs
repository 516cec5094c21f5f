//! The command line: one file per command.

pub(crate) mod daily;
pub(crate) mod history;
pub(crate) mod refresh;
pub(crate) mod rollback;
pub(crate) mod status;

/// Exit code: the gate refused the new model.
pub(crate) const EXIT_REFUSED: u8 = 4;
/// Exit code: some days were skipped; the others are done.
pub(crate) const EXIT_SKIPPED: u8 = 5;
