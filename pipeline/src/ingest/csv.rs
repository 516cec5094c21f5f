//! Comma-separated values with a header row.
//!
//! A quote that is never closed makes everything after it one field, to the next quote or to the end of the
//! file. So a record that spans lines and does not fit (too long, wrong number of fields, never closed) is
//! rejected as its first line alone, and reading goes on at the second line: a torn quote costs one line, not
//! the rest of the file.

use std::borrow::Cow;

use csv_core::ReadRecordResult;
use schemas::tables::Reason;

use super::error::IngestError;
use super::files::{ByteCount, InputFile, open};
use super::input::Input;
use super::source::{RecordSource, Rejection, Step, Value, Wanted, locate, trim_line_end};

pub(super) struct CsvSource {
    path: String,
    input: Input,
    parser: csv_core::Reader,
    /// Slot → column.
    columns: Vec<Option<usize>>,
    /// Fields of the header; 0 in a file without a single byte.
    width: usize,
    record: Record,
    /// The beginning of a record whose rest is gone from the input.
    kept: Option<Vec<u8>>,
    max_record_bytes: usize,
}

/// The current record; its buffers are used again for the next.
#[derive(Default)]
struct Record {
    /// The fields, unquoted, one after the other.
    text: Vec<u8>,
    /// Where each field ends in `text`.
    ends: Vec<usize>,
    fields: usize,
    /// Bytes of the record at the start of the input, line end included.
    raw_len: usize,
    /// Bytes at the start of the input to let go of before the next record.
    consumed: usize,
}

/// How the search for the end of a record ended.
enum Found {
    Record,
    /// Whether the record ends inside the input, and is not just cut off there.
    TooLong {
        complete: bool,
    },
    End,
}

impl CsvSource {
    pub(super) fn open(
        file: &InputFile,
        wanted: &[Wanted],
        max_record_bytes: usize,
        count: &ByteCount,
    ) -> Result<Self, IngestError> {
        let input = Input::new(open(file, count)?).map_err(|e| IngestError::read(&file.source, e))?;
        let mut source = Self {
            path: file.source.clone(),
            input,
            parser: csv_core::Reader::new(),
            columns: vec![None; wanted.len()],
            width: 0,
            record: Record::default(),
            kept: None,
            max_record_bytes,
        };
        let not =
            |problem: &str| IngestError::NotTheFormat { path: file.source.clone(), problem: problem.into() };
        match source.find()? {
            Found::End => return Ok(source),
            Found::TooLong { .. } => {
                return Err(not("is not CSV: its first line is longer than events.max_record_bytes"));
            }
            Found::Record => {}
        }
        let header = source.record.fields().map(|f| f.map(str::to_owned)).collect::<Option<Vec<_>>>();
        let header = header.ok_or_else(|| not("is not CSV: its header is not UTF-8"))?;
        if header.iter().any(|name| name.contains('\0')) {
            return Err(not("is not CSV: its header has zero bytes"));
        }
        source.width = header.len();
        source.columns = locate(file, wanted, &header)?;
        source.record.consumed = source.record.raw_len;
        Ok(source)
    }

    /// Finds the next record that is not an empty line.
    fn find(&mut self) -> Result<Found, IngestError> {
        self.input.consume(std::mem::take(&mut self.record.consumed));
        self.parser.reset();
        self.kept = None;
        // Line ends before the record (also the second byte of the last record's) are not part of it.
        loop {
            let ends = self.input.data().iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            self.input.consume(ends);
            if !self.input.data().is_empty() {
                break;
            }
            if !self.input.more().map_err(|e| IngestError::read(&self.path, e))? {
                return Ok(Found::End);
            }
        }
        let record = &mut self.record;
        let (mut parsed, mut written) = (0, 0);
        record.fields = 0;
        loop {
            let data = self.input.data();
            // Unquoted, a record is never longer than it was.
            if record.text.len() < data.len() {
                record.text.resize(data.len(), 0);
            }
            if record.ends.is_empty() {
                record.ends.resize(self.width.max(64), 0);
            }
            // No input is how the parser learns of the end.
            let (result, nin, nout, nend) = self.parser.read_record(
                &data[parsed..],
                &mut record.text[written..],
                &mut record.ends[record.fields..],
            );
            parsed += nin;
            written += nout;
            record.fields += nend;
            match result {
                ReadRecordResult::Record => {
                    record.raw_len = parsed;
                    let long = trim_line_end(&data[..parsed]).len() > self.max_record_bytes;
                    return Ok(if long { Found::TooLong { complete: true } } else { Found::Record });
                }
                ReadRecordResult::End => return Ok(Found::End),
                ReadRecordResult::OutputEndsFull => {
                    let n = record.ends.len();
                    record.ends.resize(2 * n, 0);
                }
                ReadRecordResult::OutputFull => {
                    let n = record.text.len();
                    record.text.resize(2 * n + 64, 0);
                }
                ReadRecordResult::InputEmpty => {
                    if parsed > self.max_record_bytes.saturating_add(2) {
                        record.raw_len = parsed;
                        return Ok(Found::TooLong { complete: false });
                    }
                    self.input.more().map_err(|e| IngestError::read(&self.path, e))?;
                }
            }
        }
    }

