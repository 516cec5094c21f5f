//! `[kafka]`: the topic of interactions, and how to read it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Span, invalid};
use crate::memory::MemorySize;
use crate::secret::{Secret, is_secret};

/// `[kafka]`: the topic that `pipeline consume` reads. `[events]` maps a message's fields, as for files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kafka {
    /// Bootstrap brokers, `host:port` separated by commas.
    pub brokers: String,
    /// Name of the topic; no pattern.
    pub topic: String,
    /// Consumer group; all consumers that fill one root share it.
    pub group: String,
    /// Unique name of this consumer (`group.instance.id`), which keeps its partitions over a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Protocol by which the group divides partitions.
    pub protocol: GroupProtocol,
    /// Where to start in a partition without stored offset.
    pub start: Start,
    /// What to do if the topic of this name is not the one read before: it was deleted and recreated, or lies in another cluster.
    /// The tables keep the brokers' ids of topics and clusters.
    pub recreated: Recreated,
    /// Format of a message's value.
    pub format: MessageFormat,
    /// Address of a schema registry with Confluent's API; Avro and Protobuf values then begin with a schema id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_registry: Option<String>,
    /// Credentials `user:password` for the registry, as `env:NAME` or `file:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_registry_auth: Option<String>,
    /// Local schema (`.avsc`, `.proto`) if there is no registry; values are then the bare record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_file: Option<String>,
    /// Protobuf message in `schema_file`, such as `shop.Event`; may be omitted if the file has only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Messages after which a commit is due.
    pub batch_rows: usize,
    /// Bytes of messages after which a commit is due.
    pub batch_bytes: MemorySize,
    /// Time after the first message at which a commit is due.
    pub batch_interval: Span,
    /// Former name of `events.dedup_days`; if set, `pipeline consume` uses it instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedup_days: Option<u32>,
    /// Time for which a broker, topic or registry may be unavailable before the program gives up.
    pub patience: Span,
    /// Properties of librdkafka, such as `"security.protocol" = "SASL_SSL"`. Secrets are `env:NAME` or `file:PATH`.
    pub properties: BTreeMap<String, String>,
}

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: "localhost:9092".into(),
            topic: "interactions".into(),
            group: "climber-pilot".into(),
            instance: None,
            protocol: GroupProtocol::Classic,
            start: Start::Earliest,
            recreated: Recreated::Refuse,
            format: MessageFormat::Json,
            schema_registry: None,
            schema_registry_auth: None,
            schema_file: None,
            message: None,
            batch_rows: 500_000,
            batch_bytes: MemorySize::bytes(256 << 20),
            batch_interval: Span::seconds(10),
            dedup_days: None,
            patience: Span::minutes(2),
            properties: BTreeMap::new(),
        }
    }
}

/// Protocol by which a group divides partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupProtocol {
    /// The classic protocol, supported by every broker, with the assignor `cooperative-sticky`.
    Classic,
    /// KIP-848 of Kafka 4: the broker assigns.
    Consumer,
}

/// Start of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// From the oldest message that the broker has.
    Earliest,
    /// From new messages only.
    Latest,
}

/// What to do with another topic of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recreated {
    /// Fail with an error that names both.
    Refuse,
    /// Read it from its beginning; its offsets replace those of the other one.
    FromStart,
}

/// Format of a message's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageFormat {
    /// One JSON object.
    Json,
    /// An Avro record.
    Avro,
    /// A Protobuf message.
    Protobuf,
}

/// Properties of librdkafka that keys of this section set, or that must keep their values.
const MANAGED: [(&str, &str); 10] = [
    ("bootstrap.servers", "kafka.brokers"),
    ("metadata.broker.list", "kafka.brokers"),
    ("group.id", "kafka.group"),
    ("group.instance.id", "kafka.instance"),
    ("group.protocol", "kafka.protocol"),
    ("partition.assignment.strategy", "kafka.protocol"),
    ("auto.offset.reset", "kafka.start"),
    ("enable.auto.commit", "no key: offsets are kept in the tables"),
    ("enable.auto.offset.store", "no key: offsets are kept in the tables"),
    ("isolation.level", "no key: messages of aborted transactions are never read"),
];

