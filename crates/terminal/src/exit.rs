//! Exit codes, and the line that a program prints for an error.

use schemas::config::ConfigError;

/// Success.
pub const EXIT_DONE: u8 = 0;
/// Failure.
pub const EXIT_FAILED: u8 = 1;
/// Wrong usage or configuration.
pub const EXIT_USAGE: u8 = 2;
/// `inspect --verify` found a violation.
pub const EXIT_VIOLATION: u8 = 3;

/// A property of a table that `inspect --verify` found violated; exit code 3.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violated(pub String);

/// Formats an error and its causes in one line.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error) {
        // Skip a cause whose text a wrapper has already printed.
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Prints an error and its causes to stderr, and returns its exit code.
pub fn report(program: &str, error: &(dyn std::error::Error + 'static)) -> u8 {
    eprintln!("{program}: {}", with_causes(error));
    if causes(error).any(|cause| cause.is::<ConfigError>()) {
        EXIT_USAGE
    } else if causes(error).any(|cause| cause.is::<Violated>()) {
        EXIT_VIOLATION
    } else {
        EXIT_FAILED
    }
}
