//! Checks that the tests' Kafka behaves like one.

use serde_json::json;

use super::{Broker, Cluster, End, Isolation, Message, Position, Producer, Registry, read_topic};

fn events(from: i32, count: i32) -> Vec<Message> {
    let event = |i: i32| {
        Message::json(i % 3, &format!("u{}", i % 7), &json!({ "user": format!("u{}", i % 7), "number": i }))
    };
    (from..from + count).map(event).collect()
}

fn sorted(positions: Vec<Position>, messages: &[Message]) -> Vec<(Position, Message)> {
    let mut pairs: Vec<_> = positions.into_iter().zip(messages.iter().cloned()).collect();
    pairs.sort_by_key(|&(position, _)| position);
    pairs
}

fn reads_back_what_was_sent(cluster: &Cluster) {
    let topic = cluster.create_topic("read-back", 3);
    let mut messages = events(0, 1_000);
    messages.push(Message::tombstone(1, "gone"));
    messages.push(Message { key: Some(b"anywhere".into()), value: Some(b"{}".into()), ..Message::default() });
    let sent = sorted(Producer::new(&cluster.address()).send(&topic, &messages), &messages);
    let read = read_topic(&cluster.address(), &topic, 3, Isolation::ReadCommitted);
    assert_eq!(read.len(), 1_002);
    for ((sent_at, sent), (read_at, read)) in sent.iter().zip(&read) {
        assert_eq!((sent_at, &sent.key, &sent.value), (read_at, &read.key, &read.value));
    }
    // Partitions that the test chose are filled from offset 0 without gaps.
    assert!((0..333).all(|offset| sent.iter().any(|&(position, _)| position == (2, offset))));
}

#[test]
fn a_topic_holds_what_was_sent() {
    reads_back_what_was_sent(&Cluster::start());
}

#[test]
fn so_does_one_of_the_imitation() {
    reads_back_what_was_sent(&Cluster::mock());
}

#[test]
fn a_killed_broker_has_everything_when_it_is_back() {
    let Some(mut broker) = Broker::start() else { return };
    let topic = broker.create_topic("killed", 3);
    let (first, second) = (events(0, 1_000), events(1_000, 500));
    let producer = Producer::new(&broker.address());
    let mut sent = sorted(producer.send(&topic, &first), &first);
    let (address, process) = (broker.address(), broker.process());
    broker.kill();
    broker.restart();
    assert_eq!(broker.address(), address);
    assert_ne!(broker.process(), process);
    assert_eq!(read_topic(&address, &topic, 3, Isolation::ReadCommitted), sent);
    // A producer from before the kill goes on.
    sent.extend(sorted(producer.send(&topic, &second), &second));
    sent.sort_by_key(|&(position, _)| position);
    assert_eq!(read_topic(&address, &topic, 3, Isolation::ReadCommitted), sent);
}

#[test]
fn aborted_transactions_lie_in_the_topic_and_are_not_read() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.create_topic("transactions", 3);
    let producer = Producer::transactional(&broker.address(), &topic);
    let (committed, aborted, last) = (events(0, 100), events(100, 100), events(200, 10));
    let mut sent = sorted(producer.transaction(&topic, &committed, End::Commit), &committed);
    let thrown_away = sorted(producer.transaction(&topic, &aborted, End::Abort), &aborted);
    sent.extend(sorted(producer.transaction(&topic, &last, End::Commit), &last));
    sent.sort_by_key(|&(position, _)| position);
    assert_eq!(read_topic(&broker.address(), &topic, 3, Isolation::ReadCommitted), sent);
    let everything = read_topic(&broker.address(), &topic, 3, Isolation::ReadUncommitted);
    assert_eq!(everything.len(), 210);
    assert!(thrown_away.iter().all(|message| everything.contains(message)));
}

#[test]
fn a_registry_gives_back_schemas_by_id() {
    let Some(registry) = Registry::shared() else { return };
    assert!(registry.address().starts_with("http://127.0.0.1:"));
    let field = |name: &str| json!({ "name": name, "type": "string" });
    let avro = |fields: &[&str]| {
        let fields: Vec<_> = fields.iter().map(|name| field(name)).collect();
        json!({ "type": "record", "name": "Event", "fields": fields }).to_string()
    };
    let (one, two) = (avro(&["user"]), avro(&["user", "item"]));
    let proto = "syntax = \"proto3\";\npackage shop;\nmessage Event { string user = 1; }\n";
    let ids = [
        registry.register("one-value", "AVRO", &one),
        registry.register("two-value", "AVRO", &two),
        registry.register("proto-value", "PROTOBUF", proto),
    ];
    assert_eq!(registry.register("one-value", "AVRO", &one), ids[0]);
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(parsed(&registry.schema(ids[0])), parsed(&one));
    assert_eq!(parsed(&registry.schema(ids[1])), parsed(&two));
    assert!(registry.schema(ids[2]).contains("message Event"));
}
