//! Pins a small service: the rows of its tables, the weights of its models, its lists and figures. A refactoring must change none
//! of them.
//!
//! `CLIMBER_PILOT_PINS=write cargo test --workspace --test it pins` records them anew, for an intended change: the difference of
//! `tests/data/pins.json` shows what changed. Tables are the same on every machine. Sums of floating-point numbers are the same
//! on processors of one kind, with any number of threads.

use std::collections::BTreeMap;

use schemas::hash::{hash64, hash128};
use serde_json::{Value, json};

use crate::jobs::{date, run_day, service};
use crate::programs::{Workspace, files, sources};
use crate::random_faults::contents;

const TABLES: [&str; 8] =
    ["events", "items", "dead_letters", "sequences", "refresh", "sft/genre", "instructions", "forgotten"];

/// The pinned lists: plain, under conditions, filtered by a condition, merged from instructions, and found by the graph.
const LISTS: [&[&str]; 5] = [
    &["--k", "10"],
    &["--k", "10", "--conditions", "genre=Rock,genre=Jazz"],
    &["--k", "10", "--conditions", "genre=Folk", "--only"],
    &["--k", "10", "--instructions", "--merge", "weighted"],
    &["--k", "5", "--keep-seen", "--search", "hnsw"],
];

fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", hash128(bytes))
}

fn tables(workspace: &Workspace) -> Value {
    let here = workspace.path("").display().to_string();
    let pins = contents(&workspace.root(), &TABLES).into_iter().map(|(table, rows)| {
        let text = rows.join("\n").replace(&here, "");
        (table.to_owned(), json!({ "rows": rows.len(), "hash": hash(text.as_bytes()) }))
    });
    Value::Object(pins.collect())
}

/// Returns hashes of the weights, lists and export of the served model, and its figures.
fn models(workspace: &Workspace, records: &[Value]) -> Value {
    let weights: BTreeMap<String, String> = files(&workspace.root().join("models"))
        .into_iter()
        .filter(|(name, _)| name.ends_with(".safetensors"))
        .map(|(name, bytes)| (name, hash(&bytes)))
        .collect();
    let figures: Vec<Value> = records
        .iter()
        .map(|record| {
            let mut measured = record["evaluate"].clone();
            measured
                .as_object_mut()
                .unwrap()
                .retain(|name, _| !["finished_at", "seconds"].contains(&&**name));
            json!({ "prequential": record["prequential"]["metrics"], "gate": measured })
        })
        .collect();
    let lists: BTreeMap<String, String> = LISTS
        .iter()
        .map(|args| {
            let all = [&["retrieve", "--at", "2026-01-04T00:00:00Z"][..], args].concat();
            (args.join(" "), hash(&workspace.succeed("trainer", &all).stdout))
        })
        .collect();
    workspace.succeed("trainer", &["export", "--out", "exported"]);
    let exported = files(&workspace.path("exported")).into_iter();
    let exported: BTreeMap<String, String> = exported
        .filter(|(name, _)| !name.ends_with("manifest.json"))
        .map(|(name, bytes)| (name, hash(&bytes)))
        .collect();
    json!({ "weights": weights, "figures": figures, "lists": lists, "exported": exported })
}

/// Returns the kind of processor, which decides the kernels and their blocks, and so the order of summation; `None` if it is
/// unknown.
fn processor() -> Option<String> {
    let known = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let of = |name: &str| {
        let line = known.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = hash64(of("flags")?.as_bytes());
    Some(format!(
        "{} family {} model {} flags {flags:016x}",
        of("vendor_id")?,
        of("cpu family")?,
        of("model")?
    ))
}

#[test]
fn a_small_service_is_what_it_was() {
    let workspace = service(3);
    for day in 1..=3 {
        let name = format!("events/{}.csv", date(day));
        let log = std::fs::read_to_string(workspace.path(&name)).unwrap();
        workspace.write(&name, format!("{log}u1,i1,never\nu2,\"i\nu3\n"));
    }
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    workspace.write("config.toml", config.replace("[events]", "[events]\nmax_dead_letter_rate = 0.5"));
    let records: Vec<Value> = (1..=2).map(|day| run_day(&workspace, day)).collect();
    let file = workspace.path(&format!("events/{}.csv", date(3)));
    workspace.succeed("pipeline", &["ingest", "--events", file.to_str().unwrap(), "--set", "items.paths=[]"]);
    workspace.succeed("climber", &["refresh", "--once", "--after-rollback"]);

    let path = sources().join("data/pins.json");
    let mut pins: Value =
        std::fs::read(&path).map_or_else(|_| json!({}), |text| serde_json::from_slice(&text).unwrap());
    let mut now = json!({ "tables": tables(&workspace) });
    let processor = processor();
    if let Some(processor) = &processor {
        now[processor] = models(&workspace, &records);
    }
    if std::env::var("CLIMBER_PILOT_PINS").is_ok_and(|what| what == "write") {
        pins.as_object_mut().unwrap().extend(now.as_object().unwrap().clone());
        std::fs::write(&path, serde_json::to_string_pretty(&pins).unwrap() + "\n").unwrap();
        return;
    }
    assert_eq!(now["tables"], pins["tables"], "other tables than {}", path.display());
    match processor.filter(|processor| !pins[processor].is_null()) {
        None => testkit::skipped("the weights of a small service", "pin for this kind of processor"),
        Some(processor) => {
            for what in ["weights", "figures", "lists", "exported"] {
                let (now, pins) = (&now[&processor][what], &pins[&processor][what]);
                assert_eq!(now, pins, "other {what} than {}, for {processor}", path.display());
            }
        }
    }
}
