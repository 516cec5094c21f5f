//! Terminal interface shared by the three programs: arguments, exit codes, progress, interruption, and output in which data
//! cannot control the terminal.

// Declared first: the other modules use its `eprintln!`.
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
