//! Decodes the values of messages to the fields of a record.
//!
//! | `kafka.format` | a value is | its schema |
//! |---|---|---|
//! | `json` | one object | none |
//! | `avro`, `protobuf` with `kafka.schema_registry` | a schema's id, and a record | the registry's |
//! | `avro`, `protobuf` with `kafka.schema_file` | a record | the file's |
//!
//! A value that does not match its format is a dead letter. Without a schema no value can be checked; the program then
//! stops before it loses any.

mod avro;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod json;
mod protobuf;
mod registry;
#[cfg(test)]
mod tests;
mod wire;

use std::path::Path;

use schemas::config::{Kafka, MessageFormat};
use terminal::Interrupt;
use tokio::runtime::Handle;

pub use error::DecodeError;

use crate::records::{Fields, Need, Rejection, Slots, Value, Wanted};

/// Why a value was not decoded.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The message is a dead letter.
    Rejected(Rejection),
    /// Nothing can be decoded now.
    Stop(DecodeError),
}

impl From<Rejection> for Fault {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<DecodeError> for Fault {
    fn from(error: DecodeError) -> Self {
        Self::Stop(error)
    }
}

enum Format {
    Json(json::Json),
    Avro(avro::Schema),
    Protobuf(protobuf::Message),
    Registry(Box<registry::Registry>),
}

/// Decodes the values of one topic's messages.
pub(crate) struct Decoder {
    slots: Slots,
    format: Format,
    /// Empty between two messages; kept for its memory.
    values: Vec<Value<'static>>,
}

/// The fields of one message's value.
pub(crate) struct Decoded<'a> {
    slots: &'a Slots,
    values: Vec<Value<'a>>,
    home: &'a mut Vec<Value<'static>>,
}

impl Fields for Decoded<'_> {
    fn value(&self, slot: usize) -> Value<'_> {
        self.slots.value(&self.values, slot)
    }
}

impl Drop for Decoded<'_> {
    fn drop(&mut self) {
        *self.home = emptied(std::mem::take(&mut self.values));
    }
}

/// Empties `values` and reuses its memory for values with another lifetime.
fn emptied<'b>(mut values: Vec<Value<'_>>) -> Vec<Value<'b>> {
    values.clear();
    // Collects in place: the vector is empty, and the elements have the same size.
    values.into_iter().map(|_| Value::Absent).collect()
}

impl Decoder {
    /// Reads and compiles `kafka.schema_file`. A registry is asked only when a message needs it:
    /// [`Self::decode`] then waits on `runtime`, up to `kafka.patience` or until `interrupt`.
    pub(crate) fn new(
        kafka: &Kafka,
        wanted: &[Wanted],
        runtime: &Handle,
        interrupt: &Interrupt,
    ) -> Result<Self, DecodeError> {
        let slots = Slots::new(wanted);
        let format = match (kafka.format, &kafka.schema_registry, &kafka.schema_file) {
            (MessageFormat::Json, _, _) => Format::Json(json::Json::default()),
            (_, Some(address), _) => {
                let registry = registry::Registry::new(kafka, address, &slots.fields, runtime, interrupt)?;
                Format::Registry(Box::new(registry))
            }
            (format, None, Some(path)) => from_file(format, path, kafka, wanted, &slots.fields)?,
            (_, None, None) => {
                return Err(DecodeError::SchemaFile {
                    path: "no file".into(),
                    problem: "kafka.format needs kafka.schema_registry or kafka.schema_file".into(),
                });
            }
        };
        Ok(Self { slots, format, values: Vec::new() })
    }

    /// The fields of one message's value. Must not be called inside an asynchronous task.
    pub(crate) fn decode<'a>(&'a mut self, value: &'a [u8]) -> Result<Decoded<'a>, Fault> {
        let Self { slots, format, values: home } = self;
        let slots: &'a Slots = slots;
        let mut values = emptied(std::mem::take(home));
        values.resize_with(slots.fields.len(), || Value::Absent);
        let done = match format {
            Format::Json(json) => json.decode(value, &slots.fields, &mut values).map_err(Fault::from),
            Format::Avro(schema) => schema.decode(value, &mut values).map_err(|m| Rejection::from(m).into()),
            Format::Protobuf(message) => {
                message.decode(value, &mut values).map_err(|m| Rejection::from(m).into())
            }
            Format::Registry(registry) => registry.decode(value, &mut values),
        };
        match done {
            Ok(()) => Ok(Decoded { slots, values, home }),
            Err(fault) => {
                *home = emptied(values);
                Err(fault)
            }
        }
    }
}

/// The schema in `kafka.schema_file`, which must have the fields that the configuration names.
fn from_file(
    format: MessageFormat,
    path: &str,
    kafka: &Kafka,
    wanted: &[Wanted],
    fields: &[String],
) -> Result<Format, DecodeError> {
    let fail = |problem: String| DecodeError::SchemaFile { path: path.to_owned(), problem };
    let (schema, present) = if format == MessageFormat::Avro {
        let text = std::fs::read_to_string(path)
            .map_err(|source| DecodeError::Read { path: path.to_owned(), source })?;
        let schema = avro::Schema::parse(&text, &[], fields).map_err(fail)?;
        let present = schema.fields().ok_or_else(|| fail("not the schema of a record".into()))?;
        (Format::Avro(schema), present)
    } else {
        let file = protobuf::compile_file(Path::new(path)).map_err(fail)?;
        let names = || file.messages().map(|message| message.full_name().to_owned()).collect::<Vec<_>>();
        let message = match &kafka.message {
            Some(name) => file.parent_pool().get_message_by_name(name).ok_or_else(|| {
                fail(format!("has no message {name} (kafka.message); it has: {}", names().join(", ")))
            })?,
            None => match (file.messages().next(), file.messages().len()) {
                (Some(message), 1) => message,
                (_, 0) => return Err(fail("has no message".into())),
                _ => {
                    return Err(fail(format!("kafka.message must name one of: {}", names().join(", "))));
                }
            },
        };
        let present = message.fields().map(|field| field.name().to_owned()).collect();
        (Format::Protobuf(protobuf::Message::new(&message, fields)), present)
    };
    let missing = wanted.iter().find(|w| w.need != Need::IfPresent && !present.contains(&w.column));
    match missing {
        Some(missing) => Err(DecodeError::NoSuchField {
            path: path.to_owned(),
            column: missing.column.clone(),
            key: missing.key.clone(),
            present,
        }),
        None => Ok(schema),
    }
}
