//! Every type of field, and hostile bytes.

use apache_avro::types::Value as AvroValue;
use apache_avro::writer::datum::GenericDatumWriter;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, MapKey, Value as ProtoValue};

use super::*;

pub(super) fn avro(schema: &apache_avro::Schema, value: AvroValue) -> Vec<u8> {
    GenericDatumWriter::builder(schema).build().unwrap().write_value_to_vec(value).unwrap()
}

/// Decodes a field of this type and value that is followed by another field.
fn avro_field(field_type: &str, value: AvroValue) -> Value<'static> {
    let schema = format!(
        r#"{{"type":"record","name":"n.R","fields":[
            {{"name":"skipped","type":{field_type}}},
            {{"name":"a","type":{again}}},
            {{"name":"after","type":"int"}}]}}"#,
        again = again(field_type)
    );
    let fields = ["a".to_owned(), "after".to_owned()];
    let compiled = avro::Schema::parse(&schema, &[], &fields).unwrap();
    let record = AvroValue::Record(vec![
        ("skipped".into(), value.clone()),
        ("a".into(), value),
        ("after".into(), AvroValue::Int(77)),
    ]);
    let bytes = avro(&apache_avro::Schema::parse_str(&schema).unwrap(), record);
    let mut values = vec![Value::Absent; 2];
    compiled.decode(&bytes, &mut values).unwrap();
    assert_eq!(values[1], Value::Int(77), "{field_type}");
    owned(values[0].clone())
}

/// A named type is defined once and then named.
fn again(field_type: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(field_type).unwrap() {
        serde_json::Value::Object(object) if object.contains_key("name") => object["name"].to_string(),
        _ => field_type.to_owned(),
    }
}

