//! Verifies `dead_letters`: reasons are known codes, and each record occurs once. Memory: some 24 bytes per row.

use std::collections::HashSet;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use schemas::tables::{DEAD_LETTERS_SCHEMA, Reason};
use store::Snapshot;

use super::violation::{Stop, Violation};
use super::{TableProof, reader};
use crate::records::dead_letter_key;

const REASON: &str = "reason is a code of the list";
const UNIQUE: &str = "(source, position, bytes) is unique";

pub(super) async fn verify(snapshot: &Snapshot, proof: &mut TableProof) -> Result<(), Stop> {
    let columns: Vec<&str> = DEAD_LETTERS_SCHEMA.fields().iter().map(|field| field.name().as_str()).collect();
    let column = |name: &str| columns.iter().position(|&column| column == name).unwrap_or_default();
    let (source_column, position_column, reason_column) =
        (column("source"), column("position"), column("reason"));
    let (key_column, value_column) = (column("key"), column("value"));
    let mut records: HashSet<u128> = HashSet::new();
    for shard in snapshot.shards() {
        let mut row = 0;
        for batch in reader::read(snapshot, shard, &columns).await? {
            let sources = batch.column(source_column).as_string::<i32>().iter().flatten();
            let positions = batch.column(position_column).as_primitive::<Int64Type>().values();
            let reasons = batch.column(reason_column).as_string::<i32>().iter().flatten();
            let (keys, values) =
                (batch.column(key_column).as_binary::<i32>(), batch.column(value_column).as_binary::<i32>());
            for (at_row, ((source, position), reason)) in sources.zip(positions).zip(reasons).enumerate() {
                let at = |violation: Violation, column| violation.shard(shard).row(row).column(column);
                if !Reason::ALL.iter().any(|known| known.code() == reason) {
                    let known = Reason::ALL.map(Reason::code).join(", ");
                    let found = format!("`{reason}`");
                    let violation = Violation::new(snapshot, REASON, found, format!("one of {known}"));
                    return Err(at(violation, "reason").into());
                }
                let key = keys.is_valid(at_row).then(|| keys.value(at_row));
                let record = dead_letter_key(source, *position, key, values.value(at_row));
                if !records.insert(record) {
                    let found = format!("the same bytes of `{source}` at {position} again");
                    let violation = Violation::new(snapshot, UNIQUE, found, "each record once");
                    return Err(at(violation, "position").into());
                }
                row += 1;
            }
        }
    }
    let rows = records.len() as u64;
    reader::proven(snapshot, rows, proof);
    proof.holds(REASON, rows, "rows");
    proof.holds(UNIQUE, rows, "rows");
    Ok(())
}
