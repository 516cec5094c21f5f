//! A topic that still brings events of a forgotten user.

use serde_json::json;

use super::shop::{Shop, counts, event};
use super::{Broker, Message, tables};

const USER: &str = "person-77";

/// Returns event `n` of the person.
fn of_person(n: i64) -> Message {
    let mut value = event(n);
    value["user"] = json!(USER);
    Message::json(0, USER, &value)
}

#[test]
fn nobody_who_was_forgotten_comes_back_by_a_topic() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "forgotten", 1);
    let other = |n: i64| Message::json(0, "key", &event(n));
    let broken = || Message::new(0, USER, &b"{\"user\": "[..]);
    shop.send(&[of_person(1), other(2), broken()]);
    let all = ["messages", "accepted", "duplicates", "dead_letters", "forgotten"];
    assert_eq!(counts(&shop.consume_once(&[]), all), [3, 2, 0, 1, 0]);
    shop.workspace.succeed("pipeline", &["forget", "--user", USER]);
    assert_eq!(tables::events(&shop.workspace.root()).len(), 1);
    assert_eq!(tables::dead_letters(&shop.workspace.root()).len(), 0);

    shop.send(&[of_person(3), broken(), Message::tombstone(0, USER), other(4)]);
    assert_eq!(counts(&shop.consume_once(&[]), all), [4, 1, 0, 0, 3]);
    // The consumer's offset moves past the omitted messages.
    assert_eq!(counts(&shop.consume_once(&[]), all), [0; 5]);
    shop.send(&[of_person(5)]);
    assert_eq!(counts(&shop.consume_once(&[]), all), [1, 0, 0, 0, 1]);
    assert_eq!(tables::events(&shop.workspace.root()).len(), 2);
    assert_eq!(tables::dead_letters(&shop.workspace.root()).len(), 0);
}

#[test]
fn a_running_consumer_learns_who_was_forgotten() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "forgotten-meanwhile", 1);
    let mut consumer = shop.start(&[]);
    shop.send(&[of_person(1)]);
    let has = |count: usize| (tables::events(&shop.workspace.root()).len() == count).then_some(());
    consumer.wait_for("the first event", |_| has(1));
    shop.workspace.succeed("pipeline", &["forget", "--user", USER]);
    assert_eq!(tables::events(&shop.workspace.root()).len(), 0);
    // The consumer checks after each micro-batch, or after as long without one.
    std::thread::sleep(std::time::Duration::from_secs(3));
    shop.send(&[of_person(2), Message::json(0, "key", &event(3))]);
    consumer.wait_for("the other's event", |_| has(1));
    let report = consumer.stop();
    assert_eq!(counts(&report, ["messages", "accepted", "forgotten"]), [3, 2, 1]);
}
