//! An event is the same in every format, and no bytes make a decoder panic.

use std::cell::RefCell;
use std::sync::LazyLock;

use apache_avro::types::Value as AvroValue;
use proptest::prelude::*;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, FileDescriptor, Value as ProtoValue};
use schemas::config::{Events, TimeUnit};

use super::super::fuzzing::{AVRO, PROTO};
use super::*;
use crate::records::{Forms, Mapping};

const ACTIONS: [&str; 3] = ["view", "cart", "purchase"];

static SCHEMA: LazyLock<apache_avro::Schema> =
    LazyLock::new(|| apache_avro::Schema::parse_str(AVRO).unwrap());
static FILE: LazyLock<FileDescriptor> =
    LazyLock::new(|| protobuf::compile("shop.proto", PROTO.into(), Vec::new()).unwrap());

#[derive(Debug, Clone)]
struct Sample {
    user_id: String,
    item_id: i64,
    ts: i64,
    event_id: Option<String>,
    request_id: Option<String>,
    request_ts: Option<i64>,
    action: usize,
    value: Option<f64>,
    /// Whether the message also has unwanted fields.
    more: bool,
}

fn sample() -> impl Strategy<Value = Sample> {
    let id = || "\\PC{0,20}|[a-z\"\\\\\n]{1,5}";
    let ms = || 0..4_102_444_800_000i64;
    let value = prop::option::of(prop::num::f64::NORMAL | prop::num::f64::ZERO);
    (
        (id(), any::<i64>(), ms(), prop::option::of(id()), prop::option::of(id())),
        (prop::option::of(ms()), 0..3usize, value, any::<bool>()),
    )
        .prop_map(|((user_id, item_id, ts, event_id, request_id), (request_ts, action, value, more))| {
            Sample { user_id, item_id, ts, event_id, request_id, request_ts, action, value, more }
        })
}

impl Sample {
    fn json(&self) -> Vec<u8> {
        let mut object = serde_json::json!({
            "user_id": self.user_id, "item_id": self.item_id, "ts": self.ts, "event_id": self.event_id,
            "request_id": self.request_id, "request_ts": self.request_ts, "action": ACTIONS[self.action],
            "value": self.value,
        });
        if self.more {
            object["more"] = serde_json::json!([{"user_id": "x"}, 1e300]);
            serde_json::to_vec_pretty(&object).unwrap()
        } else {
            serde_json::to_vec(&object).unwrap()
        }
    }

    fn avro_value(&self) -> AvroValue {
        let some = |at, value: AvroValue| AvroValue::Union(at, Box::new(value));
        let or_null = |at: u32, value: Option<AvroValue>| match value {
            Some(value) => some(at, value),
            None => some(1 - at, AvroValue::Null),
        };
        let map = AvroValue::Map([("k".into(), some(1, AvroValue::Double(1.0)))].into());
        let before = if self.more { vec![map.clone(), map] } else { Vec::new() };
        let after = self.more.then(|| Sample { more: false, ..self.clone() }.avro_value());
        AvroValue::Record(vec![
            ("before".into(), AvroValue::Array(before)),
            ("value".into(), or_null(1, self.value.map(AvroValue::Double))),
            ("action".into(), AvroValue::Enum(self.action as u32, ACTIONS[self.action].into())),
            ("ts".into(), AvroValue::TimestampMicros(self.ts * 1_000)),
            ("request_ts".into(), or_null(1, self.request_ts.map(AvroValue::TimestampMillis))),
            ("request_id".into(), or_null(0, self.request_id.clone().map(AvroValue::String))),
            ("between".into(), AvroValue::Fixed(3, vec![0xff; 3])),
            ("event_id".into(), or_null(1, self.event_id.clone().map(AvroValue::String))),
            ("item_id".into(), AvroValue::Long(self.item_id)),
            ("user_id".into(), AvroValue::String(self.user_id.clone())),
            ("after".into(), or_null(1, after)),
        ])
    }

    fn avro(&self) -> Vec<u8> {
        kinds::avro(&SCHEMA, self.avro_value())
    }

    fn proto_message(&self) -> DynamicMessage {
        let new = |name: &str| DynamicMessage::new(FILE.parent_pool().get_message_by_name(name).unwrap());
        let timestamp = |ms: i64| {
            let mut timestamp = new("google.protobuf.Timestamp");
            timestamp.set_field_by_name("seconds", ProtoValue::I64(ms.div_euclid(1_000)));
            timestamp.set_field_by_name("nanos", ProtoValue::I32(ms.rem_euclid(1_000) as i32 * 1_000_000));
            ProtoValue::Message(timestamp)
        };
        let wrapper = |name: &str, value: ProtoValue| {
            let mut wrapper = new(name);
            wrapper.set_field_by_name("value", value);
            ProtoValue::Message(wrapper)
        };
        let mut event = new("shop.Event");
        let mut set = |name: &str, value: Option<ProtoValue>| {
            if let Some(value) = value {
                event.set_field_by_name(name, value);
            }
        };
        set("user_id", Some(ProtoValue::String(self.user_id.clone())));
        set("item_id", Some(ProtoValue::I64(self.item_id)));
        set("ts", Some(timestamp(self.ts)));
        set("event_id", self.event_id.clone().map(ProtoValue::String));
        let request_id = self.request_id.clone().map(ProtoValue::String);
        set("request_id", request_id.map(|id| wrapper("google.protobuf.StringValue", id)));
        set("request_ts", self.request_ts.map(timestamp));
        set("action", Some(ProtoValue::EnumNumber(self.action as i32)));
        set("value", self.value.map(|value| wrapper("google.protobuf.DoubleValue", ProtoValue::F64(value))));
        if self.more {
            let after = Sample { more: false, ..self.clone() }.proto_message();
            set("after", Some(ProtoValue::Message(after)));
            set("between", Some(ProtoValue::List(vec![ProtoValue::I32(-1), ProtoValue::I32(5)])));
        }
        event
    }

