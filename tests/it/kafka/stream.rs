//! A stream of interactions as producers send them: some are no events, some are sent again.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::tally::{self, Fate, Sent, Stored};
use super::{Broker, End, Isolation, Message, Position, Producer, read_topic};

pub(crate) const PARTITIONS: i32 = 8;
const USERS: u64 = 1_000;

/// Returns message `n` of the stream and its fate: one message in 97 is rejected, for five reasons in turn.
fn message(n: u64, now_ms: u64) -> (Message, Fate) {
    // A user's messages, and so those with one id, are in one partition.
    let user = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let (user, partition) = (format!("u{}", user % USERS), (user % USERS % PARTITIONS as u64) as i32);
    let (id, item, time) = (format!("e{n}"), format!("i{}", n % 5_000), now_ms - 3_600_000 + n);
    if !n.is_multiple_of(97) {
        let event = json!({ "id": id, "user": user, "item": item, "time": time });
        let fate = Fate::Event(id, user.clone());
        return (Message::json(partition, &user, &event), fate);
    }
    let rejected = match n / 97 % 5 {
        0 => Message::new(partition, &user, format!("{{\"id\": \"{id}\", ")),
        1 => Message::json(partition, &user, &json!({ "id": id, "user": user, "time": time })),
        2 => {
            Message::json(partition, &user, &json!({ "id": id, "user": user, "item": item, "time": "soon" }))
        }
        3 => Message::new(partition, &user, b"{\"user\": \"\xff\"}"),
        _ => Message::tombstone(partition, &user),
    };
    (rejected, Fate::DeadLetter(user))
}

/// The stream of messages. Some are sent again: 2 % soon after the first time, 2 % some commits later.
pub(crate) struct Stream {
    next: u64,
    now_ms: u64,
}

impl Stream {
    pub(crate) fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Self { next: 1, now_ms: now.as_millis() as u64 }
    }

    /// Returns the same stream from message `next` on.
    pub(crate) fn at(&self, next: u64) -> Self {
        Self { next, now_ms: self.now_ms }
    }

    /// Returns the next `count` messages, with repetitions in between, and the fate of each.
    pub(crate) fn take(&mut self, count: u64) -> (Vec<Message>, Vec<Fate>) {
        let mut numbers = Vec::new();
        for n in self.next..self.next + count {
            numbers.push(n);
            match n % 50 {
                7 => numbers.push(n - 3),
                32 if n > 4_000 => numbers.push(n - 4_000),
                _ => {}
            }
        }
        self.next += count;
        numbers.into_iter().map(|n| message(n, self.now_ms)).unzip()
    }
}

/// Returns the tables of a consumer that makes no mistake.
fn ideal(topic: &str, messages: Vec<(Position, Message)>) -> Stored {
    let (mut stored, mut ids) = (Stored::new(), HashSet::new());
    for ((partition, offset), message) in messages {
        let key = String::from_utf8(message.key.unwrap()).unwrap();
        let event: Value = serde_json::from_slice(&message.value.unwrap_or_default()).unwrap_or_default();
        let fate = if event["item"].is_string() && event["time"].is_u64() {
            let text = |field: &str| event[field].as_str().unwrap().to_owned();
            Fate::Event(text("id"), text("user"))
        } else {
            Fate::DeadLetter(key)
        };
        if !matches!(&fate, Fate::Event(id, _) if !ids.insert(id.clone())) {
            stored.insert((format!("{topic}-{partition}"), offset), vec![fate]);
        }
    }
    stored
}

#[test]
fn a_consumer_that_makes_no_mistake_passes() {
    let Some(broker) = Broker::shared() else { return };
    let topic = broker.create_topic("ideal", PARTITIONS);
    let producer = Producer::transactional(&broker.address(), &topic);
    let (mut stream, mut sent) = (Stream::new(), Vec::new());
    for i in 0..10 {
        producer.transaction(&topic, &stream.at(1_000_000 + 100 * i).take(100).0, End::Abort);
        let (messages, fates) = stream.take(1_000);
        let positions = producer.transaction(&topic, &messages, End::Commit);
        sent.extend(positions.into_iter().zip(fates).map(|(position, fate)| Sent { position, fate }));
    }
    let stored = ideal(&topic, read_topic(&broker.address(), &topic, PARTITIONS, Isolation::ReadCommitted));
    let fates = || stored.values().flatten();
    let dead = fates().filter(|fate| matches!(fate, Fate::DeadLetter(_))).count();
    // 10,000 messages, of which one in 97 is no event; repeated ones may be among these too.
    assert!((9_890..9_900).contains(&(fates().count() - dead)), "{dead} of {}", fates().count());
    assert!((100..120).contains(&dead) && sent.len() == 10_000 + 200 + 120, "{dead}, {}", sent.len());
    assert_eq!(tally::differences(&topic, &sent, stored.clone()), Vec::<String>::new());
    // A consumer that also reads aborted messages fails.
    let messages = read_topic(&broker.address(), &topic, PARTITIONS, Isolation::ReadUncommitted);
    assert!(tally::differences(&topic, &sent, ideal(&topic, messages)).len() >= 1_000);
}
