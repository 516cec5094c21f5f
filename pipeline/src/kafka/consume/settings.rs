//! librdkafka's settings.

use std::borrow::Cow;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use schemas::config::{ConfigError, GroupProtocol, Kafka};

/// Maximum size of librdkafka's queue of fetched messages, in KiB, over all partitions.
const PREFETCH_KIB: &str = "65536";

/// librdkafka's settings for the consumer. They may hold secrets: never print them.
pub(super) fn consumer(kafka: &Kafka) -> Result<ClientConfig, ConfigError> {
    let mut config = ClientConfig::new();
    config
        .set("client.id", "climber-pilot")
        // The configuration may override these.
        .set("queued.max.messages.kbytes", PREFETCH_KIB)
        // Pause when the queue is full. The default of one second is long enough to empty the queue.
        .set("fetch.queue.backoff.ms", "10")
        .set("statistics.interval.ms", "1000");
    for (key, value) in kafka.client_properties()? {
        config.set(key, value.expose());
    }
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", &kafka.group)
        // The tables hold the offsets. They are committed to the group as well, for monitoring only.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // Report an offset that the broker does not have, instead of jumping.
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true");
    match kafka.protocol {
        GroupProtocol::Classic => {
            config.set("group.protocol", "classic").set("partition.assignment.strategy", "cooperative-sticky")
        }
        GroupProtocol::Consumer => config.set("group.protocol", "consumer"),
    };
    if let Some(instance) = &kafka.instance {
        config.set("group.instance.id", instance);
    }
    config.set_log_level(RDKafkaLogLevel::Warning);
    Ok(config)
}

/// Secrets from the environment or from files, to be removed from the client's messages, which quote refused values.
#[derive(Clone)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    pub(super) fn of(kafka: &Kafka) -> Result<Self, ConfigError> {
        let read_elsewhere =
            |(key, value): &(String, String)| !value.is_empty() && kafka.properties.get(key) != Some(value);
        let properties = kafka.client_properties()?.into_iter();
        let exposed = properties.map(|(key, value)| (key, value.expose().to_owned()));
        let mut values: Vec<String> = exposed.filter(read_elsewhere).map(|(_, value)| value).collect();
        // Longest first: a secret that is part of another must not split it.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Ok(Self(values))
    }

    /// `text` without the secrets.
    pub(super) fn hide<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut hidden = Cow::Borrowed(text);
        for value in self.0.iter().filter(|value| text.contains(value.as_str())) {
            hidden = Cow::Owned(hidden.replace(value.as_str(), "***"));
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_elsewhere_is_hidden() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            format!("file:{}", path.display())
        };
        let mut kafka = Kafka::default();
        let properties = [
            ("sasl.username", "me".to_owned()),
            ("sasl.password", file("password", "hunter2\n")),
            ("sasl.mechanism", file("mechanism", "hunter2-and-more")),
            ("client.rack", file("empty", "")),
        ];
        kafka.properties.extend(properties.map(|(key, value)| (key.to_owned(), value)));
        let secrets = Secrets::of(&kafka).unwrap();
        assert_eq!(secrets.hide("hunter2-and-more, hunter2, me"), "***, ***, me");
        assert!(matches!(secrets.hide("nothing of the kind"), Cow::Borrowed(_)));
    }
}
