//! Reads the bytes of a binary message from front to back. A length in the message never decides an allocation.

use std::borrow::Cow;

use schemas::tables::Reason;

use crate::records::{Rejection, Value};

/// The problem with the bytes of a message.
#[derive(Debug, PartialEq)]
pub(super) struct Malformed(Cow<'static, str>);

impl Malformed {
    pub(super) fn new(problem: impl Into<Cow<'static, str>>) -> Self {
        Self(problem.into())
    }

    /// The same problem, with the field's name before it.
    pub(super) fn of(self, field: &str) -> Self {
        Self::new(format!("{field}: {}", self.0))
    }
}

impl From<Malformed> for Rejection {
    fn from(malformed: Malformed) -> Self {
        Self::new(Reason::MalformedBinary, malformed.0)
    }
}

/// The unread rest of a message.
#[derive(Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let Some((taken, rest)) = self.0.split_at_checked(len) else {
            return Err(Malformed::new(format!("{len} bytes are announced and {} are left", self.len())));
        };
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let Some((taken, rest)) = self.0.split_first_chunk() else {
            return Err(Malformed::new("the message ends too early"));
        };
        self.0 = rest;
        Ok(*taken)
    }

    /// An unsigned number in groups of seven bits, the lowest first (LEB128).
    pub(super) fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0;
        for place in 0..10 {
            let [byte] = self.array()?;
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                // The tenth group has room for one bit.
                let fits = place < 9 || byte <= 1;
                return if fits { Ok(number) } else { Err(Malformed::new("a number beyond 64 bits")) };
            }
        }
        Err(Malformed::new("a number beyond 64 bits"))
    }

    /// A signed number in zigzag encoding: small numbers of both signs take few bytes.
    pub(super) fn zigzag(&mut self) -> Result<i64, Malformed> {
        self.varint().map(unzigzag)
    }
}

pub(super) fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Text, if it is UTF-8.
pub(super) fn text(bytes: &[u8]) -> Value<'_> {
    std::str::from_utf8(bytes).map_or(Value::NotUtf8, |text| Value::Text(Cow::Borrowed(text)))
}

/// A number that may be beyond an `i64`.
pub(super) fn unsigned(number: u64) -> Value<'static> {
    i64::try_from(number).map_or_else(|_| Value::Text(Cow::Owned(number.to_string())), Value::Int)
}

/// An element of a list as text; `None` if it does not convert to text.
pub(super) fn element(value: Value<'_>) -> Option<Cow<'_, str>> {
    match value {
        Value::Text(text) => Some(text),
        Value::Int(number) => Some(Cow::Owned(number.to_string())),
        Value::Float(number) => Some(Cow::Owned(number.to_string())),
        Value::Single(number) => Some(Cow::Owned(number.to_string())),
        Value::Bool(value) => Some(Cow::Borrowed(if value { "true" } else { "false" })),
        _ => None,
    }
}
