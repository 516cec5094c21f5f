//! The first claim that does not hold, with its position.

use std::fmt;

use schemas::config::ConfigError;
use serde::Serialize;
use store::{Shard, Snapshot, TableError};
use terminal::shown::Shown;

use crate::inspect::InspectError;
use crate::privacy::ForgetError;

/// A claim that does not hold: its position, the value found, and the expected one. Rows and positions count from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The claim.
    pub claim: String,
    /// The table.
    pub table: String,
    /// The shard's path inside the table, if one row or shard breaks the claim.
    pub shard: Option<String>,
    /// The row of the shard.
    pub row: Option<u64>,
    /// The user.
    pub user: Option<String>,
    /// The column, or the table property.
    pub column: Option<String>,
    /// The position in the row's list.
    pub position: Option<u64>,
    /// The value found.
    pub found: String,
    /// The expected value.
    pub expected: String,
}

impl Violation {
    pub(super) fn new(
        snapshot: &Snapshot,
        claim: &str,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Self {
        Self {
            claim: claim.into(),
            table: snapshot.name().into(),
            shard: None,
            row: None,
            user: None,
            column: None,
            position: None,
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    pub(super) fn shard(mut self, shard: &Shard) -> Self {
        self.shard = Some(shard.path.clone());
        self
    }

    pub(super) fn row(mut self, row: u64) -> Self {
        self.row = Some(row);
        self
    }

    pub(super) fn user(mut self, user: &str) -> Self {
        self.user = Some(user.into());
        self
    }

    pub(super) fn column(mut self, column: &str) -> Self {
        self.column = Some(column.into());
        self
    }

    pub(super) fn position(mut self, position: usize) -> Self {
        self.position = Some(position as u64);
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table `{}`", self.table)?;
        if let Some(shard) = &self.shard {
            write!(f, ", shard {}", Shown(shard))?;
        }
        if let Some(row) = self.row {
            write!(f, ", row {row}")?;
        }
        if let Some(user) = &self.user {
            write!(f, ", user `{}`", Shown(user))?;
        }
        if let Some(column) = &self.column {
            write!(f, ", column `{column}`")?;
        }
        if let Some(position) = self.position {
            write!(f, " at position {position}")?;
        }
        let Self { found, expected, claim, .. } = self;
        write!(f, ": is {}, should be {} ({claim})", Shown(found), Shown(expected))
    }
}

/// Why a verification ends early.
#[derive(Debug)]
pub(super) enum Stop {
    /// A claim does not hold.
    Violated(Box<Violation>),
    /// The verification itself failed.
    Failed(InspectError),
}

impl From<ForgetError> for Stop {
    fn from(error: ForgetError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violated(Box::new(violation))
    }
}

impl From<TableError> for Stop {
    fn from(error: TableError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<ConfigError> for Stop {
    fn from(error: ConfigError) -> Self {
        Self::Failed(error.into())
    }
}
