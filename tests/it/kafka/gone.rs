//! A topic that differs from what the tables remember: deleted messages, and a recreated topic.

use std::time::Duration;

use serde_json::{Value, json};

use super::shop::{Shop, events, fates};
use super::{Broker, Message, tables};
use crate::programs::{json, stderr};

fn gone(shop: &Shop, from: i64, to: i64) -> Value {
    json!([{ "topic": shop.topic, "partition": 0, "from": from, "to": to }])
}

/// Returns the stored offsets of partition 0.
fn stored(shop: &Shop) -> Vec<i64> {
    stored_of(shop, "")
}

/// [`stored`] for a recreated topic, whose sources have this ending.
fn stored_of(shop: &Shop, ending: &str) -> Vec<i64> {
    let source = shop.source(0) + ending;
    let rows = tables::events(&shop.workspace.root());
    let mut offsets: Vec<i64> =
        rows.into_iter().filter(|((of, _), _)| *of == source).map(|((_, at), _)| at).collect();
    offsets.sort_unstable();
    offsets
}

#[test]
fn what_retention_deleted_is_named_and_the_rest_is_stored() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "retention", 2);
    shop.send(&events(0, 0..100));
    assert_eq!(fates(&shop.consume_once(&[])), [100, 100, 0, 0]);
    shop.send(&events(0, 100..200));
    shop.send(&events(1, 200..210));
    broker.delete_before(&shop.topic, 0, 150);
    let output = shop.consume(&["--once"]).output().unwrap();
    let (said, report) = (stderr(&output), json(&output));
    let words = format!("`{}` partition 0: offsets 100 to 149 are gone", shop.topic);
    assert!(output.status.success() && said.contains(&words), "{said}");
    assert_eq!((fates(&report), &report["gone"]), ([60, 60, 0, 0], &gone(&shop, 100, 150)));
    assert_eq!(stored(&shop), (0..100).chain(150..200).collect::<Vec<_>>());
    // It is reported once.
    let report = shop.consume_once(&[]);
    assert_eq!((fates(&report), &report["gone"]), ([0; 4], &json!([])));

    // Everything is gone, and nothing came since.
    shop.send(&events(0, 300..310));
    broker.delete_before(&shop.topic, 0, 210);
    let report = shop.consume_once(&[]);
    assert_eq!((fates(&report), &report["gone"]), ([0; 4], &gone(&shop, 200, 210)));
    shop.send(&events(0, [310]));
    let report = shop.consume_once(&[]);
    assert_eq!((fates(&report), &report["gone"]), ([1, 1, 0, 0], &json!([])));
    assert_eq!(stored(&shop).last(), Some(&210));
}

#[test]
fn what_is_deleted_before_a_running_consumer_reads_it_is_named_too() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "overtaken", 2);
    shop.send(&events(0, 0..10));
    shop.send(&events(1, 1_000..1_010));
    let mut consumer = shop.start(&[]);
    let has = |count: usize| (tables::events(&shop.workspace.root()).len() == count).then_some(());
    consumer.wait_for("the first events", |_| has(20));
    // Until the broker has answered the pending request, which takes half a second without messages.
    consumer.signal("STOP");
    std::thread::sleep(Duration::from_millis(1_500));
    shop.send(&events(0, 10..100));
    shop.send(&events(1, 1_010..1_020));
    broker.delete_before(&shop.topic, 0, 60);
    consumer.signal("CONT");
    consumer.wait_for("the rest", |_| has(70));
    shop.send(&events(0, 100..110));
    consumer.wait_for("what comes later", |_| has(80));
    let report = consumer.stop();
    assert_eq!((fates(&report), &report["gone"]), ([80, 80, 0, 0], &gone(&shop, 10, 60)));
    assert_eq!(stored(&shop), (0..10).chain(60..110).collect::<Vec<_>>());
}

#[test]
fn a_topic_that_was_made_anew_and_is_longer_is_refused_or_read_from_its_beginning() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "longer", 1);
    shop.send(&events(0, 0..100));
    assert_eq!(fates(&shop.consume_once(&[])), [100, 100, 0, 0]);
    broker.recreate_topic(&shop.topic, 1);
    shop.send(&events(0, 1_000..1_500));
    let said = stderr(&shop.consume_in_vain(&[]));
    for words in ["up to offset 100", "topic id `", "cluster id `", "ends at 500", "kafka.recreated"] {
        assert!(said.contains(words), "`{words}`: {said}");
    }
    assert_eq!(stored(&shop), (0..100).collect::<Vec<_>>());
    let anew = ["--set", "kafka.recreated=from-start"];
    assert_eq!(fates(&shop.consume_once(&anew)), [500, 500, 0, 0]);
    assert_eq!(stored(&shop), (0..100).collect::<Vec<_>>());
    assert_eq!(stored_of(&shop, "#1"), (0..500).collect::<Vec<_>>());
    // From now on this is the topic.
    shop.send(&events(0, 1_500..1_510));
    assert_eq!(fates(&shop.consume_once(&[])), [10, 10, 0, 0]);
    assert_eq!(fates(&shop.consume_once(&anew)), [0, 0, 0, 0]);
}

