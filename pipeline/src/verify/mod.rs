//! `inspect --verify`: proves what the tables claim, or names the first row that breaks a claim.
//!
//! | table | proven |
//! |---|---|
//! | all | the bytes of each shard and the actions of each log entry are those that were written, by the hashes in the log (`bytes.rs`) |
//! | all of the contract | columns and their types, required columns filled, as many rows as the log counts |
//! | `events` | `event_date` is the UTC date of `ts`; `event_id` is unique within it and within the days (`events.dedup_days`) that the table was written under, but for messages that were sent again later than that |
//! | `items` | indexes are dense from 1, ids unique |
//! | `sequences`, `refresh` | each row by itself (`row.rs`), and every list recomputed from `events` (`log.rs`, `history.rs`) |
//! | `instructions` | each row by itself (`instructions.rs`), and all rows recomputed from `events` (`counted.rs`) |
//! | `sft/<condition>` | each example by itself and the catalogue (`example.rs`), every example once more from `events`, and that none is a pre-training target of `sequences` (`examples.rs`) |
//! | `dead_letters` | reasons are of the list, (`source`, `position`, key, bytes) is unique |
//!
//! The recomputation of histories shares only the pure functions of [`schemas::history`] with the builder: no sort, no
//! cutting into windows. Tables are verified by the settings in their properties, whatever the present configuration is.
//! A claim that cannot be proven (for example, because a version that a table was built from is gone) is not a success.
//!
//! **Memory.** `events`: the ids of one date and of `events.dedup_days` dates before it, some 80 bytes each. `items`: the
//! catalogue. `dead_letters`: 24 bytes a row. Histories: the users are divided into slices of about [`EVENTS_HELD_MAX`]
//! events (some 100 bytes each), and the tables are read once for each slice; a single user with more events is held whole. With a k-core (`sequences.min_user_events`,
//! `sequences.min_item_events`), 4 bytes more for each event of the log.

mod bytes;
mod carried;
mod counted;
mod dead_letters;
mod events;
mod example;
mod examples;
mod history;
mod instructions;
mod items;
mod log;
mod print;
mod properties;
mod reader;
mod row;
mod sequences;
mod violation;

use schemas::config::Config;
use schemas::tables::{DEAD_LETTERS, EVENTS, INSTRUCTIONS, ITEMS, REFRESH, SEQUENCES, is_sft};
use serde::Serialize;
use store::boxed::Boxed;
use store::{Root, Snapshot};

use crate::inspect::{InspectError, known_table};

use violation::Stop;
pub use violation::Violation;

/// Events held in memory at a time while histories are recomputed.
pub const EVENTS_HELD_MAX: u64 = 2_000_000;

/// The result of a verification.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verification {
    /// The tables in the order in which they were verified.
    pub tables: Vec<TableProof>,
    /// The first claim that does not hold; nothing after it was verified.
    pub violation: Option<Violation>,
}

/// The result for one table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TableProof {
    /// The table.
    pub table: String,
    /// Its version.
    pub version: u64,
    /// The claims that hold.
    pub checks: Vec<Check>,
    /// The claims that could not be proven.
    pub skipped: Vec<Skipped>,
    /// Claims that other tables make and this one does not.
    pub not_claimed: Vec<Skipped>,
}

/// A claim that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The claim.
    pub claim: String,
    /// Number of rows, positions, users or events that were checked.
    pub checked: u64,
    /// The unit of `checked`.
    pub unit: String,
}

/// A claim that could not be proven, or is not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The claim.
    pub claim: String,
    /// Why not.
    pub reason: String,
}

impl TableProof {
    fn holds(&mut self, claim: &str, checked: u64, unit: &str) {
        self.checks.push(Check { claim: claim.into(), checked, unit: unit.into() });
    }

    fn no_claim(&mut self, claim: &str, reason: impl Into<String>) {
        self.not_claimed.push(Skipped { claim: claim.into(), reason: reason.into() });
    }

