//! Files with one JSON object a line. Text without escapes is not copied.

use schemas::tables::Reason;
use serde::de::DeserializeSeed;

use super::super::blocks::{LineEnd, TextBlock, TextBlocks};
use super::super::error::SourceError;
use super::super::files::{ByteCount, InputFile, ReadOptions, open};
use super::super::record::{Raw, Records, Step, no_such_column, trim_line_end};
use crate::records::{Fields, JsonKey, Need, Object, Rejection, Slots, Value, Wanted};

/// A required field that none of the first so many objects has is taken to be missing from the file.
const RECORDS_WITHOUT_FIELD_MAX: u64 = 1_000;

/// Which fields of the objects are read.
pub(crate) struct JsonlLayout {
    fields: Slots,
    max_record_bytes: usize,
}

/// Opens `file`; its first block is delivered with the others.
pub(crate) fn open_jsonl(
    file: &InputFile,
    wanted: &[Wanted],
    reading: &ReadOptions,
    count: &ByteCount,
) -> Result<(JsonlLayout, TextBlock, TextBlocks), SourceError> {
    let ReadOptions { max_record_bytes, block_bytes, .. } = *reading;
    let mut blocks = TextBlocks::new(open(file, count)?, LineEnd::LineFeed, block_bytes, max_record_bytes);
    let first = blocks.next().map_err(|e| SourceError::read(&file.source, e))?;
    let first = first.unwrap_or(TextBlock { bytes: Vec::new(), last: true });
    let line = first.bytes.trim_ascii_start();
    let line = &line[..memchr::memchr(b'\n', line).unwrap_or(line.len())];
    if line.trim_ascii_end() == b"[" || line.starts_with(b"[{") {
        return Err(SourceError::NotTheFormat {
            path: file.source.clone(),
            problem: "is one JSON array and not JSON Lines; write one object a line".into(),
        });
    }
    Ok((JsonlLayout { fields: Slots::new(wanted), max_record_bytes }, first, blocks))
}

/// Which fields the objects of a file have had so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SeenFields {
    objects: u64,
    /// Slot → whether an object had the field.
    slots: Vec<bool>,
    /// The keys of the first object, for messages.
    first_keys: Vec<String>,
}

impl SeenFields {
    /// Adds the fields of the next block.
    pub(crate) fn add(&mut self, next: SeenFields) {
        if self.objects == 0 {
            *self = next;
            return;
        }
        self.objects += next.objects;
        self.slots.iter_mut().zip(next.slots).for_each(|(seen, next)| *seen |= next);
    }

    /// Takes the slots that `given` names for seen: their values do not come from the objects.
    pub(super) fn add_where(&mut self, given: impl Fn(usize) -> bool) {
        self.slots.iter_mut().enumerate().for_each(|(slot, seen)| *seen |= given(slot));
    }

    /// Fails if a required field was in no object: the configuration is wrong, not each record.
    pub(crate) fn check(&self, file: &InputFile, wanted: &[Wanted], ended: bool) -> Result<(), SourceError> {
        if self.objects == 0 || (!ended && self.objects < RECORDS_WITHOUT_FIELD_MAX) {
            return Ok(());
        }
        let mut missing =
            wanted.iter().zip(&self.slots).filter(|(w, seen)| w.need == Need::Required && !**seen);
        match missing.next() {
            Some((wanted, _)) => Err(no_such_column(file, "field", wanted, self.first_keys.clone())),
            None => Ok(()),
        }
    }

    /// Fields that the configuration names and no object of the file had.
    pub(crate) fn never<'w>(&self, wanted: &'w [Wanted]) -> impl Iterator<Item = &'w Wanted> {
        let named = wanted.iter().zip(&self.slots).filter(|(w, seen)| w.need == Need::Named && !**seen);
        named.map(|(wanted, _)| wanted)
    }
}

/// The objects of a block.
pub(crate) struct JsonlRecords<'a> {
    layout: &'a JsonlLayout,
    data: &'a [u8],
    /// The block as text, if it is.
    text: Option<&'a str>,
    /// Where the line begins and ends, line end included.
    start: usize,
    end: usize,
    values: Vec<Value<'a>>,
    /// The keys of the previous object in order; the next object mostly has the same order.
    order: Vec<JsonKey>,
    seen: SeenFields,
}

impl<'a> JsonlRecords<'a> {
    pub(crate) fn new(layout: &'a JsonlLayout, block: &'a TextBlock) -> Self {
        Self {
            layout,
            data: &block.bytes,
            text: std::str::from_utf8(&block.bytes).ok(),
            start: 0,
            end: 0,
            values: vec![Value::Absent; layout.fields.fields.len()],
            order: Vec::new(),
            seen: SeenFields { slots: vec![false; layout.fields.slots.len()], ..SeenFields::default() },
        }
    }

    pub(crate) fn into_seen(self) -> SeenFields {
        self.seen
    }

    fn line(&self) -> &'a [u8] {
        trim_line_end(&self.data[self.start..self.end])
    }

    /// The line as text.
    fn line_text(&self) -> Option<&'a str> {
        let len = self.line().len();
        match self.text {
            Some(text) => text.get(self.start..self.start + len),
            None => std::str::from_utf8(self.line()).ok(),
        }
    }

    fn parse(&mut self, line: &'a str) -> Result<(), serde_json::Error> {
        self.values.fill(Value::Absent);
        let mut keys = (self.seen.objects == 0).then(Vec::new);
        let mut parser = serde_json::Deserializer::from_str(line);
        let object = Object {
            fields: &self.layout.fields.fields,
            values: &mut self.values,
            order: &mut self.order,
            keys: &mut keys,
        };
        object.deserialize(&mut parser)?;
        parser.end()?;
        self.seen.objects += 1;
        if let Some(keys) = keys {
            self.seen.first_keys = keys;
        }
        for (seen, &field) in self.seen.slots.iter_mut().zip(&self.layout.fields.slots) {
            *seen |= self.values[field] != Value::Absent;
        }
        Ok(())
    }
}

impl Fields for JsonlRecords<'_> {
    fn value(&self, slot: usize) -> Value<'_> {
        self.layout.fields.value(&self.values, slot)
    }
}

impl Records for JsonlRecords<'_> {
    fn advance(&mut self) -> Step {
        let rest = &self.data[self.end..];
        let blank = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
        self.start = self.end + blank;
        let rest = &rest[blank..];
        self.end = self.start + memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
        if rest.is_empty() {
            return Step::End;
        }
        let reject = |reason, message: String| Step::Rejected(Rejection::new(reason, message));
        let max = self.layout.max_record_bytes;
        if self.line().len() > max {
            return reject(Reason::TooLong, format!("the line is longer than {max} bytes"));
        }
        let Some(line) = self.line_text() else {
            return reject(Reason::InvalidUtf8, "the line is not UTF-8".into());
        };
        match self.parse(line) {
            Ok(()) => Step::Record,
            Err(error) => {
                // serde_json names a line, which is always the first here.
                let message = error.to_string().replace(" at line 1 column ", " at byte ");
                reject(Reason::MalformedJson, message)
            }
        }
    }

    fn raw(&mut self) -> Raw {
        let line = self.line();
        Raw::Bytes(line[..line.len().min(self.layout.max_record_bytes)].to_vec())
    }

    fn done(&self) -> usize {
        self.end
    }
}
