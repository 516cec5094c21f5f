//! Streaming and building gives the same tables as ingesting the same events from files and building.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use store::Root;

use super::shop::{START, Shop, fates};
use super::{Broker, Message, tables};
use crate::inspect::tables::rows;

const PARTITIONS: i64 = 3;
const USERS: i64 = 20;
const HOUR: i64 = 3_600_000;

/// Returns events in order of arrival, each with its partition: some out of order, some hours late and past midnight, some at
/// equal times, some of items that the catalogue lacks, and some twice, soon or much later.
fn arriving() -> Vec<(i64, Value)> {
    let mut arriving: Vec<(i64, i64, Value)> = Vec::new();
    for n in 0..600 {
        let (user, step) = (n % USERS, n / USERS);
        // Some steps have the time of the step before, some a moment less.
        let time = match step % 5 {
            1 => START + (step - 1) * HOUR / 2,
            3 => START + step * HOUR / 2 - HOUR / 2 - 900,
            _ => START + step * HOUR / 2,
        };
        let event = json!({
            "id": format!("e{n}"), "user": format!("u{user}"), "item": format!("i{}", n * 7 % 33), "time": time,
            "request_id": format!("r{user}-{}", step / 3), "action": if n % 5 == 0 { "play" } else { "click" },
        });
        // Arrival: some events arrive after later ones.
        let arrival = n + n * 11 % 17 + if n % 31 == 0 { 150 } else { 0 };
        arriving.push((arrival, user % PARTITIONS, event.clone()));
        if n % 23 == 4 {
            let later = if n % 2 == 0 { 3 } else { 300 };
            arriving.push((arrival + later, user % PARTITIONS, event));
        }
    }
    arriving.sort_by_key(|&(arrival, _, _)| arrival);
    arriving.into_iter().map(|(_, partition, event)| (partition, event)).collect()
}

/// Returns the rows of `sequences` by user and first time, with items by name.
fn sequences(root: &Path) -> Vec<(String, Vec<Option<String>>, String)> {
    let items: BTreeMap<u32, String> = tables::rows_as_text(root, "items", &["item_index", "item_id"])
        .into_iter()
        .map(|row| (row[0].parse().unwrap(), row[1].clone()))
        .collect();
    let root = Root::new(root.to_str().unwrap()).unwrap();
    let (shards, _) = tokio::runtime::Runtime::new().unwrap().block_on(rows(&root, "sequences"));
    let mut sequences: Vec<_> = shards
        .into_iter()
        .flatten()
        .map(|mut row| {
            let names = std::mem::take(&mut row.item).iter().map(|index| items.get(index).cloned()).collect();
            (row.user.clone(), names, format!("{row:?}"))
        })
        .collect();
    sequences.sort();
    sequences
}

/// Returns the events of a root, without their sources.
fn events(root: &Path) -> Vec<Vec<String>> {
    let columns = ["event_id", "user_id", "item_id", "ts", "request_id", "action", "value"];
    let mut events = tables::rows_as_text(root, "events", &columns);
    events.sort();
    events
}

#[test]
fn streaming_then_building_is_ingesting_the_same_events_and_building() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "same", PARTITIONS as i32);
    let workspace = &shop.workspace;
    let (files, stream) = (workspace.path("files"), workspace.path("stream"));
    let arriving = arriving();
    let mut log = String::new();
    arriving.iter().for_each(|(_, event)| writeln!(log, "{event}").unwrap());
    workspace.write("log.jsonl", &log);
    workspace.succeed("pipeline", &["ingest", "--root", "files"]);

    // The catalogue alone.
    let catalogue = ["ingest", "--root", "stream", "--items", "items.jsonl", "--set", "events.paths=[]"];
    workspace.succeed("pipeline", &catalogue);
    let messages: Vec<Message> =
        arriving.iter().map(|(partition, event)| Message::json(*partition as i32, "key", event)).collect();
    let (mut all, mut late) = ([0; 4], 0);
    for slice in messages.chunks(250) {
        shop.send(slice);
        let report = shop.consume_once(&["--root", "stream"]);
        for (sum, count) in all.iter_mut().zip(fates(&report)) {
            *sum += count;
        }
        late += report["late"].as_u64().unwrap();
    }
    assert_eq!(all, [messages.len() as u64, 600, messages.len() as u64 - 600, 0]);
    assert!(late > 0 && messages.len() > 620);
    assert_eq!(events(&stream), events(&files));

    for root in ["files", "stream"] {
        workspace.succeed("pipeline", &["build-sequences", "--root", root]);
    }
    let built = sequences(&stream);
    assert!(
        built.len() >= USERS as usize && built == sequences(&files),
        "{built:?}\n{:?}",
        sequences(&files)
    );
    for table in ["events", "sequences"] {
        workspace.succeed("pipeline", &["inspect", "--root", "stream", "--verify", table]);
    }
}
