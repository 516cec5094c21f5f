//! Schemas from a registry that a small server imitates.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apache_avro::types::Value as AvroValue;
use prost_reflect::DynamicMessage;
use prost_reflect::Value as ProtoValue;
use prost_reflect::prost::Message as _;

use super::*;

const NO_SCHEMA: (u16, &str) = (404, r#"{"error_code":40403,"message":"Schema not found"}"#);

/// A registry that answers with a given function.
struct Played {
    address: String,
    /// The path and the credentials of each request.
    asked: Arc<Mutex<Vec<(String, String)>>>,
}

impl Played {
    /// `answer` gets the path and the number of earlier requests.
    fn new(answer: impl Fn(&str, usize) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let asked_there = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (path, auth, stream) = read_question(stream.unwrap());
                let before = {
                    let mut asked = asked_there.lock().unwrap();
                    asked.push((path.clone(), auth));
                    asked.len() - 1
                };
                let (status, body) = answer(&path, before);
                write_answer(stream, status, &body);
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }
}

fn read_question(stream: TcpStream) -> (String, String, TcpStream) {
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let mut auth = String::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("authorization")
        {
            auth = value.to_owned();
        }
    }
    (path, auth, stream)
}

fn write_answer(mut stream: TcpStream, status: u16, body: &str) {
    let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
}

fn answer(kind: Option<&str>, schema: &str, references: &[(&str, &str)]) -> (u16, String) {
    let references: Vec<_> = references
        .iter()
        .map(|(name, subject)| serde_json::json!({"name": name, "subject": subject, "version": 1}))
        .collect();
    let mut body = serde_json::json!({"schema": schema, "references": references});
    if let Some(kind) = kind {
        body["schemaType"] = kind.into();
    }
    (200, body.to_string())
}

fn given((status, body): (u16, &str)) -> (u16, String) {
    (status, body.to_owned())
}

fn framed(id: u32, body: &[u8]) -> Vec<u8> {
    [&[0], &id.to_be_bytes()[..], body].concat()
}

const AVRO: &str = r#"{"type":"record","name":"E","fields":[{"name":"user_id","type":"string"}]}"#;
/// A record of [`AVRO`].
const U1: &[u8] = b"\x04u1";

fn avro_from(played: &Played) -> Fixture {
    fixture(&from_registry(MessageFormat::Avro, &played.address), &["user_id"])
}

fn forget_unknown(fixture: &mut Fixture) {
    match &mut fixture.decoder.format {
        Format::Registry(registry) => registry.forget_unknown(),
        _ => unreachable!(),
    }
}

#[test]
fn each_schema_is_asked_for_once() {
    let played = Played::new(|_, _| answer(None, AVRO, &[]));
    let mut avro = avro_from(&played);
    assert!(played.asked().is_empty(), "nothing is asked before a message");
    for _ in 0..3 {
        assert_eq!(avro.values(&framed(7, U1)), Ok(vec![text("u1")]));
        assert_eq!(avro.values(&framed(1 << 31, U1)), Ok(vec![text("u1")]));
    }
    assert_eq!(played.asked(), ["/schemas/ids/7", "/schemas/ids/2147483648"]);
    for value in
        [&b""[..], b"\0", b"\0\0\0\0", b"{\"user_id\":1}", &framed(7, b"\x04u"), &framed(7, b"\x04u1x")]
    {
        assert_eq!(avro.values(value), Err(Reason::MalformedBinary), "{value:?}");
    }
    assert_eq!(played.asked().len(), 2);
}

#[test]
fn an_unknown_id_is_a_dead_letter_and_remembered() {
    let played = Played::new(|_, before| match before {
        0 => given(NO_SCHEMA),
        _ => answer(Some("AVRO"), AVRO, &[]),
    });
    let mut avro = avro_from(&played);
    for _ in 0..5 {
        assert_eq!(avro.values(&framed(7, U1)), Err(Reason::UnknownSchema));
    }
    assert_eq!(played.asked().len(), 1);
    forget_unknown(&mut avro);
    assert_eq!(avro.values(&framed(7, U1)), Ok(vec![text("u1")]), "registered meanwhile");
}

#[test]
fn what_cannot_be_read_by_a_schema_is_a_dead_letter() {
    let avro_of = |kind: &'static str, schema: &'static str| {
        let played = Played::new(move |path, _| match path.ends_with("/7") {
            true => answer(Some(kind), schema, &[]),
            false => answer(None, AVRO, &[]),
        });
        let mut avro = avro_from(&played);
        let outcome = avro.values(&framed(7, U1));
        assert_eq!(avro.values(&framed(8, U1)), Ok(vec![text("u1")]), "the others go on");
        outcome
    };
    assert_eq!(avro_of("PROTOBUF", "syntax = \"proto3\"; message M {}"), Err(Reason::UnknownSchema));
    assert_eq!(avro_of("JSON", "{}"), Err(Reason::UnknownSchema));
    assert_eq!(avro_of("AVRO", "{\"type\":\"recor"), Err(Reason::UnknownSchema));
    // A schema that is not a record has no field.
    assert_eq!(avro_of("AVRO", "\"string\""), Ok(vec![Value::Absent]));
}

