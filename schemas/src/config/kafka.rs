//! `[kafka]`: the topic of interactions, and how it is read.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Span, invalid};
use crate::memory::MemorySize;
use crate::secret::{Secret, is_secret};

/// `[kafka]`: the topic that `pipeline consume` reads. Which field of a message is what, `[events]` says, as for files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kafka {
    /// Brokers to ask for the others, `host:port` with commas between.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// The consumer group; all that fill one root belong to one group.
    pub group: String,
    /// Keeps this consumer's partitions over a restart (`group.instance.id`): a name that no other one has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How the group divides the partitions.
    pub protocol: GroupProtocol,
    /// Where reading begins in a partition that the table knows nothing of.
    pub start: Start,
    /// How to treat a topic of this name that is not the one read before: it was deleted and made again,
    /// or lies in another cluster. The tables keep the ids that the brokers give to topics and clusters.
    pub recreated: Recreated,
    /// What a message's value is.
    pub format: MessageFormat,
    /// The schema registry's address, that of Confluent's API; Avro and Protobuf values then begin with a schema's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_registry: Option<String>,
    /// `user:password` for the registry, as `env:NAME` or `file:PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_registry_auth: Option<String>,
    /// A schema of one's own (`.avsc`, `.proto`), where there is no registry: values are then nothing but the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_file: Option<String>,
    /// The Protobuf message in `schema_file`, such as `shop.Event`; the file's only one may be left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// A commit is due after so many messages,
    pub batch_rows: usize,
    /// after so many bytes of them,
    pub batch_bytes: MemorySize,
    /// or this long after the first.
    pub batch_interval: Span,
    /// Earlier name of `events.dedup_days`: where it is given, `pipeline consume` uses it instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dedup_days: Option<u32>,
    /// How long a broker, a topic or a registry may be away before the program gives up.
    pub patience: Span,
    /// librdkafka's own settings, such as `"security.protocol" = "SASL_SSL"`. Secrets are `env:NAME` or `file:PATH`.
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

/// The protocols by which a group divides partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupProtocol {
    /// The one that every broker knows, with the assignor `cooperative-sticky`.
    Classic,
    /// KIP-848's, of Kafka 4: the broker assigns.
    Consumer,
}

/// Where reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// With the oldest message that the broker has.
    Earliest,
    /// With what comes from now on.
    Latest,
}

/// How to treat another topic of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recreated {
    /// An error, which names both.
    Refuse,
    /// It is read from its beginning, and its offsets take the place of the other one's.
    FromStart,
}

/// What a message's value is.
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

/// librdkafka's settings that keys of this section decide, or that must stay as they are.
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

/// The rule that no address of a registry breaks.
pub(super) fn refuse_registry_userinfo() -> Result<(), ConfigError> {
    invalid(
        "kafka.schema_registry",
        "holds a user or a password, which each model would keep: write the address without them, and \
         kafka.schema_registry_auth = \"env:NAME\" or \"file:PATH\", and user:password there",
    )
}

/// A setting's value, read from where it says: `env:NAME` or `file:PATH`.
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
    /// librdkafka's settings of [`Self::properties`] and their values, each as if it were a secret.
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

    /// `user:password` for the registry.
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
