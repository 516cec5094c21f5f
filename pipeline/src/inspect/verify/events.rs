//! `events`, date by date.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use arrow::array::AsArray;
use arrow::datatypes::TimestampMillisecondType;
use chrono::{DateTime, NaiveDate};
use schemas::cli::Progress;
use schemas::delta::{Shard, Snapshot};
use schemas::hash::hash128;
use schemas::tables::{EVENT_DATE, EVENTS_SCHEMA};

use super::violation::{Stop, Violation};
use super::{TableProof, reader};

const DATE: &str = "event_date is the UTC date of ts";
const UNIQUE: &str = "event_id is unique within its event_date";

pub(super) async fn verify(snapshot: &Snapshot, proof: &mut TableProof) -> Result<(), Stop> {
    let required: Vec<&str> = EVENTS_SCHEMA
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .filter(|&name| name != EVENT_DATE)
        .collect();
    let id_column = required.iter().position(|&name| name == "event_id").unwrap_or_default();
    let ts_column = required.iter().position(|&name| name == "ts").unwrap_or_default();
    let mut progress = Progress::start("verify events", snapshot.rows(), "rows");
    let mut rows = 0;
    for (date, shards) in by_date(snapshot) {
        let mut seen: HashMap<u128, (usize, u64)> = HashMap::new();
        for (s, shard) in shards.iter().enumerate() {
            let Some(day) = date.and_then(|date| date.parse::<NaiveDate>().ok()) else {
                let found = date.map_or_else(|| "no date".into(), |date| format!("`{date}`"));
                let violation = Violation::new(snapshot, DATE, found, "a date such as 2026-11-22");
                return Err(violation.shard(shard).column(EVENT_DATE).into());
            };
            let mut row = 0;
            for batch in reader::read(snapshot, shard, &EVENTS_SCHEMA, &required).await? {
                let ids = batch.column(id_column).as_string::<i32>();
                let times = batch.column(ts_column).as_primitive::<TimestampMillisecondType>();
                for (id, &ts) in ids.iter().flatten().zip(times.values()) {
                    let time = DateTime::from_timestamp_millis(ts);
                    if time.map(|time| time.date_naive()) != Some(day) {
                        let found = time.map_or_else(|| format!("{ts} ms"), |time| time.to_rfc3339());
                        let violation = Violation::new(snapshot, DATE, found, format!("on {day}"));
                        return Err(violation.shard(shard).row(row).column("ts").into());
                    }
                    match seen.entry(hash128(id.as_bytes())) {
                        Entry::Vacant(entry) => _ = entry.insert((s, row)),
                        Entry::Occupied(first) => {
                            let (s, first_row) = *first.get();
                            let found = format!("`{id}`, as in row {first_row} of {}", shards[s].path);
                            let violation = Violation::new(snapshot, UNIQUE, found, "an id of its own");
                            return Err(violation.shard(shard).row(row).column("event_id").into());
                        }
                    }
                    row += 1;
                }
                progress.add(batch.num_rows() as u64);
            }
            rows += row;
        }
    }
    reader::proven(snapshot, rows, proof);
    proof.holds(DATE, rows, "rows");
    proof.holds(UNIQUE, rows, "rows");
    Ok(())
}

/// The shards of each date.
pub(super) fn by_date(snapshot: &Snapshot) -> BTreeMap<Option<&str>, Vec<&Shard>> {
    let mut dates: BTreeMap<Option<&str>, Vec<&Shard>> = BTreeMap::new();
    for shard in snapshot.shards() {
        let date = shard.partition.get(EVENT_DATE).and_then(Option::as_deref);
        dates.entry(date).or_default().push(shard);
    }
    dates
}
