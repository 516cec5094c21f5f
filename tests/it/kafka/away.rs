//! Unreachable brokers and missing topics.

use std::time::Duration;

use super::shop::{Shop, events, fates};
use super::{Broker, tables};
use crate::programs::stderr;

/// An address without a listener.
const NOWHERE: &str = "127.0.0.1:1";

#[test]
fn a_topic_that_does_not_exist_names_the_nearest() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "newsletter-openings", 1);
    let said = stderr(&shop.consume_in_vain(&["--set", "kafka.topic=newsleter-openings"]));
    assert!(said.contains("no topic `newsleter-openings`; the nearest that they have: "), "{said}");
    assert!(said.contains(&format!("`{}`", shop.topic)) && said.contains("kafka.topic"), "{said}");
    assert!(!said.contains("__consumer_offsets"), "{said}");
    assert!(!shop.workspace.root().exists());
}

#[test]
fn a_broker_that_is_away_at_the_start_is_waited_for_no_longer_than_said() {
    let shop = Shop::at(NOWHERE, "interactions");
    for once in [&["--once"][..], &[]] {
        let output = shop.consume(once).args(["--set", "kafka.patience=1s"]).output().unwrap();
        let said = stderr(&output);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{said}");
        assert!(
            said.contains(&format!("no broker of kafka.brokers = \"{NOWHERE}\" answered within 1s")),
            "{said}"
        );
        assert!(said.contains("Connection refused"), "{said}");
    }
    // Ctrl-C while waiting.
    let mut consumer = shop.start(&[]);
    consumer.wait_for("word of the broker", |consumer| consumer.said().contains("waiting for").then_some(()));
    assert_eq!(fates(&consumer.stop()), [0; 4]);
    assert!(!shop.workspace.root().exists());
}

#[test]
fn a_broker_that_goes_away_meanwhile_is_waited_for() {
    let Some(mut broker) = Broker::start() else { return };
    let shop = Shop::new(&broker, "away", 2);
    // The patience at the start does not apply later.
    let mut consumer = shop.start(&["--set", "kafka.patience=2s"]);
    let stored = || tables::events(&shop.workspace.root()).len();
    shop.send(&events(0, 0..50));
    consumer.wait_for("the first events", |_| (stored() == 50).then_some(()));
    broker.kill();
    std::thread::sleep(Duration::from_secs(3));
    consumer.check();
    broker.restart();
    shop.send(&events(0, 50..100));
    shop.send(&events(1, 100..150));
    consumer.wait_for("what came after", |_| (stored() == 150).then_some(()));
    assert_eq!(fates(&consumer.stop()), [150, 150, 0, 0]);
}
