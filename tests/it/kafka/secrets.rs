//! Whatever happens, the program never prints a secret.

use std::process::Output;

use super::shop::{Shop, event, fates};
use super::{Broker, Message};
use crate::programs::{json, stderr};

const SECRET: &str = "correct-horse-battery";

/// Runs the consumer with the secret in its environment, and asserts that its output does not contain it.
fn consume(shop: &Shop, kafka: &str, args: &[&str]) -> Output {
    shop.configure(kafka);
    let output = shop.consume(args).arg("--once").env("TOPIC_SECRET", SECRET).output().unwrap();
    for written in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(written);
        assert!(!text.contains(SECRET) && !text.contains("panicked"), "{text}");
    }
    output
}

fn refused(shop: &Shop, kafka: &str, code: i32, words: &[&str]) {
    for args in [&[][..], &["--log", "json"]] {
        let output = consume(shop, kafka, args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "`{word}`: {said}"));
    }
}

#[test]
fn secrets_that_work_are_not_told() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "secrets", 1);
    shop.send(&[Message::json(0, "key", &event(1))]);
    // A broker without passwords asks for none.
    let output = consume(&shop, r#"properties = { "sasl.password" = "env:TOPIC_SECRET" }"#, &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fates(&json(&output)), [1, 1, 0, 0]);
}

#[test]
fn secrets_are_not_told_where_the_client_refuses_them() {
    let shop = Shop::at("127.0.0.1:1", "interactions");
    // The client quotes what it does not understand.
    let quoted = r#"properties = { "security.protocol" = "env:TOPIC_SECRET" }"#;
    refused(&shop, quoted, 1, &["security.protocol", "\"***\""]);
    let quoted = r#"properties = { "debug" = "env:TOPIC_SECRET" }"#;
    refused(&shop, quoted, 1, &["kafka.properties.\"debug\""]);
    let unknown = r#"properties = { "sasl.passwrod" = "env:TOPIC_SECRET" }"#;
    refused(&shop, unknown, 1, &["sasl.passwrod"]);
    let number = r#"properties = { "session.timeout.ms" = "env:TOPIC_SECRET" }"#;
    refused(&shop, number, 1, &["session.timeout.ms"]);
}

#[test]
fn secrets_are_not_told_where_the_broker_does_not_understand_them() {
    let Some(broker) = Broker::shared() else { return };
    let shop = Shop::new(broker, "secrets", 1);
    let sasl = r#"
patience = "2s"
properties."security.protocol" = "sasl_plaintext"
properties."sasl.mechanism" = "PLAIN"
properties."sasl.username" = "env:TOPIC_SECRET"
properties."sasl.password" = "env:TOPIC_SECRET"
"#;
    refused(&shop, sasl, 1, &["answered within 2s"]);
}

#[test]
fn secrets_in_the_configuration_itself_are_refused_untold() {
    let shop = Shop::at("127.0.0.1:1", "interactions");
    let written = format!(r#"properties = {{ "sasl.password" = "{SECRET}" }}"#);
    refused(&shop, &written, 2, &["sasl.password", "env:NAME"]);
    let missing = r#"properties = { "sasl.password" = "env:NO_SUCH_VARIABLE" }"#;
    refused(&shop, missing, 2, &["NO_SUCH_VARIABLE"]);
    let written = format!(r#"schema_registry_auth = "me:{SECRET}""#);
    refused(&shop, &written, 2, &["kafka.schema_registry_auth", "env:NAME"]);
}