    fn proto(&self) -> Vec<u8> {
        self.proto_message().encode_to_vec()
    }
}

/// A decoder of each format, in the order of [`Sample`]'s functions.
fn decoders(mapping: &Mapping) -> Vec<Fixture> {
    let directory = tempfile::tempdir().unwrap();
    let [avro, proto] = [("event.avsc", AVRO), ("event.proto", PROTO)].map(|(name, content)| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    });
    let kafkas = [
        Kafka::default(),
        from_schema_file(MessageFormat::Avro, &avro),
        from_schema_file(MessageFormat::Protobuf, &proto),
    ];
    kafkas.iter().map(|kafka| try_fixture(kafka, &mapping.wanted).unwrap()).collect()
}

/// The event as text, or why there is none.
fn outcome(fixture: &mut Fixture, mapping: &Mapping, value: &[u8]) -> Result<String, Reason> {
    let decoded = match fixture.decoder.decode(value) {
        Ok(decoded) => decoded,
        Err(Fault::Rejected(rejection)) => return Err(rejection.reason),
        Err(Fault::Stop(error)) => panic!("{error}"),
    };
    let event = mapping.event(&decoded, &mut Forms::default()).map(|event| format!("{event:?}"));
    event.map_err(|rejection| rejection.reason)
}

#[test]
fn every_format_gives_the_same_event() {
    // The schemas say the unit, and JSON does not.
    let mapping = Mapping::new(&Events { ts_format: TimeUnit::Ms.into(), ..Events::default() });
    let decoders = RefCell::new(decoders(&mapping));
    proptest!(|(sample in sample())| {
        let mut decoders = decoders.borrow_mut();
        let values = [sample.json(), sample.avro(), sample.proto()];
        let outcomes: Vec<_> =
            values.iter().zip(&mut *decoders).map(|(value, decoder)| outcome(decoder, &mapping, value)).collect();
        prop_assert_eq!(&outcomes[0], &outcomes[1]);
        prop_assert_eq!(&outcomes[0], &outcomes[2]);
        prop_assert_eq!(outcomes[0].is_ok(), !sample.user_id.trim().is_empty());
    });
}

#[test]
fn no_avro_record_is_the_beginning_of_another() {
    let mapping = Mapping::new(&Events::default());
    let avro = RefCell::new(decoders(&mapping).swap_remove(1));
    proptest!(|(sample in sample(), cut in any::<prop::sample::Index>())| {
        let value = sample.avro();
        let cut = cut.index(value.len());
        prop_assert_eq!(avro.borrow_mut().values(&value[..cut]), Err(Reason::MalformedBinary));
        prop_assert_eq!(avro.borrow_mut().values(&[&value[..], &value[..=cut]].concat()), Err(Reason::MalformedBinary));
    });
}

#[test]
fn no_bytes_do_harm() {
    let mapping = Mapping::new(&Events::default());
    let decoders = RefCell::new(decoders(&mapping));
    let change = (any::<prop::sample::Index>(), any::<u8>());
    proptest!(ProptestConfig::with_cases(2_000), |(
        random in prop::collection::vec(any::<u8>(), 0..64),
        sample in sample(),
        changes in prop::collection::vec(change, 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    )| {
        let mut values = [sample.json(), sample.avro(), sample.proto()];
        for value in &mut values {
            for (at, byte) in &changes {
                let at = at.index(value.len());
                value[at] = *byte;
            }
            value.truncate(cut.map_or(value.len(), |cut| cut.index(value.len())));
        }
        for decoder in &mut *decoders.borrow_mut() {
            for value in values.iter().chain([&random]) {
                let reason = outcome(decoder, &mapping, value).err();
                prop_assert_ne!(reason, Some(Reason::Tombstone));
            }
        }
    });
}

#[test]
fn what_is_accepted_as_protobuf_is_so_elsewhere() {
    // This decoder accepts all bytes that prost accepts: it decodes fewer fields.
    let mapping = Mapping::new(&Events::default());
    let proto = RefCell::new(decoders(&mapping).swap_remove(2));
    let change = (any::<prop::sample::Index>(), any::<u8>());
    proptest!(ProptestConfig::with_cases(1_000), |(sample in sample(), changes in prop::collection::vec(change, 0..3))| {
        let mut value = sample.proto();
        for (at, byte) in &changes {
            let at = at.index(value.len());
            value[at] = *byte;
        }
        let message = FILE.parent_pool().get_message_by_name("shop.Event").unwrap();
        if DynamicMessage::decode(message, &value[..]).is_ok() {
            prop_assert_ne!(proto.borrow_mut().values(&value), Err(Reason::MalformedBinary));
        }
    });
}