#[test]
fn an_address_of_something_else_stops_before_a_message_is_lost() {
    for (status, body) in
        [(404, "<html>not found</html>"), (404, ""), (404, r#"{"error_code":404}"#), (400, "")]
    {
        let played = Played::new(move |_, _| (status, body.to_owned()));
        let problem = avro_from(&played).stop(&framed(7, U1));
        assert!(problem.contains(&played.address) && problem.contains("kafka.schema_registry"), "{problem}");
        assert_eq!(played.asked().len(), 1);
    }
    let played = Played::new(|_, _| (200, "<html>".to_owned()));
    assert!(avro_from(&played).stop(&framed(7, U1)).contains("no schema"));
}

#[test]
fn refused_credentials_stop_at_once() {
    for status in [401, 403] {
        let played = Played::new(move |_, _| (status, String::new()));
        let problem = avro_from(&played).stop(&framed(7, U1));
        assert!(
            problem.contains("kafka.schema_registry_auth") && problem.contains(&played.address),
            "{problem}"
        );
        assert_eq!(played.asked().len(), 1);
    }
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "me:pass:word\n").unwrap();
    let played = Played::new(|_, _| (401, String::new()));
    let mut kafka = from_registry(MessageFormat::Avro, &played.address);
    kafka.schema_registry_auth = Some(format!("file:{}", secret.display()));
    let problem = fixture(&kafka, &["user_id"]).stop(&framed(7, U1));
    assert!(!problem.contains("pass:word"), "{problem}");
    // me:pass:word in Base64
    assert_eq!(played.asked.lock().unwrap()[0].1, "Basic bWU6cGFzczp3b3Jk");
    let with_user = played.address.replace("http://", "http://me:hunter2@");
    let problem = fixture(&from_registry(MessageFormat::Avro, &with_user), &["x"]).stop(&framed(7, U1));
    assert!(!problem.contains("hunter2") && problem.contains(&played.address), "{problem}");
    for address in ["nonsense", "ftp://me:hunter2@localhost", "http://me:hunter2@:x"] {
        let kafka = from_registry(MessageFormat::Avro, address);
        let problem = try_fixture(&kafka, &wanted(&["x"])).map(drop).unwrap_err().to_string();
        assert!(!problem.contains("hunter2") && problem.contains("kafka.schema_registry"), "{problem}");
    }
}

#[test]
fn a_registry_that_is_away_is_waited_for() {
    let played = Played::new(|_, before| match before {
        0 => (500, String::new()),
        1 => (429, String::new()),
        2 => (503, "<html>".to_owned()),
        _ => answer(None, AVRO, &[]),
    });
    assert_eq!(avro_from(&played).values(&framed(7, U1)), Ok(vec![text("u1")]));
    assert_eq!(played.asked().len(), 4);
}

#[test]
fn patience_ends() {
    let played = Played::new(|_, _| (503, String::new()));
    let mut kafka = from_registry(MessageFormat::Avro, &played.address);
    kafka.patience = Span { ms: 250 };
    let problem = fixture(&kafka, &["user_id"]).stop(&framed(7, U1));
    assert!(problem.contains("503") && problem.contains("kafka.patience"), "{problem}");
    assert!(played.asked().len() >= 2);
    // A port without a listener.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    kafka.schema_registry = Some(format!("http://{free}/api"));
    let problem = fixture(&kafka, &["user_id"]).stop(&framed(7, U1));
    assert!(
        problem.contains(&format!("http://{free}/api")) && problem.contains("cannot be reached"),
        "{problem}"
    );
}

#[test]
fn an_interrupt_ends_the_wait() {
    let played = Played::new(|_, _| (503, String::new()));
    let mut kafka = from_registry(MessageFormat::Avro, &played.address);
    kafka.patience = Span { ms: 3_600_000 };
    let mut avro = fixture(&kafka, &["user_id"]);
    let interrupt = avro.interrupt.clone();
    let requesting = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        interrupt.request();
    });
    assert!(matches!(avro.try_values(&framed(7, U1)), Err(Fault::Stop(DecodeError::Interrupted))));
    requesting.join().unwrap();
}

