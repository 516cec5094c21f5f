//! `dead_letters`: codes and places.

use std::collections::HashSet;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use schemas::delta::Snapshot;
use schemas::hash::hash128;
use schemas::tables::{DEAD_LETTERS_SCHEMA, Reason};

use super::violation::{Stop, Violation};
use super::{TableProof, reader};

const REASON: &str = "reason is a code of the list";
const UNIQUE: &str = "(source, position) is unique";

pub(super) async fn verify(snapshot: &Snapshot, proof: &mut TableProof) -> Result<(), Stop> {
    let columns: Vec<&str> = DEAD_LETTERS_SCHEMA.fields().iter().map(|field| field.name().as_str()).collect();
    let column = |name: &str| columns.iter().position(|&column| column == name).unwrap_or_default();
    let (source_column, position_column, reason_column) =
        (column("source"), column("position"), column("reason"));
    let mut places: HashSet<u128> = HashSet::new();
    for shard in snapshot.shards() {
        let mut row = 0;
        for batch in reader::read(snapshot, shard, &DEAD_LETTERS_SCHEMA, &columns).await? {
            let sources = batch.column(source_column).as_string::<i32>().iter().flatten();
            let positions = batch.column(position_column).as_primitive::<Int64Type>().values();
            let reasons = batch.column(reason_column).as_string::<i32>().iter().flatten();
            for ((source, position), reason) in sources.zip(positions).zip(reasons) {
                let at = |violation: Violation, column| violation.shard(shard).row(row).column(column);
                if !Reason::ALL.iter().any(|known| known.code() == reason) {
                    let known = Reason::ALL.map(Reason::code).join(", ");
                    let found = format!("`{reason}`");
                    let violation = Violation::new(snapshot, REASON, found, format!("one of {known}"));
                    return Err(at(violation, "reason").into());
                }
                let mut place = source.as_bytes().to_vec();
                place.extend(position.to_le_bytes());
                if !places.insert(hash128(&place)) {
                    let found = format!("`{source}` at {position} again");
                    let violation = Violation::new(snapshot, UNIQUE, found, "a place of its own");
                    return Err(at(violation, "position").into());
                }
                row += 1;
            }
        }
    }
    let rows = places.len() as u64;
    reader::proven(snapshot, rows, proof);
    proof.holds(REASON, rows, "rows");
    proof.holds(UNIQUE, rows, "rows");
    Ok(())
}
