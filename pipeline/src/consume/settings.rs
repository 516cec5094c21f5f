//! librdkafka's settings.

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use schemas::config::{ConfigError, GroupProtocol, Kafka};

/// What librdkafka may hold of messages that were not taken yet, in KiB, over all partitions.
const PREFETCH_KIB: &str = "65536";

/// Those of the consumer. They may hold secrets: never print them.
pub(super) fn consumer(kafka: &Kafka) -> Result<ClientConfig, ConfigError> {
    let mut config = ClientConfig::new();
    config
        .set("client.id", "climber-pilot")
        // May be overwritten.
        .set("queued.max.messages.kbytes", PREFETCH_KIB)
        .set("statistics.interval.ms", "1000");
    for (key, value) in kafka.client_properties()? {
        config.set(key, value);
    }
    config
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", &kafka.group)
        // The tables know how far reading has come. Offsets are committed to the group as well, for those who watch it.
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // An offset that the broker does not have is an event to be reported, and no reason to jump.
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
