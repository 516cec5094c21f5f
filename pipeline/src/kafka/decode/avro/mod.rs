//! Decodes Avro's binary encoding. A record is the concatenation of its fields, so the decoder walks through all fields
//! and keeps the wanted ones. Text is not copied.
//!
//! [`apache_avro`] reads the schemas. Its decoder accepts some truncated records, and does not limit the nesting and the
//! counts of hostile bytes; here a message of `n` bytes takes at most `O(n)` memory and [`DEPTH_MAX`] levels of the stack.
//!
//! Source: <https://avro.apache.org/docs/1.12.0/specification/#binary-encoding>.

use std::borrow::Cow;

use super::wire::{Bytes, Malformed, element, text};
use crate::records::Value;

mod decimal;
mod schema;

use decimal::decimal;

/// Maximum nesting of a value.
const DEPTH_MAX: usize = 64;

const MS_PER_DAY: i64 = 86_400_000;

/// The position of a type in [`Schema::nodes`]; an index, because types may contain themselves.
type NodeId = usize;

/// A type, reduced to what decoding needs.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Null,
    Boolean,
    /// `int` and `long` are one on the wire.
    Integer,
    Float,
    Double,
    Bytes,
    Fixed(usize),
    UuidBytes,
    UuidFixed(usize),
    /// The number of bytes (`None`: a length precedes the value), and the digits after the point.
    Decimal(Option<usize>, usize),
    /// A decimal in bytes that also hold the number of digits after the point.
    BigDecimal,
    /// Days since the epoch.
    Date,
    /// A time since the epoch, with this many ticks a millisecond.
    Instant(i64),
    TimeOfDay,
    Duration(usize),
    Enum(Vec<String>),
    Array(NodeId),
    Map(NodeId),
    Union(Vec<NodeId>),
    Record(Vec<Field>),
    /// A name without a definition yet; a complete schema has none.
    Undefined,
}

#[derive(Debug, Clone, PartialEq)]
struct Field {
    name: String,
    node: NodeId,
    /// The number of the wanted field, in the message's own record.
    wanted: Option<usize>,
}

/// The schema of messages.
#[derive(Debug)]
pub(super) struct Schema {
    nodes: Vec<Node>,
    /// Node → whether its values take no bytes.
    empty: Vec<bool>,
    root: NodeId,
}

impl Schema {
    /// The names of the record's fields; `None` if the schema is not a record.
    pub(super) fn fields(&self) -> Option<Vec<String>> {
        match &self.nodes[self.root] {
            Node::Record(fields) => Some(fields.iter().map(|field| field.name.clone()).collect()),
            _ => None,
        }
    }

    /// Fills `values` with the wanted fields of the record in `value`, which must span all of `value`.
    pub(super) fn decode<'a>(&'a self, value: &'a [u8], values: &mut [Value<'a>]) -> Result<(), Malformed> {
        let mut bytes = Bytes(value);
        let mut node = self.root;
        // Several types of events in one topic: a union of records.
        if let Node::Union(branches) = &self.nodes[node] {
            node = branch(branches, &mut bytes)?;
        }
        match &self.nodes[node] {
            Node::Record(fields) => {
                for field in fields {
                    let read = match field.wanted {
                        Some(at) => self.read(field.node, &mut bytes, 1).map(|value| values[at] = value),
                        None => self.skip(field.node, &mut bytes, 1),
                    };
                    read.map_err(|malformed| malformed.of(&field.name))?;
                }
            }
            _ => self.skip(node, &mut bytes, 1)?,
        }
        match bytes.len() {
            0 => Ok(()),
            left => Err(Malformed::new(format!("{left} bytes follow the record"))),
        }
    }

    fn read<'a>(&'a self, node: NodeId, bytes: &mut Bytes<'a>, depth: usize) -> Result<Value<'a>, Malformed> {
        Ok(match &self.nodes[node] {
            Node::Null => Value::Null,
            Node::Boolean => Value::Bool(boolean(bytes)?),
            Node::Integer => Value::Int(bytes.zigzag()?),
            Node::Float => Value::Single(f32::from_le_bytes(bytes.array()?)),
            Node::Double => Value::Float(f64::from_le_bytes(bytes.array()?)),
            Node::Bytes => text(sized(bytes)?),
            Node::Fixed(size) => text(bytes.take(*size)?),
            Node::UuidBytes => uuid(sized(bytes)?),
            Node::UuidFixed(size) => uuid(bytes.take(*size)?),
            Node::Decimal(None, scale) => decimal(sized(bytes)?, *scale),
            Node::Decimal(Some(size), scale) => decimal(bytes.take(*size)?, *scale),
            Node::BigDecimal => {
                let mut inner = Bytes(sized(bytes)?);
                let digits = sized(&mut inner)?;
                decimal(digits, usize::try_from(inner.zigzag()?).unwrap_or(usize::MAX))
            }
            Node::Date => Value::Instant(bytes.zigzag()?.saturating_mul(MS_PER_DAY)),
            Node::Instant(ticks_per_ms) => Value::Instant(bytes.zigzag()?.div_euclid(*ticks_per_ms)),
            Node::Enum(symbols) => Value::Text(Cow::Borrowed(symbol(symbols, bytes)?)),
            Node::Union(branches) => {
                let branch = branch(branches, bytes)?;
                self.read(branch, bytes, deeper(depth)?)?
            }
            Node::Array(items) => self.list(*items, bytes, depth)?,
            other => {
                let kind = match other {
                    Node::TimeOfDay => "a time of day",
                    Node::Duration(_) => "a duration",
                    Node::Map(_) => "a map",
                    _ => "a record",
                };
                self.skip(node, bytes, depth)?;
                Value::Other(kind)
            }
        })
    }

    /// Skips a value.
    fn skip(&self, node: NodeId, bytes: &mut Bytes<'_>, depth: usize) -> Result<(), Malformed> {
        if self.empty[node] {
            return Ok(());
        }
        match &self.nodes[node] {
            Node::Null => Ok(()),
            Node::Boolean => boolean(bytes).map(drop),
            Node::Integer | Node::Date | Node::Instant(_) | Node::TimeOfDay => bytes.zigzag().map(drop),
            Node::Float => bytes.array::<4>().map(drop),
            Node::Double => bytes.array::<8>().map(drop),
            Node::Bytes | Node::UuidBytes | Node::BigDecimal | Node::Decimal(None, _) => {
                sized(bytes).map(drop)
            }
            Node::Fixed(size)
            | Node::UuidFixed(size)
            | Node::Duration(size)
            | Node::Decimal(Some(size), _) => bytes.take(*size).map(drop),
            Node::Enum(symbols) => symbol(symbols, bytes).map(drop),
            Node::Union(branches) => {
                let branch = branch(branches, bytes)?;
                self.skip(branch, bytes, deeper(depth)?)
            }
            Node::Array(items) => {
                let depth = deeper(depth)?;
                self.blocks(*items, bytes, |bytes| self.skip(*items, bytes, depth))
            }
            Node::Map(values) => {
                let depth = deeper(depth)?;
                blocks(bytes, false, |bytes| {
                    sized(bytes)?;
                    self.skip(*values, bytes, depth)
                })
            }
            Node::Record(fields) => {
                let depth = deeper(depth)?;
                fields.iter().try_for_each(|field| self.skip(field.node, bytes, depth))
            }
            Node::Undefined => Err(Malformed::new("a type without a definition")),
        }
    }

    /// An array of elements that convert to text, or a value that reports an array of others.
    fn list<'a>(
        &'a self,
        items: NodeId,
        bytes: &mut Bytes<'a>,
        depth: usize,
    ) -> Result<Value<'a>, Malformed> {
        let depth = deeper(depth)?;
        let mut texts = Some(Vec::new());
        self.blocks(items, bytes, |bytes| {
            let value = self.read(items, bytes, depth)?;
            if value != Value::Null {
                texts = texts.take().zip(element(value)).map(|(mut texts, text)| {
                    texts.push(Value::Text(text));
                    texts
                });
            }
            Ok(())
        })?;
        Ok(texts.map_or(Value::Other("a list of something else than text"), Value::List))
    }

    fn blocks<'a>(
        &self,
        items: NodeId,
        bytes: &mut Bytes<'a>,
        item: impl FnMut(&mut Bytes<'a>) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        blocks(bytes, self.empty[items], item)
    }
}