/// The client does not notice: it continues at the old offset of the new topic.
#[test]
fn a_topic_that_is_made_anew_while_a_consumer_is_suspended_is_refused_or_read_from_its_beginning() {
    let Some(broker) = Broker::shared() else { return };
    for (setting, name) in [(None, "suspended"), (Some("kafka.recreated=from-start"), "suspended-anew")] {
        let shop = Shop::new(broker, name, 1);
        shop.send(&events(0, 0..100));
        let set: Vec<&str> = setting.iter().flat_map(|setting| ["--set", setting]).collect();
        let mut consumer = shop.start(&set);
        let has = |count: usize| (tables::events(&shop.workspace.root()).len() == count).then_some(());
        consumer.wait_for("the first events", |_| has(100));
        consumer.signal("STOP");
        std::thread::sleep(Duration::from_millis(1_500));
        broker.recreate_topic(&shop.topic, 1);
        shop.send(&events(0, 1_000..1_500));
        consumer.signal("CONT");
        match setting {
            None => {
                let said = consumer.wait_for_failure();
                assert!(said.contains("kafka.recreated") && said.contains("up to offset 100"), "{said}");
                assert_eq!(tables::events(&shop.workspace.root()).len(), 100);
            }
            Some(_) => {
                consumer.wait_for("the new topic", |_| has(600));
                assert_eq!(fates(&consumer.stop()), [600, 600, 0, 0]);
                assert_eq!(stored_of(&shop, "#1"), (0..500).collect::<Vec<_>>());
            }
        }
        assert_eq!(stored(&shop), (0..100).collect::<Vec<_>>());
    }
}

/// The same bad bytes at the same offset of the recreated topic are another record.
#[test]
fn dead_letters_of_a_topic_that_was_made_anew_are_its_own() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "poison", 1);
    let poison = || vec![Message::new(0, "k", "no json")];
    shop.send(&poison());
    assert_eq!(fates(&shop.consume_once(&[])), [1, 0, 0, 1]);
    broker.recreate_topic(&shop.topic, 1);
    shop.send(&poison());
    shop.send(&poison());
    assert_eq!(fates(&shop.consume_once(&["--set", "kafka.recreated=from-start"])), [2, 0, 0, 2]);
    let verified = shop.workspace.command("pipeline", &["inspect", "--verify"]).output().unwrap();
    assert!(verified.status.success(), "{}", stderr(&verified));
    // Each one is sent back once.
    let target = broker.create_topic("mended", 1);
    let replay = ["dead-letters", "replay", "--all", "--topic", &target, "--json"];
    for sent in [3, 0] {
        assert_eq!(json(&shop.workspace.succeed("pipeline", &replay))["sent"], sent);
    }
}

/// Seconds read as milliseconds: nothing is stored before the question is answered.
#[test]
fn times_that_cannot_be_meant_stop_a_consumer_with_a_question() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "seconds", 1);
    let messages: Vec<Message> = (0..20)
        .map(|n| {
            let mut event = super::shop::event(n);
            event["time"] = json!(1_600_000_000 + n);
            Message::json(0, "key", &event)
        })
        .collect();
    shop.send(&messages);
    let said = stderr(&shop.consume_in_vain(&[]));
    for words in ["are these seconds?", "1970", "2020", "events.check_times = false", &shop.topic] {
        assert!(said.contains(words), "`{words}`: {said}");
    }
    assert!(stored(&shop).is_empty());
    assert_eq!(fates(&shop.consume_once(&["--set", "events.ts_format=s"])), [20, 20, 0, 0]);
    // With the times as they are, into another root.
    let meant = ["--set", "events.check_times=false", "--root", "another"];
    assert_eq!(fates(&shop.consume_once(&meant)), [20, 20, 0, 0]);
}

#[test]
fn a_topic_that_was_made_anew_and_is_shorter_is_refused() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "anew", 1);
    shop.send(&events(0, 0..20));
    shop.consume_once(&[]);
    broker.recreate_topic(&shop.topic, 1);
    shop.send(&events(0, 100..105));
    let said = stderr(&shop.consume_in_vain(&[]));
    for words in ["up to offset 20", "the partition ends at 5", "another topic name, or into another root"] {
        assert!(said.contains(words), "`{words}`: {said}");
    }
    assert_eq!(stored(&shop), (0..20).collect::<Vec<_>>());
    // As the message suggests.
    assert_eq!(fates(&shop.consume_once(&["--root", "another"])), [5, 5, 0, 0]);
}