    /// The bytes of the record.
    fn bytes(&self) -> &[u8] {
        trim_line_end(&self.input.data()[..self.record.raw_len])
    }

    /// Cuts the record down to its first line, if it has more than one.
    fn cut_to_first_line(&mut self) -> bool {
        match self.bytes().iter().position(|b| matches!(b, b'\n' | b'\r')) {
            Some(at) => {
                self.record.raw_len = at;
                self.record.consumed = at;
                true
            }
            None => false,
        }
    }
}

impl Record {
    fn field(&self, at: usize) -> Option<&str> {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        std::str::from_utf8(&self.text[start..self.ends[at]]).ok()
    }

    fn fields(&self) -> impl Iterator<Item = Option<&str>> {
        (0..self.fields).map(|at| self.field(at))
    }

    /// Whether every field is UTF-8. Valid together, the fields are valid each if no character is cut.
    fn is_utf8(&self) -> bool {
        let ends = &self.ends[..self.fields];
        let end = ends.last().copied().unwrap_or(0);
        std::str::from_utf8(&self.text[..end])
            .is_ok_and(|text| ends.iter().all(|&end| text.is_char_boundary(end)))
    }
}

impl RecordSource for CsvSource {
    fn advance(&mut self) -> Result<Step, IngestError> {
        let found = self.find()?;
        self.record.consumed = self.record.raw_len;
        let reject = |reason, message: String| Ok(Step::Rejected(Rejection::new(reason, message)));
        match found {
            Found::End => {
                (self.record.consumed, self.record.raw_len) = (0, 0);
                Ok(Step::End)
            }
            Found::TooLong { complete } => {
                let limit = self.max_record_bytes;
                if self.cut_to_first_line() {
                    let message = format!(
                        "the record that begins here is longer than {limit} bytes; is a quote not closed?"
                    );
                    return reject(Reason::TooLong, message);
                }
                if !complete {
                    self.kept = Some(self.raw()?);
                    self.input.skip_line().map_err(|e| IngestError::read(&self.path, e))?;
                    (self.record.consumed, self.record.raw_len) = (0, 0);
                }
                reject(Reason::TooLong, format!("the record is longer than {limit} bytes"))
            }
            Found::Record => {
                let torn = self.input.ended()
                    && self.record.raw_len == self.input.data().len()
                    && self.bytes().iter().filter(|&&b| b == b'"').count() % 2 == 1;
                let fields = self.record.fields;
                if fields != self.width || torn {
                    let cut = self.cut_to_first_line();
                    if fields != self.width || cut {
                        let hint = if cut { ", or a quote that is not closed" } else { "" };
                        let message = format!("{fields} fields instead of {}{hint}", self.width);
                        let invalid = std::str::from_utf8(self.bytes()).is_err();
                        return if invalid {
                            reject(Reason::InvalidUtf8, "the record is not UTF-8".into())
                        } else {
                            reject(Reason::WrongType, message)
                        };
                    }
                }
                if !self.record.is_utf8() {
                    return reject(Reason::InvalidUtf8, "the record is not UTF-8".into());
                }
                Ok(Step::Record)
            }
        }
    }

    fn value(&self, slot: usize) -> Value<'_> {
        match self.columns.get(slot).copied().flatten() {
            None => Value::Absent,
            Some(at) => match self.record.field(at) {
                Some("") => Value::Null,
                Some(text) => Value::Text(Cow::Borrowed(text)),
                None => Value::NotUtf8,
            },
        }
    }

    fn raw(&mut self) -> Result<Vec<u8>, IngestError> {
        let bytes = self.kept.as_deref().unwrap_or_else(|| self.bytes());
        Ok(bytes[..bytes.len().min(self.max_record_bytes)].to_vec())
    }
}