/// Error for a registry address that holds a user or password.
pub(super) fn refuse_registry_userinfo() -> Result<(), ConfigError> {
    invalid(
        "kafka.schema_registry",
        "holds a user or a password, which each model would keep: write the address without them, and \
         kafka.schema_registry_auth = \"env:NAME\" or \"file:PATH\", and user:password there",
    )
}

/// Reads a secret from `env:NAME` or `file:PATH`, without the file's trailing line end.
fn read_secret(key: &str, value: &str) -> Result<Secret, ConfigError> {
    if let Some(name) = value.strip_prefix("env:") {
        return std::env::var(name)
            .map(Secret::new)
            .or_else(|_| invalid(key, format!("the environment has no variable {name}")));
    }
    let Some(path) = value.strip_prefix("file:") else {
        return invalid(key, "is a secret: write env:NAME or file:PATH, and the secret there");
    };
    match std::fs::read_to_string(path) {
        Ok(secret) => Ok(Secret::new(secret.trim_end_matches(['\r', '\n']).to_owned())),
        Err(error) => invalid(key, format!("cannot read {path}: {error}")),
    }
}

impl Kafka {
    /// Returns librdkafka's [`Self::properties`] with their values, secrets read from `env:NAME` or `file:PATH`. Every value is
    /// treated as a secret.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`]: a variable or file cannot be read.
    pub fn client_properties(&self) -> Result<Vec<(String, Secret)>, ConfigError> {
        let read = |(key, value): (&String, &String)| {
            let named = format!("kafka.properties.\"{key}\"");
            let indirect = value.starts_with("env:") || value.starts_with("file:");
            let value = match is_secret(key) || indirect {
                true => read_secret(&named, value)?,
                false => Secret::new(value.clone()),
            };
            Ok((key.clone(), value))
        };
        self.properties.iter().map(read).collect()
    }

