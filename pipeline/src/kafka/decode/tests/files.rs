//! Schemas from `kafka.schema_file`.

use apache_avro::types::Value as AvroValue;
use prost_reflect::prost::Message as _;
use prost_reflect::{DynamicMessage, Value as ProtoValue};

use super::*;

const AVRO: &str = r#"{"type":"record","name":"Event","fields":[
    {"name":"user_id","type":"string"}, {"name":"ts","type":"long"}]}"#;

fn file(name: &str, content: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    (directory, path)
}

fn refusal(format: MessageFormat, path: &Path, message: Option<&str>, need: Need, column: &str) -> String {
    let kafka = Kafka { message: message.map(str::to_owned), ..from_schema_file(format, path) };
    let wanted = [Wanted { key: "events.columns.x".into(), column: column.into(), need }];
    try_fixture(&kafka, &wanted).map_or_else(|e| e.to_string(), |_| String::new())
}

#[test]
fn an_avro_file_makes_values_bare_records() {
    let (_directory, path) = file("event.avsc", AVRO);
    let mut avro = fixture(&from_schema_file(MessageFormat::Avro, &path), &["ts", "user_id", "item_id"]);
    let schema = apache_avro::Schema::parse_str(AVRO).unwrap();
    let record = AvroValue::Record(vec![
        ("user_id".into(), AvroValue::String("u".into())),
        ("ts".into(), AvroValue::Long(-3)),
    ]);
    let value = kinds::avro(&schema, record);
    assert_eq!(avro.values(&value), Ok(vec![Value::Int(-3), text("u"), Value::Absent]));
    let mut longer = value.clone();
    longer.push(0);
    assert_eq!(avro.values(&longer), Err(Reason::MalformedBinary));
    assert_eq!(avro.values(&value[..value.len() - 1]), Err(Reason::MalformedBinary));
    assert_eq!(avro.values(b""), Err(Reason::MalformedBinary));
}

#[test]
fn a_file_that_cannot_serve_is_refused_with_its_name() {
    let (_directory, path) = file("event.avsc", AVRO);
    let avro = |need, column| refusal(MessageFormat::Avro, &path, None, need, column);
    assert_eq!(avro(Need::Required, "user_id"), "");
    assert_eq!(avro(Need::IfPresent, "action"), "");
    for need in [Need::Required, Need::Named] {
        let problem = avro(need, "when");
        assert!(
            problem.contains("event.avsc")
                && problem.contains("`when`")
                && problem.contains("events.columns.x")
                && problem.contains("user_id, ts"),
            "{problem}"
        );
    }
    for (content, part) in [
        ("{", "Avro"),
        ("\"string\"", "record"),
        (r#"{"type":"record","name":"R","fields":[{"name":"a","type":"Nowhere"}]}"#, "Nowhere"),
    ] {
        let (_directory, path) = file("bad.avsc", content);
        let problem = refusal(MessageFormat::Avro, &path, None, Need::IfPresent, "a");
        assert!(problem.contains("bad.avsc") && problem.contains(part), "{problem}");
    }
    let nowhere = refusal(MessageFormat::Avro, Path::new("/nowhere.avsc"), None, Need::IfPresent, "a");
    assert!(nowhere.contains("/nowhere.avsc"), "{nowhere}");
}

#[test]
fn a_protobuf_message_is_chosen_by_name() {
    let proto = r#"syntax = "proto3"; package shop;
        message Event { string user_id = 1; } message Other { string x = 1; message Inner { string y = 1; } }"#;
    let (_directory, path) = file("shop.proto", proto);
    let proto = |message, need, column| refusal(MessageFormat::Protobuf, &path, message, need, column);
    let problem = proto(None, Need::Required, "user_id");
    assert!(problem.contains("kafka.message") && problem.contains("shop.Event, shop.Other"), "{problem}");
    assert_eq!(proto(Some("shop.Event"), Need::Required, "user_id"), "");
    assert_eq!(proto(Some("shop.Other.Inner"), Need::Required, "y"), "");
    assert!(proto(Some("Event"), Need::Required, "user_id").contains("no message Event"));
    assert!(proto(Some("shop.Event"), Need::Required, "x").contains("no field `x`"));
    let (_directory, path) = file("bad.proto", "syntax = \"proto3\";\nmessage {");
    let problem = refusal(MessageFormat::Protobuf, &path, None, Need::Required, "x");
    assert!(problem.contains("bad.proto:2:9"), "{problem}");
}

#[test]
fn protobuf_imports_are_found_beside_and_above() {
    let directory = tempfile::tempdir().unwrap();
    let shop = directory.path().join("schemas/shop");
    std::fs::create_dir_all(&shop).unwrap();
    std::fs::write(shop.join("beside.proto"), "syntax = \"proto3\"; enum Kind { NONE = 0; VIEW = 1; }")
        .unwrap();
    std::fs::write(
        directory.path().join("schemas/above.proto"),
        "syntax = \"proto3\"; import \"shop/ids.proto\"; message Ids { Id user = 1; }",
    )
    .unwrap();
    std::fs::write(shop.join("ids.proto"), "syntax = \"proto3\"; message Id { string id = 1; }").unwrap();
    let path = shop.join("event.proto");
    let event = r#"syntax = "proto3"; import "beside.proto"; import "above.proto";
        import "google/protobuf/timestamp.proto";
        message Event { Kind action = 1; Ids ids = 2; google.protobuf.Timestamp ts = 3; }"#;
    std::fs::write(&path, event).unwrap();
    let mut proto = fixture(&from_schema_file(MessageFormat::Protobuf, &path), &["action", "ids", "ts"]);
    let file = protobuf::compile_file(&path).unwrap();
    let mut message = DynamicMessage::new(file.messages().next().unwrap());
    message.set_field_by_name("action", ProtoValue::EnumNumber(1));
    assert_eq!(proto.values(&message.encode_to_vec()), Ok(vec![text("VIEW"), Value::Null, Value::Null]));
    assert_eq!(proto.values(b""), Ok(vec![text("NONE"), Value::Null, Value::Null]));
}
