//! Writes `simulated.toml`, the configuration that reads a log.

use schemas::config::Kafka;

use crate::output::{EVENTS, ITEMS, extension};
use crate::{MAX_RECORD_BYTES, Settings};

/// The configuration that reads the log, with the trainer's settings for its size.
pub(crate) fn text(settings: &Settings, topic: Option<&Kafka>) -> String {
    let extension = extension(settings.format, settings.compression);
    // Twice the expected share, for logs so small that chance matters.
    let dead_letters = (0.01 + 2.0 * settings.rates.bad).min(1.0);
    let shards = (settings.events / 500_000).clamp(8, 256);
    let Settings { seed, items, .. } = settings;
    let source = match topic {
        Some(_) => "# Events come from the topic below: `pipeline consume`.".into(),
        None => format!("# Files are named by the day they arrived on.\npaths = [\"{EVENTS}/*{extension}\"]"),
    };
    let kafka = topic.map_or_else(String::new, section);
    // A full softmax over many items would dominate the cost of training.
    let loss = if *items > 20_000 { "sampled" } else { "full" };
    let negatives = (items / 4).clamp(1, 8_192);
    format!(
        r#"# A simulated log: `pipeline simulate --seed {seed}`.
root = "tables"

[events]
{source}
ts_format = "ms"
max_record_bytes = {MAX_RECORD_BYTES}
max_dead_letter_rate = {dead_letters}

[items]
paths = ["{ITEMS}"]
columns = {{ item_id = "item_id", title = "title", release_ts = "release_ts" }}
ts_format = "ms"

[items.attributes.genre]
[items.attributes.language]

[sequences]
actions = ["play"]   # likes and skips are events too, of items that were played or refused
session_gap = "30m"
batch_gap = "1s"
delta_tau = "15m"
max_len = 200
split = "leave-one-out"
shards = {shards}

[model]
d = 64
layers = 3
branches = 2
mask = "gather"
attributes = ["genre", "language"]

[pretrain]
epochs = 3
learning_rate = 2e-3
schedule = "linear"
loss = "{loss}"
uniform_negatives = {negatives}
select_by = "hr-as-served"
{kafka}"#
    )
}

/// The section `[kafka]` with the settings for reaching the brokers. Secrets are referenced, not copied.
fn section(kafka: &Kafka) -> String {
    let mut text = format!("\n[kafka]\nbrokers = {:?}\ntopic = {:?}\n", kafka.brokers, kafka.topic);
    if !kafka.properties.is_empty() {
        text.push_str("\n[kafka.properties]\n");
        text.extend(kafka.properties.iter().map(|(key, value)| format!("{key:?} = {value:?}\n")));
    }
    text
}
