//! A verification as text.

use std::fmt;

use super::{TableProof, Verification};

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for proof in &self.tables {
            proof.fmt(f)?;
        }
        let claims: usize = self.tables.iter().map(|proof| proof.checks.len()).sum();
        let skipped: usize = self.tables.iter().map(|proof| proof.skipped.len()).sum();
        let outcome = match (&self.violation, skipped) {
            (Some(_), _) => "a violation was found",
            (None, 0) => "no violation",
            (None, _) => "not everything could be proven",
        };
        write!(f, "{outcome}: {claims} claims hold, {skipped} could not be proven")
    }
}

impl fmt::Display for TableProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  version {}", self.table, self.version)?;
        for check in &self.checks {
            writeln!(f, "  holds    {:>12} {:<10} {}", check.checked, check.unit, check.claim)?;
        }
        for skipped in &self.skipped {
            writeln!(f, "  UNPROVEN {}: {}", skipped.claim, skipped.reason)?;
        }
        for note in &self.not_claimed {
            writeln!(f, "  no claim {}: {}", note.claim, note.reason)?;
        }
        Ok(())
    }
}
