//! One JSON object a line.

use std::borrow::Cow;
use std::fmt;

use schemas::tables::Reason;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::IngestError;
use super::files::{ByteCount, InputFile, open};
use super::input::Input;
use super::source::{Need, RecordSource, Rejection, Step, Value, Wanted, no_such_column, trim_line_end};

/// A required field that so many objects in a row do not have is not in the file at all.
const RECORDS_WITHOUT_FIELD_MAX: u64 = 1_000;

pub(super) struct JsonlSource {
    file: InputFile,
    input: Input,
    wanted: Vec<Wanted>,
    values: Vec<Option<serde_json::Value>>,
    seen: Vec<bool>,
    /// Objects so far.
    objects: u64,
    /// The keys of the first object, for messages.
    first_keys: Vec<String>,
    /// Bytes of the current line, line end included, at the start of the input.
    raw_len: usize,
    /// The beginning of a line whose rest is gone from the input.
    kept: Option<Vec<u8>>,
    max_record_bytes: usize,
}

impl JsonlSource {
    pub(super) fn open(
        file: &InputFile,
        wanted: &[Wanted],
        max_record_bytes: usize,
        count: &ByteCount,
    ) -> Result<Self, IngestError> {
        let input = Input::new(open(file, count)?).map_err(|e| IngestError::read(&file.source, e))?;
        let mut source = Self {
            file: file.clone(),
            input,
            wanted: wanted.to_vec(),
            values: vec![None; wanted.len()],
            seen: vec![false; wanted.len()],
            objects: 0,
            first_keys: Vec::new(),
            raw_len: 0,
            kept: None,
            max_record_bytes,
        };
        source.skip_empty_lines()?;
        let line_end = source.input.data().iter().position(|&b| b == b'\n');
        let line = &source.input.data()[..line_end.unwrap_or(source.input.data().len())];
        if trim_line_end(line).trim_ascii_end() == b"[" || line.starts_with(b"[{") {
            return Err(IngestError::NotTheFormat {
                path: file.source.clone(),
                problem: "is one JSON array and not JSON Lines; write one object a line".into(),
            });
        }
        Ok(source)
    }

    /// Moves to the first line with something in it; false at the end of the file.
    fn skip_empty_lines(&mut self) -> Result<bool, IngestError> {
        loop {
            let blank = self.input.data().iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.input.consume(blank);
            if !self.input.data().is_empty() {
                return Ok(true);
            }
            if !self.input.more().map_err(|e| IngestError::read(&self.file.source, e))? {
                return Ok(false);
            }
        }
    }

    /// Finds the end of the line; false if it is too long, in which case the rest of it is passed over.
    fn find_line(&mut self) -> Result<bool, IngestError> {
        let mut searched = 0;
        loop {
            let data = self.input.data();
            if let Some(at) = data[searched..].iter().position(|&b| b == b'\n') {
                self.raw_len = searched + at + 1;
                return Ok(trim_line_end(&data[..self.raw_len]).len() <= self.max_record_bytes);
            }
            searched = data.len();
            // Two bytes more: a carriage return and a line feed.
            if searched > self.max_record_bytes.saturating_add(2) {
                self.kept = Some(data[..self.max_record_bytes].to_vec());
                self.input.skip_line().map_err(|e| IngestError::read(&self.file.source, e))?;
                self.raw_len = 0;
                return Ok(false);
            }
            if !self.input.more().map_err(|e| IngestError::read(&self.file.source, e))? {
                self.raw_len = searched;
                return Ok(trim_line_end(self.input.data()).len() <= self.max_record_bytes);
            }
        }
    }

    /// A required field that was in no object is an error of the configuration, not of each record.
    fn check_fields(&self) -> Result<(), IngestError> {
        let missing = self
            .wanted
            .iter()
            .zip(&self.seen)
            .find(|(wanted, seen)| wanted.need == Need::Required && !**seen);
        match missing {
            Some((wanted, _)) => Err(no_such_column(&self.file, "field", wanted, self.first_keys.clone())),
            None => Ok(()),
        }
    }
}

