//! Reads a topic with librdkafka and throws everything away: the upper limit of what `pipeline consume` can reach.
//!
//! ```sh
//! cargo run --release -p pipeline --example bare_consumer -- localhost:9092 interactions
//! ```
//!
//! Reads every partition from its beginning to the end that it has at the start, with the settings of `pipeline consume`
//! that matter for speed, and prints one line of JSON.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const ASK: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().context("give the brokers and the topic")?;
    let topic = arguments.next().context("give the topic too")?;
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("group.id", "bare-consumer")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("queued.max.messages.kbytes", "65536")
        .set("fetch.queue.backoff.ms", "10")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(&topic), ASK)?;
    let partitions = metadata.topics().first().map(|topic| topic.partitions().len()).unwrap_or_default();
    let (mut assignment, mut left) = (TopicPartitionList::new(), BTreeMap::new());
    for partition in 0..i32::try_from(partitions)? {
        let (low, high) = consumer.fetch_watermarks(&topic, partition, ASK)?;
        assignment.add_partition_offset(&topic, partition, Offset::Offset(low))?;
        if high > low {
            left.insert(partition, high);
        }
    }
    consumer.assign(&assignment)?;
    let (mut messages, mut bytes) = (0u64, 0u64);
    let started = Instant::now();
    while !left.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                messages += 1;
                bytes += (message.payload_len() + message.key_len()) as u64;
                if left.get(&message.partition()).is_some_and(|&end| message.offset() + 1 >= end) {
                    left.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                left.remove(&partition);
            }
            Some(Err(error)) => return Err(error.into()),
            None => {}
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{{\"messages\": {messages}, \"bytes\": {bytes}, \"seconds\": {seconds:.3}}}");
    Ok(())
}
