//! One file a command: its arguments, and how its report is shown.

pub(crate) mod build_sequences;
pub(crate) mod ingest;
pub(crate) mod inspect;

use std::io::Write as _;

/// Writes one JSON object to stdout. A reader that has gone away is no error.
pub(crate) fn print_json(report: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string(report)?;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
