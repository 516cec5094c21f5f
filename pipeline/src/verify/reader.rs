//! Reads a shard and verifies the claims that every table makes.

use arrow::array::RecordBatch;
use store::{Shard, Snapshot, TableError};

use super::TableProof;
use super::violation::{Stop, Violation};

const COLUMNS: &str = "the columns have the contract's types";
const FILLED: &str = "required columns are filled";
const COUNTED: &str = "a shard has as many rows as the log counts";

/// Reads `columns` of a shard; verifies their types, and that required columns have no nulls.
pub(super) async fn read(
    snapshot: &Snapshot,
    shard: &Shard,
    columns: &[&str],
) -> Result<Vec<RecordBatch>, Stop> {
    let batches = match snapshot.read_shard(shard, columns).await {
        Err(TableError::Column { column, .. }) => {
            let violation = Violation::new(snapshot, COLUMNS, "absent", "there");
            return Err(violation.shard(shard).column(&column).into());
        }
        Err(TableError::Type { column, found, expected, .. }) => {
            let violation = Violation::new(snapshot, COLUMNS, found, expected);
            return Err(violation.shard(shard).column(&column).into());
        }
        Err(TableError::Null { column, row, .. }) => {
            let violation = Violation::new(snapshot, FILLED, "null", "a value");
            return Err(violation.shard(shard).row(row).column(&column).into());
        }
        read => read?,
    };
    let rows: u64 = batches.iter().map(|batch| batch.num_rows() as u64).sum();
    match shard.rows {
        Some(counted) if counted != rows => {
            let rows = format!("{rows} rows");
            Err(Violation::new(snapshot, COUNTED, rows, format!("{counted} rows")).shard(shard).into())
        }
        _ => Ok(batches),
    }
}

/// The claims that [`read`] proves of all shards of a table.
pub(super) fn proven(snapshot: &Snapshot, rows: u64, proof: &mut TableProof) {
    let shards = snapshot.shards();
    proof.holds(COLUMNS, shards.len() as u64, "shards");
    proof.holds(FILLED, rows, "rows");
    let counted = shards.iter().filter(|shard| shard.rows.is_some()).count();
    proof.holds(COUNTED, counted as u64, "shards");
    if counted < shards.len() {
        proof.skip(COUNTED, format!("the log counts no rows of {} shards", shards.len() - counted));
    }
}