    fn skip(&mut self, claim: &str, reason: impl Into<String>) {
        self.skipped.push(Skipped { claim: claim.into(), reason: reason.into() });
    }
}

impl Verification {
    /// Why this is not a success: the violation, or the claims that could not be proven. `None` if all claims hold.
    pub fn doubt(&self) -> Option<String> {
        if let Some(violation) = &self.violation {
            return Some(violation.to_string());
        }
        let unproven: Vec<(&str, &Skipped)> = self
            .tables
            .iter()
            .flat_map(|proof| proof.skipped.iter().map(|skipped| (proof.table.as_str(), skipped)))
            .collect();
        let (table, Skipped { claim, reason }) = unproven.first()?;
        let more = match unproven.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} claims more)"),
        };
        Some(format!("could not prove of table `{table}` that {claim}: {reason}{more}"))
    }
}

/// Verifies one table, or all of them; stops at the first violation.
///
/// # Errors
///
/// [`InspectError`] if a table cannot be read. A violation is not an error, but part of the [`Verification`].
pub async fn verify(config: &Config, root: &Root, table: Option<&str>) -> Result<Verification, InspectError> {
    verify_within(config, root, table, EVENTS_HELD_MAX).await
}

/// [`verify`] with another bound on the events that are held at a time.
///
/// # Errors
///
/// Those of [`verify`].
pub fn verify_within<'a>(
    config: &'a Config,
    root: &'a Root,
    table: Option<&'a str>,
    events_held_max: u64,
) -> Boxed<'a, Result<Verification, InspectError>> {
    Box::pin(verify_all(config, root, table, events_held_max))
}

async fn verify_all(
    config: &Config,
    root: &Root,
    table: Option<&str>,
    events_held_max: u64,
) -> Result<Verification, InspectError> {
    let mut names = match table {
        Some(name) => vec![known_table(root, name)?],
        None => root.tables()?,
    };
    if names.is_empty() {
        return Err(InspectError::NoTables { root: root.path().display().to_string() });
    }
    // Verify source tables first, so that the first violation is near its cause.
    names.sort_by_key(|name| [EVENTS, ITEMS].iter().position(|first| first == name).unwrap_or(2));
    let mut verification = Verification { tables: Vec::new(), violation: None };
    for name in names {
        let snapshot = root.snapshot(&name).await?;
        let mut proof = TableProof {
            table: name.clone(),
            version: snapshot.as_ref().map_or(0, Snapshot::version),
            checks: Vec::new(),
            skipped: Vec::new(),
            not_claimed: Vec::new(),
        };
        let Some(snapshot) = snapshot else {
            proof.skip("all of it", "its log has no entry: its first commit was cut off, or the log is lost");
            verification.tables.push(proof);
            continue;
        };
        let result = match bytes::verify(&snapshot, &mut proof).await {
            Ok(()) => rows_of(config, root, &snapshot, events_held_max, &mut proof).await,
            damaged => damaged,
        };
        verification.tables.push(proof);
        match result {
            Ok(()) => {}
            Err(Stop::Failed(error)) => return Err(error),
            Err(Stop::Violated(violation)) => {
                verification.violation = Some(*violation);
                break;
            }
        }
    }
    Ok(verification)
}

/// Verifies the claims on the table's rows.
async fn rows_of(
    config: &Config,
    root: &Root,
    snapshot: &Snapshot,
    events_held_max: u64,
    proof: &mut TableProof,
) -> Result<(), Stop> {
    match snapshot.name() {
        EVENTS => events::verify(config, snapshot, proof).await,
        ITEMS => items::verify(snapshot, proof).await,
        DEAD_LETTERS => dead_letters::verify(snapshot, proof).await,
        SEQUENCES | REFRESH => sequences::verify(config, root, snapshot, events_held_max, proof).await,
        INSTRUCTIONS => instructions::verify(config, root, snapshot, events_held_max, proof).await,
        name if is_sft(name) => examples::verify(config, root, snapshot, events_held_max, proof).await,
        _ => {
            proof.no_claim("its rows", "no claims about this table are known");
            Ok(())
        }
    }
}
