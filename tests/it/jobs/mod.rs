//! The jobs, on a small service of a few days.

mod daily;
mod days;
#[cfg(unix)]
pub(crate) mod faults;
#[cfg(unix)]
mod full_disk;
#[cfg(unix)]
mod own;
mod page;
#[cfg(unix)]
mod refresh;
mod schedules;
mod skips;

use std::fmt::Write as _;

use serde_json::Value;
use trainer::judge::Protocol;

use crate::programs::{Workspace, json};

/// First day of the service.
const FIRST: i64 = 1_767_225_600; // 2026-01-01

/// Users of the service; each one comes every day.
const USERS: u32 = 40;

/// Events per user and day.
const EVENTS: u32 = 6;

/// Returns the date of a day: `2026-01-01` for 1.
pub(crate) fn date(day: u32) -> String {
    format!("2026-01-{day:02}")
}

/// Returns a service of `days` days, each with a file of events and a catalogue, which grows by two items per day.
pub(crate) fn service(days: u32) -> Workspace {
    let workspace = Workspace::new();
    std::fs::create_dir_all(workspace.path("events")).unwrap();
    std::fs::create_dir_all(workspace.path("items")).unwrap();
    let mut catalogue = String::new();
    for day in 1..=days {
        let mut log = String::from("user,item,time\n");
        let items = 28 + 2 * day;
        for user in 0..USERS {
            for i in 0..EVENTS {
                let item = 1 + (user * 7 + (day * EVENTS + i) * (1 + user % 3)) % items;
                let time = FIRST + i64::from((day - 1) * 86_400 + user * 60 + i * 2_000);
                writeln!(log, "u{user},i{item},{time}").unwrap();
            }
        }
        workspace.write(&format!("events/{}.csv", date(day)), log);
        for item in if day == 1 { 1 } else { items - 1 }..=items {
            let genre = ["Rock", "Jazz", "Folk"][item as usize % 3];
            writeln!(catalogue, r#"{{"item_id": "i{item}", "title": "Item {item}", "genre": "{genre}"}}"#)
                .unwrap();
        }
        workspace.write(&format!("items/{}.jsonl", date(day)), &catalogue);
    }
    let config = std::fs::read_to_string(workspace.path("config.toml")).unwrap();
    let config = config
        .replace("log.csv", "events/{date}.csv")
        .replace("items.jsonl", "items/{date}.jsonl")
        .replace("shards = 2", "shards = 2\nsplit = \"none\"\nguard_share = 0.2\nsft_share = 0.2");
    let config = format!(
        "{config}\n[conditions]\nmin_pool = 5\n\n[sft]\nconditions = [\"genre\"]\nepochs = 2\nbatch_size = 16\n\n\
         [refresh]\nbatch_size = 16\n\n[daily]\nfull_growth = 100\n"
    )
    .replace("[gate]", "[gate]\nresamples = 200");
    workspace.write("config.toml", config);
    workspace
}

/// Returns the arguments of one day's job.
fn day<'a>(date: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["daily", "--date", date, "--json"][..], more].concat()
}

/// Returns the ranks of a split's targets under a protocol, as stored beside the model.
fn ranks(workspace: &Workspace, model: &str, split: &str, protocol: &str, unseen: bool) -> Vec<Option<u32>> {
    let path = workspace.root().join("models").join(model).join(format!("ranks-{split}.parquet"));
    let rows = trainer::judge::stored::read_ranks(&path).unwrap().unwrap();
    let number = Protocol::ALL.iter().position(|p| p.name() == protocol).unwrap();
    let next = rows.iter().filter(|row| row.horizon == 1).filter_map(|row| row.ranks[number]);
    next.map(|ranks| if unseen { ranks.unseen } else { ranks.all }).collect()
}

/// Returns the mean over `ranks` of the worth of a rank; targets without a rank count 0.
fn mean(ranks: &[Option<u32>], worth: impl Fn(u32) -> f64) -> f64 {
    ranks.iter().map(|rank| rank.map_or(0.0, &worth)).sum::<f64>() / ranks.len() as f64
}

/// Returns HR@`k`.
fn hit_rate(ranks: &[Option<u32>], k: u32) -> f64 {
    mean(ranks, |rank| f64::from(u8::from(rank <= k)))
}

/// Runs one day and returns its record.
pub(crate) fn run_day(workspace: &Workspace, number: u32) -> Value {
    json(&workspace.succeed("climber", &day(&date(number), &[])))
}

/// Returns the content of `models/published.json`.
fn published(workspace: &Workspace) -> Value {
    let text = std::fs::read(workspace.root().join("models/published.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}
