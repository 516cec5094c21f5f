//! Avro and Protobuf, with schemas of a registry and with a schema in a file.

use serde_json::{Value, json};

use super::shop::{START, Shop, fates};
use super::{Broker, Message, Registry, tables};
use crate::programs::stderr;

const AVRO: &str = r#"{ "type": "record", "name": "Click", "namespace": "shop", "fields": [
    { "name": "user", "type": "string" }, { "name": "item", "type": "string" },
    { "name": "time", "type": { "type": "long", "logicalType": "timestamp-millis" } },
    { "name": "id", "type": "string" } ] }"#;

/// The same record in another order, with optional fields and an unknown one.
const LATER_AVRO: &str = r#"{ "type": "record", "name": "Click", "namespace": "shop", "fields": [
    { "name": "page", "type": { "type": "enum", "name": "Page", "symbols": ["HOME", "SEARCH"] } },
    { "name": "time", "type": { "type": "long", "logicalType": "timestamp-micros" } },
    { "name": "id", "type": ["null", "string"], "default": null },
    { "name": "item", "type": ["null", "string"] }, { "name": "user", "type": "string" } ] }"#;

const PROTOBUF: &str = r#"
syntax = "proto3";
package shop;
message Page { string path = 1; }
message Click { string user = 1; string item = 2; int64 time = 3; string id = 4; Page page = 9; }
"#;

/// Encodes a number in groups of seven bits, the lowest first.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// Encodes a `long` of Avro.
fn long(number: i64) -> Vec<u8> {
    varint(((number << 1) ^ (number >> 63)) as u64)
}

/// Encodes a `string` of Avro.
fn string(text: &str) -> Vec<u8> {
    [long(text.len() as i64), text.into()].concat()
}

fn avro(n: i64) -> Vec<u8> {
    [string(&format!("u{n}")), string("i1"), long(START + n), string(&format!("e{n}"))].concat()
}

fn later_avro(n: i64, item: Option<&str>) -> Vec<u8> {
    let optional = |text: Option<&str>| text.map_or_else(|| long(0), |text| [long(1), string(text)].concat());
    let id = format!("e{n}");
    let fields =
        [long(1), long((START + n) * 1_000), optional(Some(&id)), optional(item), string(&format!("u{n}"))];
    fields.concat()
}

