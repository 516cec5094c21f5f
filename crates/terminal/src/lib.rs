//! What the three programs share at the terminal: arguments, exit codes, progress, interruption, and text from data that cannot
//! steer the terminal.

// First: its `eprintln!` is that of all the others.
#[macro_use]
pub mod shown;

mod args;
mod exit;
mod interrupt;
mod output;
mod progress;
pub mod scratch;

pub use args::CommonArgs;
pub use exit::{EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_VIOLATION, Violated, report, with_causes};
pub use interrupt::Interrupt;
pub use output::{LogOutput, print_error, print_json};
pub use progress::Progress;
