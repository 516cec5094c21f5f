//! Every format, and values that do not match it.

use std::borrow::Cow;

use schemas::config::{Kafka, MessageFormat, Span};
use schemas::tables::Reason;
use terminal::Interrupt;
use tokio::runtime::Runtime;

use super::*;

mod files;
mod kinds;
mod random;
mod served;

/// A decoder with the runtime that it needs.
struct Fixture {
    decoder: Decoder,
    interrupt: Interrupt,
    _runtime: Runtime,
}

fn wanted(fields: &[&str]) -> Vec<Wanted> {
    let wanted =
        |field: &&str| Wanted { key: format!("key.{field}"), column: (*field).into(), need: Need::IfPresent };
    fields.iter().map(wanted).collect()
}

fn try_fixture(kafka: &Kafka, wanted: &[Wanted]) -> Result<Fixture, DecodeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let interrupt = Interrupt::default();
    let decoder = Decoder::new(kafka, wanted, runtime.handle(), &interrupt)?;
    Ok(Fixture { decoder, interrupt, _runtime: runtime })
}

fn fixture(kafka: &Kafka, fields: &[&str]) -> Fixture {
    try_fixture(kafka, &wanted(fields)).unwrap()
}

fn json(fields: &[&str]) -> Fixture {
    fixture(&Kafka::default(), fields)
}

fn from_registry(format: MessageFormat, address: &str) -> Kafka {
    let schema_registry = Some(address.to_owned());
    Kafka { format, schema_registry, patience: Span { ms: 5_000 }, ..Kafka::default() }
}

fn from_schema_file(format: MessageFormat, path: &Path) -> Kafka {
    Kafka { format, schema_file: Some(path.display().to_string()), ..Kafka::default() }
}

fn owned(value: Value<'_>) -> Value<'static> {
    match value {
        Value::Absent => Value::Absent,
        Value::Null => Value::Null,
        Value::Text(text) => Value::Text(Cow::Owned(text.into_owned())),
        Value::Int(number) => Value::Int(number),
        Value::Float(number) => Value::Float(number),
        Value::Single(number) => Value::Single(number),
        Value::Decimal(text) => Value::Decimal(Cow::Owned(text.into_owned())),
        Value::OutOfRange => Value::OutOfRange,
        Value::Bool(value) => Value::Bool(value),
        Value::Instant(ms) => Value::Instant(ms),
        Value::List(texts) => Value::List(texts.into_iter().map(owned).collect()),
        Value::NotUtf8 => Value::NotUtf8,
        Value::Other(kind) => Value::Other(kind),
    }
}

fn text(text: &str) -> Value<'static> {
    Value::Text(Cow::Owned(text.to_owned()))
}

impl Fixture {
    fn try_values(&mut self, value: &[u8]) -> Result<Vec<Value<'static>>, Fault> {
        let slots = self.decoder.slots.slots.len();
        let decoded = self.decoder.decode(value)?;
        Ok((0..slots).map(|slot| owned(decoded.value(slot))).collect())
    }

    /// The wanted fields, or the reason of the rejection.
    fn values(&mut self, value: &[u8]) -> Result<Vec<Value<'static>>, Reason> {
        self.try_values(value).map_err(|fault| match fault {
            Fault::Rejected(rejection) => rejection.reason,
            Fault::Stop(error) => panic!("{error}"),
        })
    }

    /// Why nothing can be decoded.
    fn stop(&mut self, value: &[u8]) -> String {
        match self.try_values(value) {
            Err(Fault::Stop(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_object_may_be_spread_over_lines() {
    let mut json = json(&["user_id", "ts", "none", "user_id"]);
    let value = "  {\n  \"user_id\": \"ü\\n1\",\r\n \"x\": [{}, 1],\n  \"ts\": 5\n}\n\n".as_bytes();
    let expected = vec![text("ü\n1"), Value::Int(5), Value::Absent, text("ü\n1")];
    assert_eq!(json.values(value), Ok(expected));
    assert_eq!(
        json.values(br#"{"ts":"","user_id":7}"#),
        Ok(vec![Value::Int(7), Value::Null, Value::Absent, Value::Int(7)]),
        "nothing of the message before is left"
    );
}

#[test]
fn what_is_no_object_is_malformed() {
    let mut json = json(&["user_id"]);
    for value in
        ["", " ", "{", "{}{}", "{} x", "[{}]", "null", "7", r#"{"user_id":}"#, r#"{"user_id":"\ud800"}"#]
    {
        assert_eq!(json.values(value.as_bytes()), Err(Reason::MalformedJson), "{value}");
    }
    assert_eq!(json.values(b"{\"user_id\":\"\xff\"}"), Err(Reason::InvalidUtf8));
    let nested = "[".repeat(100_000);
    assert_eq!(json.values(format!("{{\"a\":{nested}").as_bytes()), Err(Reason::MalformedJson));
    assert_eq!(json.values(format!("{{\"user_id\":{nested}").as_bytes()), Err(Reason::MalformedJson));
    assert_eq!(json.values(b"{}"), Ok(vec![Value::Absent]));
}

#[test]
fn messages_share_the_memory_of_their_values() {
    let mut json = json(&["a", "b"]);
    json.values(br#"{"a":"x"}"#).unwrap();
    let memory = json.decoder.values.as_ptr();
    json.values(br#"{"b":"y"}"#).unwrap();
    json.values(b"garbage").unwrap_err();
    json.values(br#"{"b":"y"}"#).unwrap();
    assert_eq!(json.decoder.values.as_ptr(), memory);
}