/// Encodes a length-delimited field of Protobuf.
fn bytes(field: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn protobuf(n: i64) -> Vec<u8> {
    let text = |field, text: String| bytes(field, text.as_bytes());
    let time = [varint(3 << 3), varint((START + n) as u64)].concat();
    let page = bytes(9, &bytes(1, b"/home"));
    [page, text(4, format!("e{n}")), time, text(2, "i1".into()), text(1, format!("u{n}"))].concat()
}

/// Prepends the header of Confluent's clients: 0 and the schema's id.
fn framed(schema: u32, body: &[u8]) -> Vec<u8> {
    [&[0], &schema.to_be_bytes()[..], body].concat()
}

fn send(shop: &Shop, values: Vec<Vec<u8>>) {
    let messages: Vec<Message> = values.into_iter().map(|value| Message::new(0, "key", value)).collect();
    shop.send(&messages);
}

/// Consumes what was sent, and asserts these event numbers in the table and these reasons in the report.
fn check(shop: &Shop, accepted: &[i64], reasons: &Value) {
    let report = shop.consume_once(&[]);
    fates(&report);
    assert_eq!(report["reasons"], *reasons);
    let columns = ["event_id", "user_id", "item_id", "ts"];
    let mut stored = tables::rows_as_text(&shop.workspace.root(), "events", &columns);
    stored.sort();
    let time = |n: i64| format!("2020-09-13T12:26:40.{n:03}Z");
    let row = |n: &i64| vec![format!("e{n}"), format!("u{n}"), "i1".into(), time(*n)];
    assert_eq!(stored, accepted.iter().map(row).collect::<Vec<_>>());
}

fn registry_settings(address: &str, format: &str) -> String {
    format!("format = \"{format}\"\nschema_registry = \"{address}\"\npatience = \"30s\"")
}

#[test]
fn avro_by_the_schemas_of_a_registry() {
    let (Some(broker), Some(registry)) = (Broker::shared(), Registry::shared()) else { return };
    let shop = Shop::new(broker, "avro", 1);
    let subject = format!("{}-value", shop.topic);
    let first = registry.register(&subject, "AVRO", AVRO);
    let later = registry.register(&format!("{subject}-later"), "AVRO", LATER_AVRO);
    let other = registry.register(&format!("{subject}-proto"), "PROTOBUF", PROTOBUF);
    let values = vec![
        framed(first, &avro(1)),
        framed(later, &later_avro(2, Some("i1"))),
        framed(first, &avro(3)),
        framed(later, &later_avro(4, None)),
        framed(999_999, &avro(5)),
        framed(other, &protobuf(6)),
        framed(first, &avro(7)[..5]),
        b"{\"user\": \"u10\"}".into(),
        avro(9),
    ];
    // An unreachable registry stops the program before a message is lost. The program also leaves the group: otherwise the next
    // one would wait for its session to time out, longer than its own patience.
    shop.configure(&registry_settings("http://127.0.0.1:1", "avro").replace("30s", "500ms"));
    send(&shop, vec![framed(first, &avro(8))]);
    let said = stderr(&shop.consume_in_vain(&[]));
    assert!(said.contains("http://127.0.0.1:1") && said.contains("kafka.schema_registry"), "{said}");

    shop.configure(&registry_settings(&registry.address(), "avro"));
    check(&shop, &[8], &json!({}));
    send(&shop, values);
    let reasons = json!({ "unknown_schema": 2, "malformed_binary": 3, "missing_field": 1 });
    check(&shop, &[1, 2, 3, 8], &reasons);
    let unknown = tables::letters(&shop.workspace.root());
    assert_eq!(
        (unknown[1].reason.as_str(), &unknown[1].value),
        ("unknown_schema", &framed(999_999, &avro(5)))
    );
}

#[test]
fn protobuf_by_the_schemas_of_a_registry() {
    let (Some(broker), Some(registry)) = (Broker::shared(), Registry::shared()) else { return };
    let shop = Shop::new(broker, "protobuf", 1);
    let id = registry.register(&format!("{}-value", shop.topic), "PROTOBUF", PROTOBUF);
    // The index of the message in the schema: one number, 1, as zigzag. A lone 0 is the first message, which is no click.
    let place = |place: &[u8], body: Vec<u8>| framed(id, &[place, &body].concat());
    let values = vec![
        place(&[2, 2], protobuf(1)),
        place(&[0], bytes(1, b"/home")),
        place(&[2, 4], protobuf(3)),
        place(&[2, 2], protobuf(4)[..19].into()),
        framed(999_999, &protobuf(5)),
        place(&[2, 2], protobuf(6)),
    ];
    shop.configure(&registry_settings(&registry.address(), "protobuf"));
    send(&shop, values);
    check(&shop, &[1, 6], &json!({ "unknown_schema": 2, "malformed_binary": 1, "missing_field": 1 }));
}

#[test]
fn avro_and_protobuf_by_a_schema_in_a_file() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "avro-file", 1);
    shop.workspace.write("click.avsc", AVRO);
    shop.configure("format = \"avro\"\nschema_file = \"click.avsc\"");
    send(&shop, vec![avro(1), avro(2), framed(1, &avro(3))]);
    check(&shop, &[1, 2], &json!({ "malformed_binary": 1 }));

    let shop = Shop::new(broker, "protobuf-file", 1);
    shop.workspace.write("click.proto", PROTOBUF);
    shop.configure("format = \"protobuf\"\nschema_file = \"click.proto\"\nmessage = \"shop.Click\"");
    send(&shop, vec![protobuf(1), b"\xff".into(), protobuf(2)]);
    check(&shop, &[1, 2], &json!({ "malformed_binary": 1 }));
}
