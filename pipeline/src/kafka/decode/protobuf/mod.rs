//! Decodes Protobuf's wire format. Text is not copied.
//!
//! Unwanted fields are skipped without decoding. If a field that is not a list occurs twice, the last one counts;
//! no writer produces such messages.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>.

use std::borrow::Cow;

use super::wire::{Bytes, Malformed, element, text, unsigned, unzigzag};
use crate::records::Value;

mod schema;
mod types;

pub(super) use schema::{compile, compile_file};
pub(super) use types::Types;

/// Maximum nesting of groups.
const DEPTH_MAX: usize = 64;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const SIZED: u8 = 2;
const GROUP: u8 = 3;
const GROUP_END: u8 = 4;
const FIXED32: u8 = 5;

/// A message type, reduced to what the wanted fields need.
#[derive(Debug)]
pub(super) struct Message {
    /// Sorted by number.
    known: Vec<Known>,
    /// Wanted field → its value in a message without it.
    absent: Vec<Value<'static>>,
}

/// A field of the schema that is wanted or excludes wanted ones.
#[derive(Debug)]
struct Known {
    number: u32,
    /// The wanted field, if it is one.
    wanted: Option<Wanted>,
    /// Wanted fields that lose their value when this one has one (`oneof`).
    excludes: Vec<usize>,
}

#[derive(Debug)]
struct Wanted {
    at: usize,
    kind: Kind,
    list: bool,
}

/// How the bytes of a field are read.
#[derive(Debug)]
enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint,
    Fixed32,
    Fixed64,
    Sfixed32,
    Sfixed64,
    Float,
    Double,
    /// `string` and `bytes`.
    Text,
    /// Number → name, sorted by number.
    Enum(Vec<(i32, String)>),
    /// `google.protobuf.Timestamp`.
    Timestamp,
    /// `google.protobuf.StringValue` and similar: a message whose field 1 is the value, and its default.
    Wrapper(Box<Kind>, Value<'static>),
    /// A message, a map or a group.
    Other(&'static str),
}

impl Kind {
    fn wire_type(&self) -> u8 {
        match self {
            Self::Bool | Self::Int32 | Self::Int64 | Self::Uint32 | Self::Uint64 | Self::Sint => VARINT,
            Self::Enum(_) => VARINT,
            Self::Fixed32 | Self::Sfixed32 | Self::Float => FIXED32,
            Self::Fixed64 | Self::Sfixed64 | Self::Double => FIXED64,
            Self::Text | Self::Timestamp | Self::Wrapper(..) | Self::Other(_) => SIZED,
        }
    }

    fn read<'a>(&'a self, bytes: &mut Bytes<'a>) -> Result<Value<'a>, Malformed> {
        Ok(match self {
            Self::Bool => Value::Bool(bytes.varint()? != 0),
            Self::Int32 => Value::Int(i64::from(bytes.varint()? as i32)),
            Self::Int64 => Value::Int(bytes.varint()? as i64),
            Self::Uint32 => Value::Int(i64::from(bytes.varint()? as u32)),
            Self::Uint64 => unsigned(bytes.varint()?),
            Self::Sint => Value::Int(unzigzag(bytes.varint()?)),
            Self::Fixed32 => Value::Int(i64::from(u32::from_le_bytes(bytes.array()?))),
            Self::Fixed64 => unsigned(u64::from_le_bytes(bytes.array()?)),
            Self::Sfixed32 => Value::Int(i64::from(i32::from_le_bytes(bytes.array()?))),
            Self::Sfixed64 => Value::Int(i64::from_le_bytes(bytes.array()?)),
            Self::Float => Value::Single(f32::from_le_bytes(bytes.array()?)),
            Self::Double => Value::Float(f64::from_le_bytes(bytes.array()?)),
            Self::Text => text(sized(bytes)?),
            Self::Enum(names) => enum_value(names, bytes.varint()? as i32),
            Self::Timestamp => timestamp(sized(bytes)?)?,
            Self::Wrapper(kind, default) => wrapped(kind, default, sized(bytes)?)?,
            Self::Other(kind) => {
                sized(bytes)?;
                Value::Other(kind)
            }
        })
    }
}

impl Message {
    /// Fills `values` with the wanted fields of the message in `value`.
    pub(super) fn decode<'a>(&'a self, value: &'a [u8], values: &mut [Value<'a>]) -> Result<(), Malformed> {
        for (value, absent) in values.iter_mut().zip(&self.absent) {
            *value = absent.borrowed();
        }
        let mut bytes = Bytes(value);
        while !bytes.is_empty() {
            let (number, wire_type) = tag(&mut bytes)?;
            let Ok(at) = self.known.binary_search_by_key(&number, |known| known.number) else {
                skip(number, wire_type, &mut bytes, 0)?;
                continue;
            };
            let known = &self.known[at];
            known.excludes.iter().for_each(|&excluded| values[excluded] = Value::Null);
            let read = match &known.wanted {
                Some(wanted) => wanted.read(number, wire_type, &mut bytes, &mut values[wanted.at]),
                None => skip(number, wire_type, &mut bytes, 0),
            };
            read.map_err(|malformed| malformed.of(&format!("field {number}")))?;
        }
        Ok(())
    }
}