impl RecordSource for JsonlSource {
    fn advance(&mut self) -> Result<Step, IngestError> {
        self.input.consume(std::mem::take(&mut self.raw_len));
        self.kept = None;
        if !self.skip_empty_lines()? {
            if self.objects > 0 {
                self.check_fields()?;
            }
            return Ok(Step::End);
        }
        let reject = |reason, message: String| Ok(Step::Rejected(Rejection::new(reason, message)));
        if !self.find_line()? {
            let message = format!("the line is longer than {} bytes", self.max_record_bytes);
            return reject(Reason::TooLong, message);
        }
        let Ok(line) = std::str::from_utf8(trim_line_end(&self.input.data()[..self.raw_len])) else {
            return reject(Reason::InvalidUtf8, "the line is not UTF-8".into());
        };
        self.values.fill(None);
        let mut keys = (self.objects == 0).then(Vec::new);
        let mut parser = serde_json::Deserializer::from_str(line);
        let object = Fields { wanted: &self.wanted, values: &mut self.values, keys: &mut keys };
        if let Err(error) = object.deserialize(&mut parser).and_then(|()| parser.end()) {
            // serde_json counts lines; here there is always one.
            let message = error.to_string().replace(" at line 1 column ", " at byte ");
            return reject(Reason::MalformedJson, message);
        }
        self.objects += 1;
        if let Some(keys) = keys {
            self.first_keys = keys;
        }
        for (seen, value) in self.seen.iter_mut().zip(&self.values) {
            *seen |= value.is_some();
        }
        if self.objects == RECORDS_WITHOUT_FIELD_MAX {
            self.check_fields()?;
        }
        Ok(Step::Record)
    }

    fn value(&self, slot: usize) -> Value<'_> {
        use serde_json::Value as Json;
        match &self.values[slot] {
            None => Value::Absent,
            Some(Json::Null) => Value::Null,
            Some(Json::String(text)) if text.is_empty() => Value::Null,
            Some(Json::String(text)) => Value::Text(Cow::Borrowed(text)),
            Some(Json::Bool(value)) => Value::Bool(*value),
            Some(Json::Number(number)) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(value), _, _) => Value::Int(value),
                (None, Some(value), _) => Value::Text(Cow::Owned(value.to_string())),
                (None, None, Some(value)) => Value::Float(value),
                (None, None, None) => Value::Other("a number out of range"),
            },
            Some(Json::Object(_)) => Value::Other("an object"),
            Some(Json::Array(elements)) => {
                let texts = elements.iter().filter(|e| !e.is_null()).map(|element| match element {
                    Json::String(text) => Some(Cow::Borrowed(text.as_str())),
                    Json::Number(_) | Json::Bool(_) => Some(Cow::Owned(element.to_string())),
                    _ => None,
                });
                texts
                    .collect::<Option<Vec<_>>>()
                    .map_or(Value::Other("a list of lists or objects"), Value::List)
            }
        }
    }

    fn raw(&mut self) -> Result<Vec<u8>, IngestError> {
        match &self.kept {
            Some(kept) => Ok(kept.clone()),
            None => {
                let bytes = trim_line_end(&self.input.data()[..self.raw_len]);
                Ok(bytes[..bytes.len().min(self.max_record_bytes)].to_vec())
            }
        }
    }

    fn never_seen(&self) -> Vec<usize> {
        let named = |slot: &usize| self.wanted[*slot].need == Need::Named && !self.seen[*slot];
        if self.objects == 0 { Vec::new() } else { (0..self.wanted.len()).filter(named).collect() }
    }
}

/// Takes the wanted fields out of an object and passes over the others.
struct Fields<'a> {
    wanted: &'a [Wanted],
    values: &'a mut [Option<serde_json::Value>],
    keys: &'a mut Option<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(slots) = map.next_key_seed(Key { wanted: self.wanted, keys: &mut *self.keys })? {
            // Two fields may be read from one key.
            let mut slots = slots.into_iter();
            match slots.next() {
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
                Some(first) => {
                    let value: serde_json::Value = map.next_value()?;
                    for slot in slots {
                        self.values[slot] = Some(value.clone());
                    }
                    self.values[first] = Some(value);
                }
            }
        }
        Ok(())
    }
}

/// A key, as the slots that want it.
struct Key<'a> {
    wanted: &'a [Wanted],
    keys: &'a mut Option<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Vec<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Vec<usize>, E> {
        if let Some(keys) = self.keys {
            keys.push(key.to_owned());
        }
        Ok((0..self.wanted.len()).filter(|&slot| self.wanted[slot].column == key).collect())
    }
}
