//! Fates of messages: a row of `events`, a duplicate of one, or a dead letter with its reason.

use serde_json::json;

use super::shop::{Shop, event, events, fates};
use super::tables::{self, DeadLetter};
use super::{Broker, Message};
use crate::programs::json;

#[test]
fn each_message_is_an_event_a_duplicate_or_a_dead_letter_with_its_reason() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "fates", 1);
    let with = |field: &str, value: serde_json::Value| {
        let mut event = event(3);
        event[field] = value;
        event.to_string().into_bytes()
    };
    let message = |value: Vec<u8>| Message::new(0, "its key", value);
    let no_key = |value: Vec<u8>| Message { key: None, ..message(value) };
    let accepted = [
        message(with("campaign", json!({ "nobody": ["asked", "for"] }))),
        no_key(event(1).to_string().into_bytes()),
        message(event(2).to_string().into_bytes()),
    ];
    let rejected = [
        (Message::tombstone(0, "its key"), "tombstone"),
        (Message { key: None, ..Message::tombstone(0, "") }, "tombstone"),
        (message(with("item", json!(null))), "missing_field"),
        (message(b"{\"user\": \"u1\"}".into()), "missing_field"),
        (message(with("time", json!("soon"))), "invalid_time"),
        (message(with("time", json!(-1))), "time_out_of_range"),
        (message(with("user", json!(["u1"]))), "wrong_type"),
        (message(b"{\"user\": ".into()), "malformed_json"),
        (no_key(b"".into()), "malformed_json"),
        (message(b"{\"user\": \"\xff\"}".into()), "invalid_utf8"),
        (message(with("comment", json!("x".repeat(2_000)))), "too_long"),
    ];
    let again = [message(event(1).to_string().into_bytes()), message(with("item", json!("other")))];
    shop.send(&accepted);
    shop.send(&rejected.clone().map(|(message, _)| message));
    shop.send(&again);
    let report = shop.consume_once(&[]);
    assert_eq!(fates(&report), [16, 3, 2, 11], "{report}");
    let reasons = json!({
        "tombstone": 2, "missing_field": 2, "invalid_time": 1, "time_out_of_range": 1, "wrong_type": 1,
        "malformed_json": 2, "invalid_utf8": 1, "too_long": 1
    });
    assert_eq!(report["reasons"], reasons);
    assert_eq!((&report["gone"], &report["drained"]), (&json!([]), &json!(true)));

    let expected: Vec<DeadLetter> = (3..)
        .zip(&rejected)
        .map(|(position, (message, reason))| DeadLetter {
            source: shop.source(0),
            position,
            key: message.key.clone(),
            value: message.value.clone().unwrap_or_default(),
            reason: (*reason).into(),
        })
        .collect();
    assert_eq!(tables::letters(&shop.workspace.root()), expected);

    // An event sent again later is still the stored one; nothing earlier is read again.
    shop.send(&events(0, [2, 4, 1]));
    assert_eq!(fates(&shop.consume_once(&[])), [3, 1, 2, 0]);
    assert_eq!(fates(&shop.consume_once(&[])), [0; 4]);
    let mut stored: Vec<i64> =
        tables::events(&shop.workspace.root()).into_iter().map(|((_, position), _)| position).collect();
    stored.sort_unstable();
    assert_eq!(stored, [0, 1, 2, 17]);
    assert_eq!(tables::letters(&shop.workspace.root()), expected);
    shop.workspace.succeed("pipeline", &["inspect", "--verify", "events"]);
}

#[test]
fn messages_that_were_rejected_for_a_wrong_configuration_come_back() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "mended", 2);
    shop.send(&events(0, 0..20));
    shop.send(&events(1, 20..30));
    shop.send(&[Message::new(1, "key", "no JSON")]);
    let wrong = ["--set", "events.columns.item_id=product"];
    let report = shop.consume_once(&wrong);
    assert_eq!(fates(&report), [31, 0, 0, 31]);
    assert_eq!(report["reasons"], json!({ "missing_field": 30, "malformed_json": 1 }));

    let replay = || {
        let args = ["dead-letters", "replay", "--reason", "missing_field", "--json"];
        json(&shop.workspace.succeed("pipeline", &args))
    };
    assert_eq!(replay()["sent"], 30);
    assert_eq!(fates(&shop.consume_once(&[])), [30, 30, 0, 0]);
    let mut ids: Vec<String> = tables::rows_as_text(&shop.workspace.root(), "events", &["event_id"]).concat();
    let mut expected: Vec<String> = (0..30).map(|n| format!("e{n}")).collect();
    ids.sort();
    expected.sort();
    assert_eq!(ids, expected);
    // Messages that came back are not sent once more.
    let report = replay();
    assert_eq!(
        (&report["selected"], &report["sent_before"], &report["sent"]),
        (&json!(30), &json!(30), &json!(0))
    );
    assert_eq!(fates(&shop.consume_once(&[])), [0; 4]);
}
