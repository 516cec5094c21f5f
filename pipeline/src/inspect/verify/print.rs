use std::fmt;

use super::{TableProof, Verification};

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for proof in &self.tables {
            proof.fmt(f)?;
        }
        let claims: usize = self.tables.iter().map(|proof| proof.checks.len()).sum();
        let skipped: usize = self.tables.iter().map(|proof| proof.skipped.len()).sum();
        let outcome = if self.violation.is_some() { "a violation was found" } else { "no violation" };
        write!(f, "{outcome}: {claims} claims hold, {skipped} skipped")
    }
}

impl fmt::Display for TableProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  version {}", self.table, self.version)?;
        for check in &self.checks {
            writeln!(f, "  holds    {:>12} {:<10} {}", check.checked, check.unit, check.claim)?;
        }
        for skipped in &self.skipped {
            writeln!(f, "  skipped  {}: {}", skipped.claim, skipped.reason)?;
        }
        Ok(())
    }
}
