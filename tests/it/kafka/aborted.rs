//! Messages of aborted transactions never reach a table.

use super::shop::{Shop, event, fates};
use super::tally::{Fate, Sent};
use super::{Broker, End, Message, Producer, tables};

/// Returns events `from..from + count` and their fates, over three partitions.
fn slice(from: i64, count: i64) -> (Vec<Message>, Vec<Fate>) {
    let event = |n: i64| {
        let value = event(n);
        let text = |field: &str| value[field].as_str().unwrap().to_owned();
        (Message::json((n % 3) as i32, "key", &value), Fate::Event(text("id"), text("user")))
    };
    (from..from + count).map(event).unzip()
}

#[test]
fn aborted_transactions_are_never_stored_whatever_the_groups_protocol() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "aborted", 3);
    let producer = Producer::transactional(&broker.address(), &shop.topic);
    let mut sent = Vec::new();
    let protocols = ["classic", "consumer"];
    let consume = |protocol: &str| {
        let settings = ["protocol", "group"].map(|key| match key {
            "group" => format!("kafka.group={}-{protocol}", shop.topic),
            _ => format!("kafka.protocol={protocol}"),
        });
        shop.consume_once(&["--root", protocol, "--set", &settings[0], "--set", &settings[1]])
    };
    // First the topic ends with an aborted transaction, then with a committed one.
    for (aborted, committed) in [(1_000, 0), (2_000, 60)] {
        let (messages, fates_of) = slice(committed, 60);
        let (mut thrown_away, _) = slice(aborted, 30);
        thrown_away.push(Message::tombstone(0, "key"));
        thrown_away.push(Message::new(1, "key", "no JSON"));
        // It also holds an event of a committed transaction, which must not be taken for a duplicate.
        thrown_away.push(messages[0].clone());
        if committed == 60 {
            producer.transaction(&shop.topic, &thrown_away, End::Abort);
        }
        let positions = producer.transaction(&shop.topic, &messages, End::Commit);
        sent.extend(positions.into_iter().zip(fates_of).map(|(position, fate)| Sent { position, fate }));
        if committed == 0 {
            producer.transaction(&shop.topic, &thrown_away, End::Abort);
        }
        for protocol in protocols {
            assert_eq!(fates(&consume(protocol)), [60, 60, 0, 0], "{protocol}");
            tables::check(&shop.workspace.path(protocol), &shop.topic, &sent);
        }
    }
    for protocol in protocols {
        assert_eq!(fates(&consume(protocol)), [0; 4], "{protocol}");
    }
}
