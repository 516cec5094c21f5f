//! Messages of any bytes: each is an event or a dead letter, whatever its format.

use std::cell::RefCell;

use schemas::config::Events;

use super::{Decoder, Fault, Format, avro as avro_format, json as json_format, protobuf as protobuf_format};
use crate::records::{Forms, Mapping, Slots};

/// A schema with every kind of type, one of them recursive.
pub(crate) const AVRO: &str = r#"{"type":"record","name":"shop.Event","fields":[
    {"name":"before","type":{"type":"array","items":{"type":"map","values":["null","double"]}}},
    {"name":"value","type":["null","double"]},
    {"name":"action","type":{"type":"enum","name":"Action","symbols":["view","cart","purchase"]}},
    {"name":"ts","type":{"type":"long","logicalType":"timestamp-micros"}},
    {"name":"request_ts","type":["null",{"type":"long","logicalType":"timestamp-millis"}]},
    {"name":"request_id","type":["string","null"]},
    {"name":"between","type":{"type":"fixed","name":"F","size":3}},
    {"name":"event_id","type":["null","string"]},
    {"name":"item_id","type":"long"},
    {"name":"user_id","type":"string"},
    {"name":"after","type":["null","shop.Event"]}]}"#;

/// The same as [`AVRO`].
pub(crate) const PROTO: &str = r#"syntax = "proto3"; package shop;
    import "google/protobuf/timestamp.proto"; import "google/protobuf/wrappers.proto";
    enum Action { view = 0; cart = 1; purchase = 2; }
    message Event {
        string user_id = 9; int64 item_id = 2; google.protobuf.Timestamp ts = 3; optional string event_id = 400;
        google.protobuf.StringValue request_id = 5; google.protobuf.Timestamp request_ts = 6;
        Action action = 7; google.protobuf.DoubleValue value = 8; Event after = 1; repeated int32 between = 10;
    }"#;

struct Reader {
    mapping: Mapping,
    decoder: Decoder,
}

impl Reader {
    fn new(format: impl FnOnce(&[String]) -> Format) -> RefCell<Self> {
        let mapping = Mapping::new(&Events::default());
        let slots = Slots::new(&mapping.wanted);
        let format = format(&slots.fields);
        RefCell::new(Self { mapping, decoder: Decoder { slots, format, values: Vec::new() } })
    }

    fn read(&mut self, bytes: &[u8]) {
        match self.decoder.decode(bytes) {
            Ok(decoded) => drop(self.mapping.event(&decoded, &mut Forms::default())),
            Err(Fault::Rejected(_)) => {}
            Err(Fault::Stop(error)) => panic!("one message stops all: {error}"),
        }
    }
}

thread_local! {
    static JSON: RefCell<Reader> = Reader::new(|_| Format::Json(json_format::Json::default()));
    static AVRO_READER: RefCell<Reader> = Reader::new(|fields| {
        let schema = avro_format::Schema::parse(AVRO, &[], fields);
        Format::Avro(schema.unwrap_or_else(|error| panic!("{error}")))
    });
    static PROTO_READER: RefCell<Reader> = Reader::new(|fields| {
        let file = protobuf_format::compile("shop.proto", PROTO.into(), Vec::new());
        let file = file.unwrap_or_else(|error| panic!("{error}"));
        let message = file.messages().next().unwrap_or_else(|| panic!("no message"));
        Format::Protobuf(protobuf_format::Message::new(&message, fields))
    });
}

/// A message in JSON.
pub fn json(bytes: &[u8]) {
    JSON.with_borrow_mut(|reader| reader.read(bytes));
}

/// A message in Avro.
pub fn avro(bytes: &[u8]) {
    AVRO_READER.with_borrow_mut(|reader| reader.read(bytes));
}

/// A message in Protobuf.
pub fn protobuf(bytes: &[u8]) {
    PROTO_READER.with_borrow_mut(|reader| reader.read(bytes));
}

/// An Avro schema from a registry (the first line), and a message (the rest).
pub fn avro_schema(bytes: &[u8]) {
    let split = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (schema, message) = bytes.split_at(split);
    let Ok(text) = std::str::from_utf8(schema) else { return };
    let fields = ["user_id".to_owned(), "item_id".to_owned(), "ts".to_owned()];
    if let Ok(schema) = avro_format::Schema::parse(text, &[], &fields) {
        let mut values = vec![crate::records::Value::Absent; fields.len()];
        let _ = schema.decode(message, &mut values);
    }
}

/// Whole records of [`AVRO`].
pub fn avro_records() -> Vec<Vec<u8>> {
    // No `before`, a value, `cart`, a time, no request, three bytes, an id, an item, a user, nothing after.
    let short = b"\x00\x02\x00\x00\x00\x00\x00\x00\xf0\x3f\x02\x80\x80\xd4\x92\xb4\xe7\x04\x00\x02\xff\xff\xff\x02\x02e\x0e\x04u1\x00";
    // An array of one map with one key, and the record itself inside.
    let long = [&b"\x02\x02\x02k\x00\x00\x00\x00\x00\x80\x80\xd4\x92\xb4\xe7\x04\x02\x02\x00\x02r\xff\xff\xff\x00\x0e\x04u1\x02"[..], short].concat();
    vec![short.to_vec(), long, Vec::new()]
}

/// Whole messages of [`PROTO`].
pub fn protobuf_messages() -> Vec<Vec<u8>> {
    let short = b"\x4a\x02u1\x10\x07\x1a\x06\x08\x80\xa0\xf8\xfa\x05\x82\x19\x01e\x2a\x03\x0a\x01r\x38\x01\x42\x09\x09\x00\x00\x00\x00\x00\x00\xf0\x3f";
    let long = [&[0x0a, short.len() as u8][..], short, short, b"\x52\x02\x01\x05\x50\x03"].concat();
    vec![short.to_vec(), long, Vec::new()]
}
