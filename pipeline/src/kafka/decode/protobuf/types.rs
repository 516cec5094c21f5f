//! Decodes messages that begin with the position of their type in the schema.

use prost_reflect::{FileDescriptor, MessageDescriptor};
use schemas::tables::Reason;

use super::super::wire::{Bytes, Malformed};
use super::Message;
use crate::records::{Rejection, Value};

/// The types of a schema of the registry.
#[derive(Debug)]
pub(in super::super) struct Types {
    file: FileDescriptor,
    wanted: Vec<String>,
    /// Types of earlier messages, by position: the index of the outermost type in the file, then of each nested type.
    seen: Vec<(Vec<usize>, Message)>,
    /// The position in the current message.
    place: Vec<usize>,
}

impl Types {
    pub(in super::super) fn new(file: FileDescriptor, wanted: &[String]) -> Self {
        Self { file, wanted: wanted.to_vec(), seen: Vec::new(), place: Vec::new() }
    }

    /// Like [`Message::decode`], for a `value` that begins with the position of its type.
    pub(in super::super) fn decode<'a>(
        &'a mut self,
        value: &'a [u8],
        values: &mut [Value<'a>],
    ) -> Result<(), Rejection> {
        let mut bytes = Bytes(value);
        read_place(&mut bytes, &mut self.place)?;
        let known = self.seen.iter().position(|(place, _)| *place == self.place);
        let at = match known {
            Some(at) => at,
            None => {
                let Some(message) = self.find() else {
                    let place = &self.place;
                    let problem = format!("the schema {} has no type at {place:?}", self.file.name());
                    return Err(Rejection::new(Reason::UnknownSchema, problem));
                };
                self.seen.push((self.place.clone(), Message::new(&message, &self.wanted)));
                self.seen.len() - 1
            }
        };
        Ok(self.seen[at].1.decode(bytes.0, values)?)
    }

    fn find(&self) -> Option<MessageDescriptor> {
        let (&first, inner) = self.place.split_first()?;
        let mut message = self.file.messages().nth(first)?;
        for &at in inner {
            // The entry types of maps are not in the text and have no position.
            let next = message.child_messages().filter(|child| !child.is_map_entry()).nth(at)?;
            message = next;
        }
        Some(message)
    }
}

/// Reads the number of indexes and the indexes; none at all means the first type.
fn read_place(bytes: &mut Bytes<'_>, place: &mut Vec<usize>) -> Result<(), Malformed> {
    place.clear();
    let count = bytes.zigzag()?;
    if usize::try_from(count).map_or(true, |count| count > bytes.len()) {
        return Err(Malformed::new(format!("{count} numbers of types in {} bytes", bytes.len())));
    }
    for _ in 0..count {
        let at = bytes.zigzag()?;
        place.push(usize::try_from(at).map_err(|_| Malformed::new(format!("{at} is no number of a type")))?);
    }
    if place.is_empty() {
        place.push(0);
    }
    Ok(())
}
