//! `items`: ids and indexes.

use std::collections::HashSet;

use arrow::array::AsArray;
use arrow::datatypes::UInt32Type;
use schemas::hash::hash128;
use schemas::tables::NO_ITEM;
use store::Snapshot;

use super::violation::{Stop, Violation};
use super::{TableProof, reader};

const UNIQUE: &str = "item_id is unique";
const DENSE: &str = "item_index is dense from 1, each once";

pub(super) async fn verify(snapshot: &Snapshot, proof: &mut TableProof) -> Result<(), Stop> {
    let schema = snapshot.stored_schema()?;
    let columns: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    let items = snapshot.rows();
    let mut ids: HashSet<u128> = HashSet::new();
    let mut indexes: HashSet<u32> = HashSet::new();
    for shard in snapshot.shards() {
        let mut row = 0;
        for batch in reader::read(snapshot, shard, &columns).await? {
            let names = batch.column_by_name("item_id").map(|column| column.as_string::<i32>().iter());
            let numbers =
                batch.column_by_name("item_index").map(|column| column.as_primitive::<UInt32Type>());
            let numbers = numbers.map(|numbers| numbers.values().iter());
            for (id, &index) in names.into_iter().flatten().flatten().zip(numbers.into_iter().flatten()) {
                if !ids.insert(hash128(id.as_bytes())) {
                    let violation =
                        Violation::new(snapshot, UNIQUE, format!("`{id}` again"), "an id of its own");
                    return Err(violation.shard(shard).row(row).column("item_id").into());
                }
                // As many different indexes as rows, all between 1 and their number, are dense.
                if index == NO_ITEM || u64::from(index) > items || !indexes.insert(index) {
                    let expected = format!("a number from 1 to {items} of its own");
                    let violation = Violation::new(snapshot, DENSE, index, expected);
                    return Err(violation.shard(shard).row(row).column("item_index").into());
                }
                row += 1;
            }
        }
    }
    let rows = ids.len() as u64;
    reader::proven(snapshot, rows, proof);
    proof.holds(UNIQUE, rows, "items");
    if rows == items {
        proof.holds(DENSE, rows, "items");
    } else {
        proof.skip(DENSE, "the log does not count all rows");
    }
    Ok(())
}
