//! A topic of interactions, and the root that `pipeline consume` fills with them.

use std::process::{Command, Output};

use serde_json::{Value, json};

use super::consumer::Consumer;
use super::{Broker, Message, Position, Producer};
use crate::programs::{Workspace, json, stderr};

/// Time of event 0, in epoch milliseconds: 2020-09-13T12:26:40Z.
pub(crate) const START: i64 = 1_600_000_000_000;

pub(crate) struct Shop {
    pub(crate) workspace: Workspace,
    pub(crate) topic: String,
    address: String,
    producer: Option<Producer>,
}

impl Shop {
    /// Creates a topic of this broker.
    pub(crate) fn new(broker: &Broker, name: &str, partitions: i32) -> Self {
        let topic = broker.create_topic(name, partitions);
        let producer = Some(Producer::new(&broker.address()));
        Self { producer, ..Self::at(&broker.address(), &topic) }
    }

    /// Returns a shop for `topic` of the brokers at `address`, which may not exist.
    pub(crate) fn at(address: &str, topic: &str) -> Self {
        let workspace = Workspace::new();
        let shop = Self { workspace, topic: topic.into(), address: address.into(), producer: None };
        shop.configure("");
        shop
    }

    /// Writes the configuration, with these lines at the end of `[kafka]`.
    pub(crate) fn configure(&self, kafka: &str) {
        let Self { topic, address, .. } = self;
        let config = format!(
            r#"
root = "root"

[events]
paths = ["log.jsonl"]
columns = {{ user_id = "user", item_id = "item", ts = "time", event_id = "id" }}
ts_format = "ms"
max_record_bytes = 2000

[items]
paths = ["items.jsonl"]
columns = {{ item_id = "item_id", title = "title" }}

[items.attributes.genre]

[sequences]
max_len = 12
shards = 2

[kafka]
brokers = "{address}"
topic = "{topic}"
group = "{topic}"
batch_interval = "300ms"
dedup_days = 100000
{kafka}
"#
        );
        self.workspace.write("config.toml", config);
    }

    /// Sends `messages`; returns their positions.
    pub(crate) fn send(&self, messages: &[Message]) -> Vec<Position> {
        self.producer.as_ref().unwrap().send(&self.topic, messages)
    }

    pub(crate) fn consume(&self, args: &[&str]) -> Command {
        self.workspace.command("pipeline", &[&["consume", "--json"], args].concat())
    }

    /// Runs `pipeline consume --once`, which must succeed; returns its report.
    pub(crate) fn consume_once(&self, args: &[&str]) -> Value {
        let output = self.consume(args).arg("--once").output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        json(&output)
    }

    /// Runs `pipeline consume --once`, which must fail with exit code 1.
    pub(crate) fn consume_in_vain(&self, args: &[&str]) -> Output {
        let output = self.consume(args).arg("--once").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(output.stdout.is_empty() && !stderr(&output).contains("panicked"), "{}", stderr(&output));
        output
    }

    /// Starts `pipeline consume`, which runs until it is stopped.
    pub(crate) fn start(&self, args: &[&str]) -> Consumer {
        Consumer::start(self.consume(args), self.workspace.path("consumer.log"))
    }

    /// Returns the `source` of a partition.
    pub(crate) fn source(&self, partition: i32) -> String {
        format!("{}-{partition}", self.topic)
    }
}

/// Returns event `n`, as its producer writes it.
pub(crate) fn event(n: i64) -> Value {
    json!({ "id": format!("e{n}"), "user": format!("u{}", n % 7), "item": format!("i{}", n % 30), "time": START + n })
}

/// Returns the events of these numbers, for one partition.
pub(crate) fn events(partition: i32, numbers: impl IntoIterator<Item = i64>) -> Vec<Message> {
    numbers.into_iter().map(|n| Message::json(partition, "key", &event(n))).collect()
}

/// Returns numbers of a report, by their keys.
pub(crate) fn counts<const N: usize>(report: &Value, keys: [&str; N]) -> [u64; N] {
    keys.map(|key| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}")))
}

/// Returns the messages, accepted events, duplicates and dead letters of a report.
pub(crate) fn fates(report: &Value) -> [u64; 4] {
    let fates = counts(report, ["messages", "accepted", "duplicates", "dead_letters"]);
    assert_eq!(fates[0], fates[1..].iter().sum::<u64>(), "{report}");
    fates
}
