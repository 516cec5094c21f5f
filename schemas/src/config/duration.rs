//! Time spans as the configuration writes them: `15m`, `7d`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A span of time in milliseconds, written as a number and a unit: `250ms`, `30s`, `15m`, `12h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span {
    /// Length in milliseconds, never negative.
    pub ms: i64,
}

/// Largest unit first; a span prints in the largest unit that divides it.
const UNITS: [(&str, i64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl Span {
    /// Returns a span of `minutes`.
    pub const fn minutes(minutes: i64) -> Self {
        Self { ms: minutes * 60_000 }
    }

    /// Returns a span of `seconds`.
    pub const fn seconds(seconds: i64) -> Self {
        Self { ms: seconds * 1_000 }
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number = number.parse::<i64>().ok();
        let factor = UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, ms)| *ms);
        number
            .zip(factor)
            .and_then(|(number, factor)| number.checked_mul(factor))
            .map(|ms| Self { ms })
            .ok_or_else(|| format!("`{text}` is not a duration; write a number and a unit, such as 250ms, 30s, 15m, 12h or 7d"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, ms)| self.ms % ms == 0).filter(|_| self.ms > 0);
        match unit {
            Some((name, ms)) => write!(f, "{}{name}", self.ms / ms),
            None => write!(f, "0s"),
        }
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_and_print() {
        for (text, ms) in [("15m", 900_000), ("0s", 0), ("90s", 90_000), ("7d", 604_800_000), ("250ms", 250)]
        {
            let span = Span::try_from(text.to_owned()).unwrap();
            assert_eq!(span.ms, ms);
            assert_eq!(span.to_string(), text);
        }
        for wrong in ["", "15", "m", "-5m", "1.5h", "15 minutes", "99999999999999d"] {
            assert!(Span::try_from(wrong.to_owned()).unwrap_err().contains("15m"), "{wrong}");
        }
    }
}
