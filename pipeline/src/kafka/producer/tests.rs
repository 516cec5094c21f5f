use std::collections::BTreeSet;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use super::*;

/// A broker in this process with the topic `clicks`.
pub(crate) fn broker(partitions: i32) -> (MockCluster<'static, DefaultProducerContext>, Kafka) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("clicks", partitions, 1).unwrap();
    let brokers = cluster.bootstrap_servers();
    let patience = Span::seconds(20);
    (cluster, Kafka { brokers, topic: "clicks".into(), patience, ..Kafka::default() })
}

/// A message: partition, key, value.
pub(crate) type Received = (i32, Option<Vec<u8>>, Option<Vec<u8>>);

/// Waits for the first message of partition 0.
pub(crate) fn receive_some(kafka: &Kafka) {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", &kafka.brokers).set("group.id", "test");
    let consumer: BaseConsumer = settings.create().unwrap();
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(&kafka.topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&from).unwrap();
    consumer.poll(Duration::from_secs(20)).expect("no message").unwrap();
}

/// The first `n` messages of the topic, each partition in its order; asserts that there are no more.
pub(crate) fn receive(kafka: &Kafka, partitions: i32, n: usize) -> Vec<Received> {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", &kafka.brokers).set("group.id", "test");
    let consumer: BaseConsumer = settings.create().unwrap();
    let mut from = TopicPartitionList::new();
    for partition in 0..partitions {
        from.add_partition_offset(&kafka.topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&from).unwrap();
    let mut messages = Vec::new();
    while messages.len() < n {
        let message = consumer.poll(Duration::from_secs(20)).expect("fewer messages than expected").unwrap();
        let bytes = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
        messages.push((message.partition(), bytes(message.key()), bytes(message.payload())));
    }
    let held = (0..partitions).map(|partition| {
        consumer.fetch_watermarks(&kafka.topic, partition, Duration::from_secs(20)).unwrap().1 as usize
    });
    assert_eq!(held.sum::<usize>(), n, "messages of the topic");
    messages
}

#[test]
fn each_message_arrives_once_in_the_order_of_its_key() {
    let (cluster, mut kafka) = broker(4);
    // The mock broker appends requests that are sent again, so requests in flight when a connection breaks would be stored
    // twice; a real broker recognizes them by their sequence numbers.
    kafka.properties.insert("max.in.flight.requests.per.connection".into(), "1".into());
    // Two requests fail; their messages are sent again.
    let errors =
        [RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT];
    cluster.request_errors(RDKafkaApiKey::Produce, &errors);
    let producer = Producer::connect(&kafka, "clicks", &Interrupt::default()).unwrap();
    for n in 0..500usize {
        let (key, value) = (format!("u{}", n % 20), format!("{n}"));
        producer.send(Some(key.as_bytes()), Some(value.as_bytes()), n + 1).unwrap();
    }
    producer.send(None, None, 0).unwrap();
    assert_eq!(producer.finish().unwrap(), 501);
    assert_eq!(producer.take_acknowledged().into_iter().collect::<BTreeSet<_>>(), (1..=500).collect());
    let messages = receive(&kafka, 4, 501);
    let mut last = std::collections::BTreeMap::new();
    for (partition, key, value) in messages {
        let Some(key) = key else {
            assert_eq!(value, None, "a tombstone");
            continue;
        };
        let value: usize = String::from_utf8(value.unwrap()).unwrap().parse().unwrap();
        let before = last.insert(key, (partition, value));
        assert!(before.is_none_or(|(p, v)| p == partition && v < value));
    }
}

#[test]
fn a_broker_that_is_away_is_an_error_that_says_so() {
    let mut kafka = Kafka { brokers: "127.0.0.1:1".into(), patience: Span { ms: 1_500 }, ..Kafka::default() };
    kafka.properties.insert("sasl.password".into(), "env:PATH".into());
    let error = Producer::connect(&kafka, "clicks", &Interrupt::default()).err().unwrap().to_string();
    assert!(
        error.contains("127.0.0.1:1") && error.contains("1500ms") && error.contains("refused"),
        "{error}"
    );
    assert!(!error.contains(&std::env::var("PATH").unwrap()));

    let stopped = Interrupt::default();
    stopped.request();
    let error = Producer::connect(&kafka, "clicks", &stopped).err().unwrap();
    assert!(matches!(error, SendError::Interrupted));
}

#[test]
fn what_is_not_acknowledged_is_counted() {
    let (cluster, mut kafka) = broker(1);
    kafka.patience = Span { ms: 1_500 };
    kafka.properties.insert("message.max.bytes".into(), "2000".into());
    let producer = Producer::connect(&kafka, "clicks", &Interrupt::default()).unwrap();
    producer.send(None, Some(b"small"), 0).unwrap();
    producer.send(None, Some(&[b'x'; 5_000]), 0).unwrap();
    let error = producer.finish().unwrap_err();
    assert!(matches!(error, SendError::Failed { failed: 1, acknowledged: 1, .. }), "{error}");

    let producer = Producer::connect(&kafka, "clicks", &Interrupt::default()).unwrap();
    producer.send(None, Some(b"before"), 0).unwrap();
    producer.flush();
    cluster.broker_down(-1).unwrap();
    let started = Instant::now();
    let mut sent = 1;
    while producer.send(None, Some(b"while it is away"), 0).is_ok() {
        sent += 1;
        std::thread::sleep(Duration::from_millis(10));
        assert!(started.elapsed() < Duration::from_secs(60), "it never gives up");
    }
    let error = producer.finish().unwrap_err();
    let SendError::Failed { failed, acknowledged, .. } = error else { panic!("{error}") };
    assert_eq!((acknowledged, failed), (1, sent));
}