#[test]
fn avro_types_may_be_in_other_subjects() {
    let played = Played::new(|path, _| match path {
        "/api/v7/schemas/ids/7" => answer(
            None,
            r#"{"type":"record","name":"E","namespace":"shop","fields":[
                {"name":"user_id","type":"ids.User"},{"name":"n","type":"shop.N"}]}"#,
            &[("ids.User", "ids/user value"), ("shop.N", "n")],
        ),
        "/api/v7/subjects/ids%2Fuser%20value/versions/1" => {
            answer(None, r#"{"type":"enum","name":"ids.User","symbols":["a","b"]}"#, &[])
        }
        "/api/v7/subjects/n/versions/1" => answer(
            None,
            r#"{"type":"record","name":"N","namespace":"shop","fields":[{"name":"u","type":"ids.User"}]}"#,
            &[("ids.User", "ids/user value")],
        ),
        _ => given(NO_SCHEMA),
    });
    let kafka = from_registry(MessageFormat::Avro, &format!("{}/api/v7/", played.address));
    let mut avro = fixture(&kafka, &["user_id", "n"]);
    assert_eq!(avro.values(&framed(7, &[2, 0])), Ok(vec![text("b"), Value::Other("a record")]));
    assert_eq!(played.asked().len(), 3, "each once: {:?}", played.asked());
}

#[test]
fn a_reference_to_nothing_is_a_dead_letter() {
    let played = Played::new(|path, _| match path.starts_with("/schemas") {
        true => answer(None, AVRO, &[("x.Y", "gone")]),
        false => given((404, r#"{"error_code":40401,"message":"Subject not found"}"#)),
    });
    let mut avro = avro_from(&played);
    match avro.try_values(&framed(7, U1)) {
        Err(Fault::Rejected(rejection)) => {
            assert_eq!(rejection.reason, Reason::UnknownSchema);
            assert!(rejection.message.contains("gone") && rejection.message.contains('7'), "{rejection:?}");
        }
        other => panic!("{other:?}"),
    }
}

const PROTO: &str = r#"syntax = "proto3"; package shop; import "ids.proto";
    import "google/protobuf/timestamp.proto";
    message First { ids.User user_id = 1; google.protobuf.Timestamp ts = 2; }
    message Second {
        map<string, string> tags = 3; message A { string user_id = 1; } message B { int64 user_id = 1; }
    }"#;
const IDS: &str = r#"syntax = "proto3"; package ids; import "more/kinds.proto";
    enum User { NOBODY = 0; ANN = 1; } message X { kinds.Kind kind = 1; }"#;
const KINDS: &str = r#"syntax = "proto3"; package kinds; enum Kind { NONE = 0; }"#;

#[test]
fn protobuf_messages_say_their_type_by_its_place() {
    let played = Played::new(|path, _| match path {
        "/schemas/ids/7" => answer(Some("PROTOBUF"), PROTO, &[("ids.proto", "ids")]),
        "/subjects/ids/versions/1" => answer(Some("PROTOBUF"), IDS, &[("more/kinds.proto", "kinds")]),
        "/subjects/kinds/versions/1" => answer(Some("PROTOBUF"), KINDS, &[]),
        _ => given(NO_SCHEMA),
    });
    let kafka = from_registry(MessageFormat::Protobuf, &played.address);
    let mut proto = fixture(&kafka, &["user_id", "ts"]);
    let imports = vec![("ids.proto".into(), IDS.into()), ("more/kinds.proto".into(), KINDS.into())];
    let file = protobuf::compile("x.proto", PROTO.into(), imports).unwrap();
    let message = |name: &str, user: ProtoValue| {
        let mut message = DynamicMessage::new(file.parent_pool().get_message_by_name(name).unwrap());
        message.set_field_by_name("user_id", user);
        message.encode_to_vec()
    };
    let first = message("shop.First", ProtoValue::EnumNumber(1));
    let mut check = |place: &[u8], body: &[u8]| proto.values(&framed(7, &[place, body].concat()));
    for place in [&[0][..], &[2, 0]] {
        assert_eq!(check(place, &first), Ok(vec![text("ANN"), Value::Null]));
    }
    // Second.A and Second.B: the entry type of its map is not in the text.
    let a = message("shop.Second.A", ProtoValue::String("u".into()));
    assert_eq!(check(&[4, 2, 0], &a), Ok(vec![text("u"), Value::Absent]));
    let b = message("shop.Second.B", ProtoValue::I64(5));
    assert_eq!(check(&[4, 2, 2], &b), Ok(vec![Value::Int(5), Value::Absent]));
    assert_eq!(check(&[4, 2, 4], b""), Err(Reason::UnknownSchema));
    assert_eq!(check(&[2, 6], b""), Err(Reason::UnknownSchema));
    for place in [&[][..], &[1], &[2], &[4, 2], &[2, 1], &[0xfe, 0xff, 0xff, 0xff, 0x0f, 0]] {
        assert_eq!(check(place, b""), Err(Reason::MalformedBinary), "{place:?}");
    }
    assert_eq!(check(&[0], &[0x08]), Err(Reason::MalformedBinary));
    assert_eq!(played.asked().len(), 3);
}

#[test]
fn a_record_and_its_value_agree() {
    // The hand-written bytes above are what the library writes.
    let schema = apache_avro::Schema::parse_str(AVRO).unwrap();
    let record = AvroValue::Record(vec![("user_id".into(), AvroValue::String("u1".into()))]);
    assert_eq!(kinds::avro(&schema, record), U1);
}
