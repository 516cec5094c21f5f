//! Output streams: stderr for people and logs, stdout for JSON.

use std::io::Write as _;

use crate::shown;

/// Writes the text of [`eprintln`](crate::eprintln) to stderr; write errors are ignored.
pub fn print_error(text: std::fmt::Arguments<'_>) {
    let _ = std::io::stderr().write_all(shown::lines(&text.to_string()).as_bytes());
}

/// Stderr as a log's writer: like [`print_error`], but keeps the log's own colours and valid JSON.
#[derive(Debug, Clone, Copy)]
pub enum LogOutput {
    /// Lines for people, coloured or plain.
    Text,
    /// JSON objects.
    Json,
}

impl std::io::Write for LogOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let shown = match self {
            Self::Text => shown::coloured(&text),
            Self::Json => shown::json_lines(&text),
        };
        std::io::stderr().write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes one JSON object to stdout. A closed pipe is no error.
///
/// # Errors
///
/// `report` cannot be represented in JSON, or stdout cannot be written for another reason than a closed pipe.
pub fn print_json(report: &impl serde::Serialize) -> std::io::Result<()> {
    let mut text = Vec::new();
    shown::to_json(&mut text, report)?;
    text.push(b'\n');
    match std::io::stdout().write_all(&text) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}
