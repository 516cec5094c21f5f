//! Reads a whole topic.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};

use super::{Message, Position, client};

/// Which messages of transactions are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    ReadCommitted,
    ReadUncommitted,
}

/// Returns all messages of a topic, by position.
pub(crate) fn read_topic(
    address: &str,
    topic: &str,
    partitions: i32,
    isolation: Isolation,
) -> Vec<(Position, Message)> {
    let level = match isolation {
        Isolation::ReadCommitted => "read_committed",
        Isolation::ReadUncommitted => "read_uncommitted",
    };
    let mut config = client(address);
    config.set("group.id", "none").set("enable.auto.commit", "false");
    config.set("enable.partition.eof", "true").set("isolation.level", level);
    let consumer: BaseConsumer = config.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let (mut messages, mut open) = (Vec::new(), partitions);
    let begin = Instant::now();
    while open > 0 {
        assert!(begin.elapsed() < Duration::from_secs(120), "{topic}: {open} partitions never end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let (partition, owned) = (message.partition(), |bytes: &[u8]| bytes.to_vec());
                let (key, value) = (message.key().map(owned), message.payload().map(owned));
                let position = (partition, message.offset());
                messages.push((position, Message { partition: Some(partition), key, value }));
            }
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            // librdkafka reports a lost connection and recovers by itself.
            Some(Err(_)) | None => {}
        }
    }
    messages.sort_by_key(|&(position, _)| position);
    messages
}
