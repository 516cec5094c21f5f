//! `--metrics`: what a monitoring system reads.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::consumer::Consumer;
use super::shop::{Shop, events, fates};
use super::{Broker, End, Message, Producer};
use crate::programs::stderr;

/// Returns the address that a consumer reports for its metrics.
fn address(consumer: &Consumer) -> Option<String> {
    let said = consumer.said();
    let url = said.split("metrics at http://").nth(1)?;
    Some(url.split("/metrics").next()?.to_owned())
}

/// Returns the status and body of a response.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Returns each number by its name, without the program's prefix.
fn numbers(address: &str) -> BTreeMap<String, f64> {
    let (status, text) = get(address, "/metrics");
    assert!(status == 200 && text.ends_with("# EOF\n"), "{status}: {text}");
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let number = |line: &str| {
        let (name, number) = line.rsplit_once(' ').unwrap();
        (name.strip_prefix("climber_pilot_consumer_").unwrap().to_owned(), number.parse().unwrap())
    };
    samples.map(number).collect()
}

/// True if no message of the partitions is left to be read or stored.
fn has_caught_up(numbers: &BTreeMap<String, f64>) -> bool {
    let lag = |kind: &str, partition: i32| numbers.get(&format!("{kind}{{partition=\"{partition}\"}}"));
    (0..2).all(|p| ["lag_messages", "committed_lag_messages"].iter().all(|kind| lag(kind, p) == Some(&0.0)))
}

#[test]
fn metrics_are_served_and_no_lag_is_left_in_the_end() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "metrics", 2);
    let producer = Producer::transactional(&broker.address(), &shop.topic);
    let mut messages = [events(0, 0..100), events(1, 100..150), events(0, [7])].concat();
    messages.extend([
        Message::tombstone(1, "key"),
        Message::tombstone(1, "key"),
        Message::new(1, "key", "{"),
    ]);
    producer.transaction(&shop.topic, &messages, End::Commit);
    // An aborted message and the marks of both transactions follow the last message.
    producer.transaction(&shop.topic, &events(0, 500..520), End::Abort);

    let mut consumer = shop.start(&["--metrics", "127.0.0.1:0"]);
    let address = consumer.wait_for("the address of the metrics", address);
    let numbers = consumer.wait_for("the end of all lag", |_| {
        let numbers = numbers(&address);
        (numbers["accepted_events_total"] == 150.0 && has_caught_up(&numbers)).then_some(numbers)
    });
    for (name, number) in [
        ("messages_total{partition=\"0\"}", 101.0),
        ("messages_total{partition=\"1\"}", 53.0),
        ("duplicate_events_total", 1.0),
        ("dead_letters_total{reason=\"tombstone\"}", 2.0),
        ("dead_letters_total{reason=\"malformed_json\"}", 1.0),
        ("committed_offset{partition=\"0\"}", 101.0),
        ("committed_offset{partition=\"1\"}", 53.0),
        ("end_offset{partition=\"0\"}", 123.0),
        ("known_ids", 150.0),
        ("conflicts_total", 0.0),
    ] {
        assert_eq!(numbers.get(name), Some(&number), "{name}: {numbers:?}");
    }
    // Some commits only record where reading begins.
    assert!((1.0..=numbers["commits_total"]).contains(&numbers["visible_seconds_count"]), "{numbers:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((0.0..600.0).contains(&(now - numbers["last_commit_timestamp_seconds"])), "{numbers:?}");
    assert_eq!(get(&address, "/").0, 404);
    assert_eq!(fates(&consumer.stop()), [154, 150, 1, 3]);

    // A consumer that finds nothing new reports no lag.
    let log = shop.workspace.path("consumer.log");
    std::fs::remove_file(&log).unwrap();
    let mut consumer = shop.start(&["--metrics", "0"]);
    let address = consumer.wait_for("the address of the metrics", self::address);
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    consumer.wait_for("no lag", |_| has_caught_up(&self::numbers(&address)).then_some(()));
    assert_eq!(fates(&consumer.stop()), [0; 4]);
}

#[test]
fn an_address_that_is_taken_ends_the_program_before_anything_is_read() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let shop = Shop::at("127.0.0.1:1", "interactions");
    let said = stderr(&shop.consume_in_vain(&["--metrics", &address]));
    assert!(said.contains(&format!("--metrics {address}: ")), "{said}");
    shop.workspace.fail("pipeline", &["consume", "--metrics", "everywhere:1"], 2);
}
