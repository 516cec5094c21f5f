//! Kafka for tests: a real broker and schema registry (`tests/kafka/broker.sh`), or librdkafka's imitation of a broker.

mod aborted;
mod away;
mod broker;
mod consumer;
mod exactly_once;
mod fates;
mod forgotten;
mod gone;
mod harness;
mod message_schemas;
mod metrics;
pub(crate) mod produce;
mod read;
mod registry;
mod same_as_files;
mod secrets;
mod service;
mod shop;
pub(crate) mod stream;
pub(crate) mod tables;
pub(crate) mod tally;

use std::sync::atomic::{AtomicU32, Ordering};

use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

pub(crate) use broker::Broker;
pub(crate) use produce::{End, Message, Position, Producer};
pub(crate) use read::{Isolation, read_topic};
pub(crate) use registry::Registry;

/// A broker for tests that accept any. The imitation holds at most 5 MiB per partition and hardly supports transactions.
pub(crate) enum Cluster {
    Real(&'static Broker),
    Mock(MockCluster<'static, DefaultProducerContext>),
}

impl Cluster {
    /// Returns the shared broker, or the imitation without Java or Maven.
    pub(crate) fn start() -> Self {
        Broker::shared().map_or_else(Self::mock, Self::Real)
    }

    pub(crate) fn mock() -> Self {
        Self::Mock(MockCluster::new(1).unwrap())
    }

    pub(crate) fn address(&self) -> String {
        match self {
            Self::Real(broker) => broker.address(),
            Self::Mock(cluster) => cluster.bootstrap_servers(),
        }
    }

    /// Creates a topic for this test alone, called `name` and a number.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32) -> String {
        match self {
            Self::Real(broker) => broker.create_topic(name, partitions),
            Self::Mock(cluster) => {
                let topic = unique(name);
                cluster.create_topic(&topic, partitions, 1).unwrap();
                topic
            }
        }
    }
}

/// Returns `name` and a number, a new one each time.
fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns a client's configuration for the broker at `address`.
fn client(address: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address);
    // A killed broker is back within seconds; the default waits up to 10 s.
    config.set("reconnect.backoff.max.ms", "500");
    config
}