#[test]
fn avro_types_become_values() {
    use AvroValue as A;
    let logical = |base: &str, name: &str| format!(r#"{{"type":"{base}","logicalType":"{name}"}}"#);
    let day = 86_400_000;
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let table: Vec<(String, A, Value)> = vec![
        (r#""null""#.into(), A::Null, Value::Null),
        (r#""boolean""#.into(), A::Boolean(true), Value::Bool(true)),
        (r#""int""#.into(), A::Int(i32::MIN), Value::Int(i64::from(i32::MIN))),
        (r#""long""#.into(), A::Long(i64::MIN), Value::Int(i64::MIN)),
        (r#""float""#.into(), A::Float(0.5), Value::Single(0.5)),
        (r#""double""#.into(), A::Double(-0.1), Value::Float(-0.1)),
        (r#""string""#.into(), A::String("é".into()), text("é")),
        (r#""bytes""#.into(), A::Bytes(b"b".to_vec()), text("b")),
        (r#""bytes""#.into(), A::Bytes(vec![0xff]), Value::NotUtf8),
        (r#"{"type":"fixed","name":"F","size":2}"#.into(), A::Fixed(2, b"xy".to_vec()), text("xy")),
        (r#"{"type":"enum","name":"E","symbols":["A","B"]}"#.into(), A::Enum(1, "B".into()), text("B")),
        (logical("int", "date"), A::Date(-1), Value::Instant(-day)),
        (logical("long", "timestamp-millis"), A::TimestampMillis(-5), Value::Instant(-5)),
        (logical("long", "timestamp-micros"), A::TimestampMicros(-5), Value::Instant(-1)),
        (logical("long", "timestamp-nanos"), A::TimestampNanos(1_999_999), Value::Instant(1)),
        (logical("long", "local-timestamp-millis"), A::LocalTimestampMillis(9), Value::Instant(9)),
        (logical("long", "local-timestamp-micros"), A::LocalTimestampMicros(9_000), Value::Instant(9)),
        (logical("int", "time-millis"), A::TimeMillis(9), Value::Other("a time of day")),
        (logical("string", "uuid"), A::Uuid(uuid.parse().unwrap()), text(uuid)),
        (
            r#"{"type":"bytes","logicalType":"decimal","precision":9,"scale":2}"#.into(),
            A::Decimal(apache_avro::Decimal::from([0xfb, 0x2e])),
            text("-12.34"),
        ),
        (r#"["null","string"]"#.into(), A::Union(0, Box::new(A::Null)), Value::Null),
        (r#"["null","string"]"#.into(), A::Union(1, Box::new(A::String("x".into()))), text("x")),
        (r#"["long","string"]"#.into(), A::Union(0, Box::new(A::Long(8))), Value::Int(8)),
        (
            r#"{"type":"array","items":["null","string"]}"#.into(),
            A::Array(vec![
                A::Union(1, Box::new(A::String("x".into()))),
                A::Union(0, Box::new(A::Null)),
                A::Union(1, Box::new(A::String("y".into()))),
            ]),
            Value::List(vec!["x".into(), "y".into()]),
        ),
        (r#"{"type":"array","items":"string"}"#.into(), A::Array(vec![]), Value::List(vec![])),
        (
            r#"{"type":"array","items":{"type":"map","values":"long"}}"#.into(),
            A::Array(vec![A::Map([("k".into(), A::Long(1))].into())]),
            Value::Other("a list of something else than text"),
        ),
        (
            r#"{"type":"map","values":"long"}"#.into(),
            A::Map([("k".into(), A::Long(1)), ("l".into(), A::Long(2))].into()),
            Value::Other("a map"),
        ),
        (
            r#"{"type":"record","name":"Inner","fields":[{"name":"x","type":["null","Inner"]}]}"#.into(),
            A::Record(vec![(
                "x".into(),
                A::Union(1, Box::new(A::Record(vec![("x".into(), A::Union(0, Box::new(A::Null)))]))),
            )]),
            Value::Other("a record"),
        ),
    ];
    for (field_type, value, expected) in table {
        assert_eq!(avro_field(&field_type, value), expected, "{field_type}");
    }
}

#[test]
fn a_union_of_records_is_several_types_of_events() {
    let schema = r#"[{"type":"record","name":"V","fields":[{"name":"v","type":"int"}]},
        {"type":"record","name":"P","fields":[{"name":"x","type":"string"},{"name":"p","type":"V"}]},"string"]"#;
    let fields = ["v".to_owned(), "x".to_owned(), "p".to_owned()];
    let compiled = avro::Schema::parse(schema, &[], &fields).unwrap();
    let decoded = |bytes: &[u8]| {
        let mut values = vec![Value::Absent; 3];
        compiled.decode(bytes, &mut values).map(|()| values.into_iter().map(owned).collect::<Vec<_>>())
    };
    assert_eq!(decoded(&[0, 14]), Ok(vec![Value::Int(7), Value::Absent, Value::Absent]));
    assert_eq!(decoded(&[2, 2, b'x', 14]), Ok(vec![Value::Absent, text("x"), Value::Other("a record")]));
    assert_eq!(decoded(&[4, 2, b'x']), Ok(vec![Value::Absent; 3]));
    assert!(decoded(&[6]).is_err());
}

#[test]
fn hostile_avro_ends_soon() {
    let fields = ["a".to_owned()];
    let check = |field_type: &str, bytes: &[u8]| {
        for name in ["a", "skipped"] {
            let schema = format!(
                r#"{{"type":"record","name":"R","fields":[{{"name":"{name}","type":{field_type}}}]}}"#
            );
            let schema = avro::Schema::parse(&schema, &[], &fields).unwrap();
            let outcome = schema.decode(bytes, &mut [Value::Absent]);
            assert!(outcome.is_err(), "{field_type} {name}");
        }
    };
    // 2^62 as a length or a count, and the smallest number as a count of a block with its size.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    let least = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x02];
    for field_type in [
        r#""string""#,
        r#""bytes""#,
        r#"{"type":"array","items":"string"}"#,
        r#"{"type":"array","items":"null"}"#,
        r#"{"type":"map","values":"null"}"#,
    ] {
        check(field_type, &huge);
        check(field_type, &least);
    }
    let nested = r#"{"type":"record","name":"L","fields":[{"name":"next","type":["null","L"]}]}"#;
    check(nested, &vec![2; 1 << 20]);
    let arrays =
        r#"{"type":"record","name":"T","fields":[{"name":"c","type":{"type":"array","items":"T"}}]}"#;
    check(arrays, &vec![2; 1 << 20]);
    // A type that always contains itself has no values.
    check(r#"{"type":"record","name":"S","fields":[{"name":"s","type":"S"},{"name":"t","type":"S"}]}"#, b"");
}

const PROTO: &str = r#"
    syntax = "proto3";
    import "google/protobuf/timestamp.proto";
    import "google/protobuf/wrappers.proto";
    enum Kind { NONE = 0; VIEW = 1; BUY = -2; }
    message M {
        double d = 1; float f = 2; int32 i32 = 3; int64 i64 = 4; uint32 u32 = 5; uint64 u64 = 6;
        sint32 s32 = 7; sint64 s64 = 8; fixed32 f32 = 9; fixed64 f64 = 10; sfixed32 sf32 = 11; sfixed64 sf64 = 12;
        bool b = 13; string s = 14; bytes y = 15; Kind k = 16; google.protobuf.Timestamp t = 17;
        google.protobuf.StringValue ws = 18; google.protobuf.UInt64Value wu = 19; google.protobuf.BoolValue wb = 20;
        repeated string rs = 21; repeated int32 ri = 22; repeated M rm = 23; map<string, int32> m = 24; M inner = 25;
        optional int32 oi = 26; optional string os = 27;
        oneof one { string o1 = 28; int32 o2 = 29; M o3 = 30; }
    }"#;

fn proto_fields() -> Vec<String> {
    let file = protobuf::compile("m.proto", PROTO.into(), Vec::new()).unwrap();
    file.messages().next().unwrap().fields().map(|field| field.name().to_owned()).collect()
}

/// Field → value, of a message with `set` fields.
fn proto(set: &[(&str, ProtoValue)]) -> impl Fn(&str) -> Value<'static> + use<> {
    let file = protobuf::compile("m.proto", PROTO.into(), Vec::new()).unwrap();
    let descriptor = file.messages().next().unwrap();
    let mut message = DynamicMessage::new(descriptor.clone());
    for (name, value) in set {
        message.try_set_field_by_name(name, value.clone()).unwrap();
    }
    let bytes = message.encode_to_vec();
    let fields = proto_fields();
    let plan = protobuf::Message::new(&descriptor, &fields);
    let mut values = vec![Value::Absent; fields.len()];
    plan.decode(&bytes, &mut values).unwrap();
    let values: Vec<_> = values.into_iter().map(owned).collect();
    move |name| values[fields.iter().position(|field| field == name).unwrap()].clone()
}

fn nested(name: &str, set: &[(&str, ProtoValue)]) -> ProtoValue {
    let file = protobuf::compile("m.proto", PROTO.into(), Vec::new()).unwrap();
    let mut message = DynamicMessage::new(file.parent_pool().get_message_by_name(name).unwrap());
    set.iter().for_each(|(name, value)| message.set_field_by_name(name, value.clone()));
    ProtoValue::Message(message)
}

#[test]
fn protobuf_types_become_values() {
    use ProtoValue as P;
    let time =
        nested("google.protobuf.Timestamp", &[("seconds", P::I64(-2)), ("nanos", P::I32(999_999_999))]);
    let table: Vec<(&str, P, Value)> = vec![
        ("d", P::F64(-0.1), Value::Float(-0.1)),
        ("f", P::F32(0.5), Value::Single(0.5)),
        ("i32", P::I32(-5), Value::Int(-5)),
        ("i64", P::I64(i64::MIN), Value::Int(i64::MIN)),
        ("u32", P::U32(u32::MAX), Value::Int(i64::from(u32::MAX))),
        ("u64", P::U64(u64::MAX), text("18446744073709551615")),
        ("s32", P::I32(i32::MIN), Value::Int(i64::from(i32::MIN))),
        ("s64", P::I64(i64::MIN), Value::Int(i64::MIN)),
        ("f32", P::U32(u32::MAX), Value::Int(i64::from(u32::MAX))),
        ("f64", P::U64(u64::MAX), text("18446744073709551615")),
        ("sf32", P::I32(-5), Value::Int(-5)),
        ("sf64", P::I64(-5), Value::Int(-5)),
        ("b", P::Bool(true), Value::Bool(true)),
        ("s", P::String("é".into()), text("é")),
        ("y", P::Bytes(vec![0xff].into()), Value::NotUtf8),
        ("k", P::EnumNumber(-2), text("BUY")),
        ("k", P::EnumNumber(9), Value::Int(9)),
        ("t", time, Value::Instant(-1_001)),
        ("ws", nested("google.protobuf.StringValue", &[("value", P::String("x".into()))]), text("x")),
        ("wu", nested("google.protobuf.UInt64Value", &[("value", P::U64(7))]), Value::Int(7)),
        ("wu", nested("google.protobuf.UInt64Value", &[]), Value::Int(0)),
        ("wb", nested("google.protobuf.BoolValue", &[]), Value::Bool(false)),
        (
            "rs",
            P::List(vec![P::String("x".into()), P::String("y".into())]),
            Value::List(vec!["x".into(), "y".into()]),
        ),
        ("ri", P::List(vec![P::I32(1), P::I32(-1)]), Value::List(vec!["1".into(), "-1".into()])),
        ("rm", P::List(vec![nested("M", &[])]), Value::Other("a list of messages")),
        ("m", P::Map([(MapKey::String("k".into()), P::I32(1))].into()), Value::Other("a map")),
        ("inner", nested("M", &[("s", P::String("deep".into()))]), Value::Other("a message")),
        ("oi", P::I32(0), Value::Int(0)),
        ("o1", P::String("x".into()), text("x")),
    ];
    for (name, value, expected) in table {
        assert_eq!(proto(&[(name, value)])(name), expected, "{name}");
    }
}

#[test]
fn a_protobuf_field_that_is_not_there_is_its_default_or_nothing() {
    let value = proto(&[]);
    for (name, expected) in [
        ("d", Value::Float(0.0)),
        ("u64", Value::Int(0)),
        ("b", Value::Bool(false)),
        ("s", text("")),
        ("k", text("NONE")),
        ("t", Value::Null),
        ("ws", Value::Null),
        ("rs", Value::Null),
        ("m", Value::Null),
        ("oi", Value::Null),
        ("os", Value::Null),
        ("o1", Value::Null),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    let old = r#"syntax = "proto2"; message M { optional int32 a = 1 [default = 5]; optional int32 b = 2;
        optional group G = 3 { optional int32 x = 1; } required string c = 4; }"#;
    let file = protobuf::compile("old.proto", old.into(), Vec::new()).unwrap();
    let fields = ["a", "b", "g", "c"].map(str::to_owned);
    let plan = protobuf::Message::new(&file.messages().next().unwrap(), &fields);
    let mut values = vec![Value::Absent; 4];
    plan.decode(&[0x1b, 0x08, 0x01, 0x1c, 0x10, 0x03], &mut values).unwrap();
    assert_eq!(values, [Value::Int(5), Value::Int(3), Value::Other("a group"), Value::Null]);
}

#[test]
fn of_a_oneof_the_last_counts() {
    let file = protobuf::compile("m.proto", PROTO.into(), Vec::new()).unwrap();
    let plan = protobuf::Message::new(&file.messages().next().unwrap(), &["o1".to_owned()]);
    let mut values = vec![Value::Absent];
    // o1 = "x", o2 = 1
    plan.decode(&[0xe2, 0x01, 1, b'x', 0xe8, 0x01, 1], &mut values).unwrap();
    assert_eq!(values, [Value::Null]);
    plan.decode(&[0xe8, 0x01, 1, 0xe2, 0x01, 1, b'x'], &mut values).unwrap();
    assert_eq!(values, [text("x")]);
}

#[test]
fn hostile_protobuf_ends_soon() {
    let file = protobuf::compile("m.proto", PROTO.into(), Vec::new()).unwrap();
    let plan = protobuf::Message::new(&file.messages().next().unwrap(), &proto_fields());
    let check = |bytes: &[u8]| {
        let mut values = vec![Value::Absent; 30];
        assert!(plan.decode(bytes, &mut values).is_err(), "{:?}", &bytes[..bytes.len().min(20)]);
    };
    check(&[0x00, 0x00]); // field 0
    check(&[0x72]); // no length
    check(&[0x72, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]); // a huge one
    check(&[0x72, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]); // beyond 64 bits
    check(&[0x70, 0x01]); // text as a number
    check(&[0x0c]); // the end of no group
    check(&[0x0f]); // a wire type that there is not
    check(&[0xa3, 0x06, 0xac, 0x06]); // groups that overlap
    check(&[0xa3, 0x06].repeat(1 << 19)); // groups in groups
    check(&[0x8a, 0x01, 0x01, 0x08]); // a time that ends too early
}