    /// Returns `user:password` for the registry.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`]: the variable or file cannot be read.
    pub fn registry_auth(&self) -> Result<Option<Secret>, ConfigError> {
        let auth = self.schema_registry_auth.as_deref();
        auth.map(|auth| read_secret("kafka.schema_registry_auth", auth)).transpose()
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("brokers", &self.brokers), ("topic", &self.topic), ("group", &self.group)] {
            if value.trim().is_empty() {
                return invalid(format!("kafka.{key}"), "must not be empty");
            }
        }
        if self.brokers.contains('@') {
            return invalid(
                "kafka.brokers",
                "holds a user or a password: write host:port, and kafka.properties.\"sasl.username\" and \"sasl.password\"",
            );
        }
        if self.topic.starts_with('^') {
            return invalid("kafka.topic", "names one topic; patterns are not read");
        }
        if self.batch_rows == 0 {
            return invalid("kafka.batch_rows", "must be at least 1");
        }
        for (key, span) in [("batch_interval", self.batch_interval), ("patience", self.patience)] {
            if span.ms < 100 {
                return invalid(format!("kafka.{key}"), "must be at least 100ms");
            }
        }
        for (key, value) in &self.properties {
            let named = format!("kafka.properties.\"{key}\"");
            if let Some((_, instead)) = MANAGED.iter().find(|(managed, _)| managed == key) {
                return invalid(named, format!("is set by {instead}"));
            }
            if is_secret(key) && !value.starts_with("env:") && !value.starts_with("file:") {
                return invalid(named, "is a secret: write env:NAME or file:PATH, and the secret there");
            }
        }
        self.validate_schema()
    }

    fn validate_schema(&self) -> Result<(), ConfigError> {
        let given = [&self.schema_registry, &self.schema_file].into_iter().flatten().count();
        match (self.format, given) {
            (MessageFormat::Json, 0) | (MessageFormat::Avro | MessageFormat::Protobuf, 1) => {}
            (MessageFormat::Json, _) => {
                return invalid(
                    "kafka.format",
                    "json has no schema; leave out schema_registry and schema_file",
                );
            }
            (_, 0) => return invalid("kafka.format", "needs kafka.schema_registry or kafka.schema_file"),
            (_, _) => return invalid("kafka.schema_file", "and kafka.schema_registry exclude each other"),
        }
        if self.message.is_some() && (self.format != MessageFormat::Protobuf || self.schema_file.is_none()) {
            return invalid("kafka.message", "names a message of a Protobuf schema_file, and there is none");
        }
        if self.schema_registry.as_ref().is_some_and(|address| address.contains('@')) {
            return refuse_registry_userinfo();
        }
        if self.schema_registry.as_ref().is_some_and(|address| address.contains(['?', '#'])) {
            return invalid("kafka.schema_registry", "is an address without `?` and `#`");
        }
        if let Some(auth) = &self.schema_registry_auth
            && !auth.starts_with("env:")
            && !auth.starts_with("file:")
        {
            return invalid(
                "kafka.schema_registry_auth",
                "is a secret: write env:NAME or file:PATH, and the secret there",
            );
        }
        match &self.schema_file {
            Some(path) if !Path::new(path).is_file() => {
                invalid("kafka.schema_file", format!("{path}: no such file"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Kafka)) -> String {
        let mut kafka = Kafka::default();
        change(&mut kafka);
        kafka.validate().map_or_else(|e| e.to_string(), |()| String::new())
    }

    #[test]
    fn secrets_are_never_in_the_file() {
        let property = |key: &str, value: &str| {
            check(|kafka| {
                kafka.properties.insert(key.into(), value.into());
            })
        };
        assert!(property("sasl.password", "hunter2").contains("env:NAME"));
        assert!(!property("sasl.password", "hunter2").contains("hunter2"));
        assert_eq!(property("sasl.password", "env:KAFKA_PASSWORD"), "");
        assert_eq!(property("sasl.username", "me"), "");
        assert!(property("enable.auto.commit", "true").contains("tables"));
    }

    #[test]
    fn secrets_are_read_from_files_without_their_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "s e c\n").unwrap();
        let mut kafka = Kafka::default();
        kafka.properties.insert("sasl.password".into(), format!("file:{}", path.display()));
        let properties = kafka.client_properties().unwrap();
        assert_eq!((properties[0].0.as_str(), properties[0].1.expose()), ("sasl.password", "s e c"));
        assert!(!format!("{properties:?}").contains("s e c"));
        kafka.properties.insert("sasl.password".into(), "file:/nowhere".into());
        assert!(kafka.client_properties().unwrap_err().to_string().contains("/nowhere"));
    }

    #[test]
    fn addresses_hold_no_passwords() {
        let registry = |address: &str| {
            check(|kafka| {
                kafka.format = MessageFormat::Avro;
                kafka.schema_registry = Some(address.into());
            })
        };
        for address in ["https://me:hunter2@host", "me:hunter2@host:8081", "https://me:hun/ter2@host"] {
            let message = registry(address);
            assert!(
                message.contains("kafka.schema_registry_auth") && message.contains("env:NAME"),
                "{message}"
            );
            assert!(!message.contains("hunter2") && !message.contains("ter2"), "{message}");
        }
        assert!(registry("https://host?token=hunter2").contains("without `?`"));
        assert_eq!(registry("https://host:8081/apis/ccompat/v7"), "");
        let message = check(|kafka| kafka.brokers = "SASL_SSL://me:hunter2@host:9092".into());
        assert!(message.contains("sasl.password") && !message.contains("hunter2"), "{message}");
    }

    #[test]
    fn formats_and_schemas_go_together() {
        assert_eq!(check(|_| ()), "");
        assert!(check(|k| k.format = MessageFormat::Avro).contains("schema_registry"));
        assert!(check(|k| k.schema_registry = Some("http://localhost:8081".into())).contains("json"));
        let avro = |kafka: &mut Kafka| {
            kafka.format = MessageFormat::Avro;
            kafka.schema_registry = Some("http://localhost:8081".into());
        };
        assert_eq!(check(avro), "");
        assert!(
            check(|k| {
                avro(k);
                k.message = Some("x".into())
            })
            .contains("kafka.message")
        );
        assert!(
            check(|k| {
                avro(k);
                k.schema_registry_auth = Some("u:p".into())
            })
            .contains("env:")
        );
    }
}
