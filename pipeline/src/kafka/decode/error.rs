//! Errors that stop the decoding of all messages.

use schemas::config::ConfigError;

/// No message can be decoded. The cause is not a message, so none becomes a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A secret that cannot be read.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// `kafka.schema_file` cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// `kafka.schema_file` is no schema, or not one of a record.
    #[error("{path} (kafka.schema_file): {problem}")]
    SchemaFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field that the configuration names and the schema of `kafka.schema_file` does not have.
    #[error("{path} has no field `{column}`, which `{key}` names; it has: {}", present.join(", "))]
    NoSuchField {
        /// The file.
        path: String,
        /// The missing field.
        column: String,
        /// The configuration's key.
        key: String,
        /// Those that exist.
        present: Vec<String>,
    },
    /// `kafka.schema_registry` is no address.
    #[error("kafka.schema_registry: {problem}; write an address such as http://localhost:8081")]
    Address {
        /// What is wrong with it.
        problem: String,
    },
    /// No client for the registry, mostly for want of the system's certificates.
    #[error("cannot prepare requests to the schema registry")]
    Client(#[source] reqwest::Error),
    /// The registry does not answer, or not as one.
    #[error("the schema registry at {url} {problem}; {advice}")]
    Registry {
        /// Without credentials.
        url: String,
        /// What happened.
        problem: String,
        /// What to do.
        advice: &'static str,
    },
    /// A stop was asked for while the registry was away.
    #[error("stopped while waiting for the schema registry")]
    Interrupted,
}
