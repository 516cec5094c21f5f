//! Messages that say which type of their schema they are of.

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
    /// Those that there were messages of, by their place: that of the outermost type in the file, and so inwards.
    seen: Vec<(Vec<usize>, Message)>,
    /// The place in the message at hand.
    place: Vec<usize>,
}

impl Types {
    pub(in super::super) fn new(file: FileDescriptor, wanted: &[String]) -> Self {
        Self { file, wanted: wanted.to_vec(), seen: Vec::new(), place: Vec::new() }
    }

    /// Like [`Message::decode`], with the place of the message's type before it.
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
            // The entries of maps are types without a place in the text.
            let next = message.child_messages().filter(|child| !child.is_map_entry()).nth(at)?;
            message = next;
        }
        Some(message)
    }
}

/// How many numbers there are, and these; no number stands for the first type.
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
