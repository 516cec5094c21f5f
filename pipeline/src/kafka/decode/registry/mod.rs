//! Schemas from a registry with Confluent's API, by the id at the head of each message.
//!
//! A message is the byte 0, the schema's id as four bytes, highest first, and the body. The schema of an id never
//! changes, so the registry is asked once for each id. An unknown id may be registered later, so it is asked for again.
//!
//! Source: <https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format>.

use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};
use schemas::config::{Kafka, MessageFormat};
use schemas::tables::Reason;
use terminal::Interrupt;
use tokio::runtime::Handle;

use super::Fault;
use super::avro;
use super::error::DecodeError;
use super::protobuf;
use super::wire::{Bytes, Malformed};
use crate::records::{Rejection, Value};

mod client;

use client::{Client, Registered};

/// Time after which the registry is asked again for an unknown id.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Maximum unknown ids that are remembered: garbage may contain any id.
const UNKNOWN_MAX: usize = 10_000;

const PROBLEM_CHARS_MAX: usize = 300;

/// A compiled schema.
enum Schema {
    Avro(avro::Schema),
    Protobuf(protobuf::Types),
}

/// An id without a usable schema.
struct Unknown {
    rejection: Rejection,
    since: Instant,
}

/// Decodes messages with the schemas that they name.
pub(super) struct Registry {
    client: Client,
    runtime: Handle,
    format: MessageFormat,
    fields: Vec<String>,
    schemas: HashMap<u32, Schema>,
    unknown: HashMap<u32, Unknown>,
    ask_again_after: Duration,
}

impl Registry {
    /// Creates the client; sends no request yet.
    pub(super) fn new(
        kafka: &Kafka,
        address: &str,
        fields: &[String],
        runtime: &Handle,
        interrupt: &Interrupt,
    ) -> Result<Self, DecodeError> {
        Ok(Self {
            client: Client::new(kafka, address, interrupt)?,
            runtime: runtime.clone(),
            format: kafka.format,
            fields: fields.to_vec(),
            schemas: HashMap::new(),
            unknown: HashMap::new(),
            ask_again_after: ASK_AGAIN_AFTER,
        })
    }

    /// Fills `values` with the wanted fields of the message in `value`.
    pub(super) fn decode<'a>(&'a mut self, value: &'a [u8], values: &mut [Value<'a>]) -> Result<(), Fault> {
        let (id, body) = framed(value).map_err(Rejection::from)?;
        if !self.schemas.contains_key(&id) {
            self.find(id)?;
        }
        match self.schemas.get_mut(&id) {
            Some(Schema::Avro(schema)) => Ok(schema.decode(body, values).map_err(Rejection::from)?),
            Some(Schema::Protobuf(types)) => Ok(types.decode(body, values)?),
            None => Err(not_registered(id).into()),
        }
    }

    /// Gets and compiles a schema that is not cached.
    fn find(&mut self, id: u32) -> Result<(), Fault> {
        if let Some(unknown) = self.unknown.get(&id) {
            if unknown.since.elapsed() < self.ask_again_after {
                return Err(unknown.rejection.clone().into());
            }
            self.unknown.remove(&id);
        }
        let found = match self.runtime.block_on(self.client.schema(id))? {
            Some(registered) => self.compile(id, registered),
            None => Err(not_registered(id)),
        };
        match found {
            Ok(schema) => {
                self.schemas.insert(id, schema);
                Ok(())
            }
            Err(rejection) => {
                if self.unknown.len() >= UNKNOWN_MAX {
                    self.unknown.clear();
                }
                let since = Instant::now();
                self.unknown.insert(id, Unknown { rejection: rejection.clone(), since });
                Err(rejection.into())
            }
        }
    }

    fn compile(&self, id: u32, registered: Registered) -> Result<Schema, Rejection> {
        let unusable = |problem: String| {
            // The problem is stored with each message and may quote the whole schema, so truncate it.
            let problem: String = problem.chars().take(PROBLEM_CHARS_MAX).collect();
            Rejection::new(Reason::UnknownSchema, format!("schema {id}: {problem}"))
        };
        let Registered { kind, text, imports } = registered;
        if let Some(problem) = imports.problem {
            return Err(unusable(problem));
        }
        let schema = match (self.format, kind.as_str()) {
            (MessageFormat::Avro, "AVRO") => {
                let imports: Vec<String> = imports.texts.into_iter().map(|(_, text)| text).collect();
                avro::Schema::parse(&text, &imports, &self.fields).map(Schema::Avro)
            }
            (MessageFormat::Protobuf, "PROTOBUF") => {
                let file = protobuf::compile(&format!("{id}.proto"), text, imports.texts);
                file.map(|file| Schema::Protobuf(protobuf::Types::new(file, &self.fields)))
            }
            _ => Err(format!("is of type {kind}, and kafka.format says another one")),
        };
        schema.map_err(unusable)
    }

    #[cfg(test)]
    pub(super) fn forget_unknown(&mut self) {
        self.ask_again_after = Duration::ZERO;
    }
}

fn not_registered(id: u32) -> Rejection {
    Rejection::new(Reason::UnknownSchema, format!("the registry has no schema {id}"))
}

/// The schema's id and the body.
fn framed(value: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let mut bytes = Bytes(value);
    match bytes.array()? {
        [0] => Ok((u32::from_be_bytes(bytes.array()?), bytes.0)),
        [other] => {
            let problem = format!("begins with the byte {other} and not with 0 and the id of a schema");
            Err(Malformed::new(problem))
        }
    }
}