/// The items of an array or a map: blocks of a count and that many items, up to an empty block. A negative count is
/// followed by the size of the block.
fn blocks<'a>(
    bytes: &mut Bytes<'a>,
    empty: bool,
    mut item: impl FnMut(&mut Bytes<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    loop {
        let mut count = bytes.zigzag()?;
        if count == 0 {
            return Ok(());
        }
        if count < 0 {
            bytes.zigzag()?;
            count = count.checked_neg().ok_or_else(|| Malformed::new("a count beyond 64 bits"))?;
        }
        // Items that take no bytes may come in any number; none has a value.
        if empty {
            continue;
        }
        if usize::try_from(count).map_or(true, |count| count > bytes.len()) {
            return Err(Malformed::new(format!("{count} items are announced in {} bytes", bytes.len())));
        }
        for _ in 0..count {
            item(bytes)?;
        }
    }
}

fn deeper(depth: usize) -> Result<usize, Malformed> {
    if depth >= DEPTH_MAX {
        return Err(Malformed::new(format!("nested more than {DEPTH_MAX} levels deep")));
    }
    Ok(depth + 1)
}

fn branch(branches: &[NodeId], bytes: &mut Bytes<'_>) -> Result<NodeId, Malformed> {
    let index = bytes.zigzag()?;
    let branch = usize::try_from(index).ok().and_then(|index| branches.get(index));
    branch.copied().ok_or_else(|| Malformed::new(format!("the union has no branch {index}")))
}

fn symbol<'s>(symbols: &'s [String], bytes: &mut Bytes<'_>) -> Result<&'s str, Malformed> {
    let index = bytes.zigzag()?;
    let symbol = usize::try_from(index).ok().and_then(|index| symbols.get(index));
    symbol.map(String::as_str).ok_or_else(|| Malformed::new(format!("the enum has no symbol {index}")))
}

fn boolean(bytes: &mut Bytes<'_>) -> Result<bool, Malformed> {
    match bytes.array()? {
        [0] => Ok(false),
        [1] => Ok(true),
        [byte] => Err(Malformed::new(format!("{byte} is not a boolean"))),
    }
}

fn sized<'a>(bytes: &mut Bytes<'a>) -> Result<&'a [u8], Malformed> {
    let len = bytes.zigzag()?;
    bytes.take(usize::try_from(len).map_err(|_| Malformed::new(format!("{len} is not a length")))?)
}

fn uuid(bytes: &[u8]) -> Value<'static> {
    match uuid::Uuid::from_slice(bytes) {
        Ok(uuid) => Value::Text(Cow::Owned(uuid.to_string())),
        Err(_) => Value::Other("a UUID of other than 16 bytes"),
    }
}
