//! Verifies `events`, date by date, together with the earlier dates within which an id must be unique.
//!
//! Ingestion of files never stores an id twice. A consumer does not search for the id of a message that was sent more days after
//! its time than the window has, and no table records when a message was sent. Two events with one id are therefore allowed if one
//! is a message from another position; builds count them once, and here they are counted, not claimed. Copies further apart than
//! the window under which the table was written (`dedup_days`, in its properties) are not claimed either.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::array::Array as _;
use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type, TimestampMillisecondType};
use chrono::{DateTime, NaiveDate};
use schemas::config::Config;
use schemas::hash::{hash64, hash128};
use schemas::tables::{ELEMENT, EVENT_DATE, EVENTS_SCHEMA};
use store::{Shard, Snapshot};
use terminal::Progress;

use super::violation::{Stop, Violation};
use super::{TableProof, properties, reader};
use crate::kafka::consume::{topic_in, topics_of};
use crate::records::{date_days, dates_around};

const DATE: &str = "event_date is the UTC date of ts";
const UNIQUE: &str = "event_id is unique within its event_date";
const AGAIN: &str = "a message that is sent again is stored once, however late it comes";
const WIDER: &str = "event_id is unique within events.dedup_days";

/// The first occurrence of an id.
#[derive(Clone, Copy)]
struct Met<'a> {
    shard: &'a Shard,
    row: u64,
    place: Place,
    /// Whether it came from a topic.
    is_message: bool,
}

/// The hash of a source, and the position and the element there.
type Place = (u64, i64, Option<i32>);

/// The ids of one date.
#[derive(Default)]
struct Seen<'a> {
    first: HashMap<u128, Met<'a>>,
    /// Ids that occurred again, with the position of each such occurrence.
    again: HashSet<(u128, Place)>,
}

/// Numbers of copies that are not a violation.
#[derive(Default)]
struct Copies {
    /// Events with the id of another one within the window, where one of them is a message.
    messages: u64,
    /// Events with the id of another one on a date beyond the table's window, and within the configuration's.
    beyond: u64,
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
    let [source_column, position_column, element_column] = ["source", "position", ELEMENT].map(place);
    let days = properties::dedup_days(snapshot)?;
    let wider = days.max(config.events.dedup_days);
    let near = format!("event_id is unique within {days} days of its event_date");
    let mut topics: BTreeSet<&str> = topics_of(snapshot);
    topics.insert(&config.kafka.topic);
    let is_message = |source: &str| topic_in(source).is_some_and(|topic| topics.contains(topic));
    let mut copies = Copies::default();
    let mut progress = Progress::start("verify events", snapshot.rows(), "rows");
    let mut rows = 0;
    let mut seen: BTreeMap<i32, Seen<'_>> = BTreeMap::new();
    for (date, shards) in by_date(snapshot) {
        let read = date.and_then(|date| Some((date.parse::<NaiveDate>().ok()?, date_days(date)?)));
        let Some((day, number)) = read else {
            let found = date.map_or_else(|| "no date".into(), |date| format!("`{date}`"));
            let violation = Violation::new(snapshot, DATE, found, "a date such as 2026-11-22");
            return Err(violation.shard(shards[0]).column(EVENT_DATE).into());
        };
        seen = seen.split_off(dates_around(number, wider).start());
        let mut today = Seen::default();
        for shard in shards {
            let mut row = 0;
            for batch in reader::read(snapshot, shard, &required).await? {
                let ids = batch.column(id_column).as_string::<i32>();
                let times = batch.column(ts_column).as_primitive::<TimestampMillisecondType>();
                let sources = batch.column(source_column).as_string::<i32>();
                let positions = batch.column(position_column).as_primitive::<Int64Type>().values();
                let elements = batch.column(element_column).as_primitive::<Int32Type>();
                let mut source = ("", 0, false);
                for (i, (id, &ts)) in ids.iter().flatten().zip(times.values()).enumerate() {
                    let time = DateTime::from_timestamp_millis(ts);
                    if time.map(|time| time.date_naive()) != Some(day) {
                        let found = time.map_or_else(|| format!("{ts} ms"), |time| time.to_rfc3339());
                        let violation = Violation::new(snapshot, DATE, found, format!("on {day}"));
                        return Err(violation.shard(shard).row(row).column("ts").into());
                    }
                    let text = sources.value(i);
                    if source.1 == 0 || source.0 != text {
                        source = (text, hash64(text.as_bytes()), is_message(text));
                    }
                    let element = elements.is_valid(i).then(|| elements.value(i));
                    let place = (source.1, positions[i], element);
                    let here = Met { shard, row, place, is_message: source.2 };
                    let key = hash128(id.as_bytes());
                    let before = seen.iter().map(|(date, seen)| (number.abs_diff(*date), seen));
                    let mut is_copy = (false, false);
                    for (apart, seen) in before.chain([(0, &today)]) {
                        let Some(first) = seen.first.get(&key) else { continue };
                        let same = first.place == place || seen.again.contains(&(key, place));
                        if apart > days {
                            is_copy.1 = true;
                        } else if !same && (first.is_message || here.is_message) {
                            is_copy.0 = true;
                        } else {
                            let found = format!("`{id}`, as in row {} of {}", first.row, first.shard.path);
                            let claim = if apart == 0 { UNIQUE } else { near.as_str() };
                            let violation = Violation::new(snapshot, claim, found, "an id of its own");
                            return Err(violation.shard(shard).row(row).column("event_id").into());
                        }
                    }
                    copies.messages += u64::from(is_copy.0);
                    copies.beyond += u64::from(is_copy == (false, true));
                    match today.first.entry(key) {
                        Entry::Vacant(entry) => _ = entry.insert(here),
                        Entry::Occupied(_) => _ = today.again.insert((key, place)),
                    }
                    row += 1;
                }
                progress.add(batch.num_rows() as u64);
            }
            rows += row;
        }
        if wider > 0 {
            seen.insert(number, today);
        }
    }
    reader::proven(snapshot, rows, proof);
    proof.holds(DATE, rows, "rows");
    proof.holds(UNIQUE, rows - copies.messages, "rows");
    if days > 0 {
        proof.holds(&near, rows - copies.messages, "rows");
    }
    let Copies { messages, beyond } = copies;
    if messages > 0 {
        let reason = format!(
            "{messages} events have the id of another one, and one of the two is a message: no table says when it was sent; \
             builds count them once"
        );
        proof.no_claim(AGAIN, reason);
    }
    if wider > days {
        let reason = format!(
            "the table was written within {days} days, and the configuration has {wider}; {beyond} events have the id of \
             another one beyond that, and builds count them once"
        );
        proof.no_claim(WIDER, reason);
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
