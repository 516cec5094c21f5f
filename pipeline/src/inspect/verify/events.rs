//! `events`, date by date.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use chrono::{DateTime, NaiveDate};
use schemas::cli::Progress;
use schemas::config::Config;
use schemas::delta::{Shard, Snapshot};
use schemas::hash::hash128;
use schemas::tables::{EVENT_DATE, EVENTS_SCHEMA};

use super::violation::{Stop, Violation};
use super::{TableProof, reader};

const DATE: &str = "event_date is the UTC date of ts";
const UNIQUE: &str = "event_id is unique within its event_date";
const AGAIN: &str = "what a producer sends again within kafka.dedup_days is stored once";

/// Where an id was met first.
struct First {
    shard: usize,
    row: u64,
    /// Partition and offset, if it came from the topic that is consumed.
    message: Option<(u32, i64)>,
}

pub(super) async fn verify(config: &Config, snapshot: &Snapshot, proof: &mut TableProof) -> Result<(), Stop> {
    let required: Vec<&str> = EVENTS_SCHEMA
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .filter(|&name| name != EVENT_DATE)
        .collect();
    let place = |column| required.iter().position(|&name| name == column).unwrap_or_default();
    let [id_column, ts_column] = ["event_id", "ts"].map(place);
    let [source_column, position_column] = ["source", "position"].map(place);
    let topic = format!("{}-", config.kafka.topic);
    let message = |source: &str, position: i64| Some((source.strip_prefix(&topic)?.parse().ok()?, position));
    let mut again = 0;
    let mut progress = Progress::start("verify events", snapshot.rows(), "rows");
    let mut rows = 0;
    for (date, shards) in by_date(snapshot) {
        let mut seen: HashMap<u128, First> = HashMap::new();
        let mut sent_again: HashSet<(u128, (u32, i64))> = HashSet::new();
        for (s, shard) in shards.iter().enumerate() {
            let Some(day) = date.and_then(|date| date.parse::<NaiveDate>().ok()) else {
                let found = date.map_or_else(|| "no date".into(), |date| format!("`{date}`"));
                let violation = Violation::new(snapshot, DATE, found, "a date such as 2026-11-22");
                return Err(violation.shard(shard).column(EVENT_DATE).into());
            };
            let mut row = 0;
            for batch in reader::read(snapshot, shard, &required).await? {
                let ids = batch.column(id_column).as_string::<i32>();
                let times = batch.column(ts_column).as_primitive::<TimestampMillisecondType>();
                let sources = batch.column(source_column).as_string::<i32>();
                let positions = batch.column(position_column).as_primitive::<Int64Type>().values();
                for (i, (id, &ts)) in ids.iter().flatten().zip(times.values()).enumerate() {
                    let time = DateTime::from_timestamp_millis(ts);
                    if time.map(|time| time.date_naive()) != Some(day) {
                        let found = time.map_or_else(|| format!("{ts} ms"), |time| time.to_rfc3339());
                        let violation = Violation::new(snapshot, DATE, found, format!("on {day}"));
                        return Err(violation.shard(shard).row(row).column("ts").into());
                    }
                    let here = First { shard: s, row, message: message(sources.value(i), positions[i]) };
                    let key = hash128(id.as_bytes());
                    match seen.entry(key) {
                        Entry::Vacant(entry) => _ = entry.insert(here),
                        // The consumer looks so many days back, and builds count the event once.
                        Entry::Occupied(first)
                            if first.get().message.zip(here.message).is_some_and(|(first, message)| {
                                first != message && sent_again.insert((key, message))
                            }) =>
                        {
                            again += 1;
                        }
                        Entry::Occupied(first) => {
                            let first = first.get();
                            let found =
                                format!("`{id}`, as in row {} of {}", first.row, shards[first.shard].path);
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
    proof.holds(UNIQUE, rows - again, "rows");
    if again > 0 {
        let reason =
            format!("{again} messages have the id of another one; when each was sent, no table says");
        proof.no_claim(AGAIN, reason);
    }
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
