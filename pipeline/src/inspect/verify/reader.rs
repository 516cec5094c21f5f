//! Reading a shard, with the claims that every table makes.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Schema};
use schemas::delta::{Shard, Snapshot, TableError};

use super::TableProof;
use super::violation::{Stop, Violation};

const COLUMNS: &str = "the columns have the contract's types";
const FILLED: &str = "required columns are filled";
const COUNTED: &str = "a shard has as many rows as the log counts";

/// Reads `columns` of a shard as `schema` has them; afterwards their types are certain.
pub(super) async fn read(
    snapshot: &Snapshot,
    shard: &Shard,
    schema: &Schema,
    columns: &[&str],
) -> Result<Vec<RecordBatch>, Stop> {
    let batches = match snapshot.read_shard(shard, columns).await {
        Err(TableError::Column { column, .. }) => {
            let violation = Violation::new(snapshot, COLUMNS, "absent", "there");
            return Err(violation.shard(shard).column(&column).into());
        }
        read => read?,
    };
    let mut rows = 0;
    for batch in &batches {
        for (name, column) in columns.iter().zip(batch.columns()) {
            let Ok(field) = schema.field_with_name(name) else { continue };
            if !same_type(field.data_type(), column.data_type()) {
                let violation = Violation::new(snapshot, COLUMNS, column.data_type(), field.data_type());
                return Err(violation.shard(shard).column(name).into());
            }
            if let Some(row) = first_null(column).filter(|_| !field.is_nullable()) {
                let violation = Violation::new(snapshot, FILLED, "null", "a value");
                return Err(violation.shard(shard).row(rows + row as u64).column(name).into());
            }
        }
        rows += batch.num_rows() as u64;
    }
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

fn same_type(one: &DataType, other: &DataType) -> bool {
    match (one, other) {
        // What the element is called differs between writers.
        (DataType::List(one), DataType::List(other)) => one.data_type() == other.data_type(),
        _ => one == other,
    }
}

/// The first row that is null, or whose list has a null in it.
fn first_null(column: &dyn Array) -> Option<usize> {
    if column.null_count() > 0 {
        return (0..column.len()).find(|&row| column.is_null(row));
    }
    let lists = column.as_list_opt::<i32>().filter(|lists| lists.values().null_count() > 0)?;
    (0..lists.len()).find(|&row| lists.value(row).null_count() > 0)
}