impl Wanted {
    fn read<'a>(
        &'a self,
        number: u32,
        wire_type: u8,
        bytes: &mut Bytes<'a>,
        value: &mut Value<'a>,
    ) -> Result<(), Malformed> {
        if let Kind::Other(kind) = &self.kind {
            *value = Value::Other(kind);
            return skip(number, wire_type, bytes, 0);
        }
        let packed = self.list && wire_type == SIZED && self.kind.wire_type() != SIZED;
        if wire_type != self.kind.wire_type() && !packed {
            return Err(Malformed::new("not of the type that the schema says"));
        }
        if !self.list {
            *value = self.kind.read(bytes)?;
            return Ok(());
        }
        if packed {
            let mut elements = Bytes(sized(bytes)?);
            while !elements.is_empty() {
                push(value, self.kind.read(&mut elements)?);
            }
        } else {
            push(value, self.kind.read(bytes)?);
        }
        Ok(())
    }
}

fn push<'a>(list: &mut Value<'a>, value: Value<'a>) {
    let Some(text) = element(value) else {
        *list = Value::Other("a list of something else than text");
        return;
    };
    match list {
        Value::List(texts) => texts.push(Value::Text(text)),
        Value::Null => *list = Value::List(vec![Value::Text(text)]),
        _ => {}
    }
}

fn enum_value(names: &[(i32, String)], number: i32) -> Value<'_> {
    match names.binary_search_by_key(&number, |(number, _)| *number) {
        Ok(at) => Value::Text(Cow::Borrowed(&names[at].1)),
        // A newer schema may have a name for it.
        Err(_) => Value::Int(i64::from(number)),
    }
}

/// Field 1 are seconds, and field 2 nanoseconds in addition.
fn timestamp<'a>(value: &[u8]) -> Result<Value<'a>, Malformed> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut bytes = Bytes(value);
    while !bytes.is_empty() {
        match tag(&mut bytes)? {
            (1, VARINT) => seconds = bytes.varint()? as i64,
            (2, VARINT) => nanos = bytes.varint()? as i32,
            (number, wire_type) => skip(number, wire_type, &mut bytes, 0)?,
        }
    }
    let ms = i64::from(nanos).div_euclid(1_000_000);
    Ok(Value::Instant(seconds.saturating_mul(1_000).saturating_add(ms)))
}

fn wrapped<'a>(kind: &'a Kind, default: &'a Value<'static>, value: &'a [u8]) -> Result<Value<'a>, Malformed> {
    let mut found = default.borrowed();
    let mut bytes = Bytes(value);
    while !bytes.is_empty() {
        match tag(&mut bytes)? {
            (1, wire_type) if wire_type == kind.wire_type() => found = kind.read(&mut bytes)?,
            (number, wire_type) => skip(number, wire_type, &mut bytes, 0)?,
        }
    }
    Ok(found)
}

/// The number and the wire type of the next field.
fn tag(bytes: &mut Bytes<'_>) -> Result<(u32, u8), Malformed> {
    let tag = bytes.varint()?;
    match u32::try_from(tag >> 3) {
        Ok(number @ 1..=0x1fff_ffff) => Ok((number, (tag & 7) as u8)),
        _ => Err(Malformed::new(format!("{} is not the number of a field", tag >> 3))),
    }
}

fn sized<'a>(bytes: &mut Bytes<'a>) -> Result<&'a [u8], Malformed> {
    let len = bytes.varint()?;
    bytes.take(usize::try_from(len).unwrap_or(usize::MAX))
}

/// Skips a field's value.
fn skip(number: u32, wire_type: u8, bytes: &mut Bytes<'_>, depth: usize) -> Result<(), Malformed> {
    match wire_type {
        VARINT => bytes.varint().map(drop),
        FIXED64 => bytes.array::<8>().map(drop),
        FIXED32 => bytes.array::<4>().map(drop),
        SIZED => sized(bytes).map(drop),
        GROUP if depth >= DEPTH_MAX => {
            Err(Malformed::new(format!("nested more than {DEPTH_MAX} levels deep")))
        }
        GROUP => loop {
            match tag(bytes)? {
                (end, GROUP_END) if end == number => return Ok(()),
                (inner, wire_type) => skip(inner, wire_type, bytes, depth + 1)?,
            }
        },
        other => Err(Malformed::new(format!("field {number} has the wire type {other}"))),
    }
}
