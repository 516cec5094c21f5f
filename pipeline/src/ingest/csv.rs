//! Comma-separated values with a header row.
//!
//! A quote that is never closed makes everything after it one field, to the next quote or to the end of the
//! file. So a record that spans lines and does not fit (too long, wrong number of fields, never closed) is
//! rejected as its first line alone, and reading goes on at the second line: a torn quote costs one line, not
//! the rest of the file.
//!
//! A line without quotes is a record whose fields are pieces of the block; only the others go through the
//! parser, which copies.

use std::borrow::Cow;
use std::ops::Range;

use csv_core::ReadRecordResult;
use schemas::tables::Reason;

use super::blocks::{BOM, LineEnd, TextBlock, TextBlocks};
use super::error::IngestError;
use super::files::{ByteCount, InputFile, open};
use super::record::{Records, Step, locate, trim_line_end};
use super::source::Reading;
use crate::records::{Fields, Rejection, Value, Wanted};

/// Room for the fields of one record to begin with.
const PARSED_BYTES: usize = 1 << 10;

/// Where the fields of a file's records are.
pub(super) struct CsvLayout {
    /// Slot → column.
    columns: Vec<Option<usize>>,
    /// Fields of the header.
    width: usize,
    max_record_bytes: usize,
}

/// Reads the header of `file`. The first block behind it comes with the others.
pub(super) fn open_csv(
    file: &InputFile,
    wanted: &[Wanted],
    reading: Reading,
    count: &ByteCount,
) -> Result<(CsvLayout, TextBlock, TextBlocks), IngestError> {
    let fail = |e| IngestError::read(&file.source, e);
    let not =
        |problem: &str| IngestError::NotTheFormat { path: file.source.clone(), problem: problem.into() };
    let Reading { max_record_bytes, block_bytes } = reading;
    let mut blocks = TextBlocks::new(open(file, count)?, LineEnd::Any, block_bytes, max_record_bytes);
    let mut layout = CsvLayout { columns: vec![None; wanted.len()], width: 0, max_record_bytes };
    let mut head = TextBlock { bytes: Vec::new(), last: false };
    let done = loop {
        if let Some(block) = blocks.next().map_err(fail)? {
            head.bytes.extend_from_slice(&block.bytes);
            head.last = block.last;
        }
        let mut records = CsvRecords::new(&layout, &head);
        match records.find() {
            Found::End if head.last => return Ok((layout, head, blocks)),
            Found::End => {}
            Found::TooLong => {
                return Err(not("is not CSV: its first line is longer than events.max_record_bytes"));
            }
            Found::Record => {
                let fields = 0..records.fields.len();
                let header =
                    fields.map(|at| records.field(at).map(str::to_owned)).collect::<Option<Vec<_>>>();
                let header = header.ok_or_else(|| not("is not CSV: its header is not UTF-8"))?;
                if header.iter().any(|name| name.contains('\0')) {
                    return Err(not("is not CSV: its header has zero bytes"));
                }
                let done = records.end;
                layout.width = header.len();
                layout.columns = locate(file, wanted, &header)?;
                break done;
            }
        }
    };
    head.bytes.drain(..done);
    Ok((layout, head, blocks))
}

/// How the search for the end of a record ended.
enum Found {
    Record,
    TooLong,
    /// Nothing is left, or what is left goes on in the next block.
    End,
}

/// The records of a block.
pub(super) struct CsvRecords<'a> {
    layout: &'a CsvLayout,
    data: &'a [u8],
    /// The block as text, if it is.
    text: Option<&'a str>,
    last: bool,
    /// Where the record begins and ends, line end included.
    start: usize,
    end: usize,
    /// Where its fields are: in `parsed` if it has quotes, otherwise in the block.
    fields: Vec<Range<usize>>,
    quoted: bool,
    parsed: Vec<u8>,
    ends: Vec<usize>,
    parser: csv_core::Reader,
}

impl<'a> CsvRecords<'a> {
    pub(super) fn new(layout: &'a CsvLayout, block: &'a TextBlock) -> Self {
        Self {
            layout,
            data: &block.bytes,
            text: std::str::from_utf8(&block.bytes).ok(),
            last: block.last,
            start: 0,
            end: 0,
            fields: Vec::new(),
            quoted: false,
            parsed: Vec::new(),
            ends: Vec::new(),
            parser: csv_core::Reader::new(),
        }
    }

    /// Finds the next record that is not an empty line, from where the last one ended.
    fn find(&mut self) -> Found {
        // Line ends before the record (also the second byte of the last record's) are not part of it.
        let blank = self.data[self.end..].iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
        self.start = self.end + blank;
        self.end = self.start;
        self.fields.clear();
        self.quoted = false;
        let rest = &self.data[self.start..];
        if rest.is_empty() {
            return Found::End;
        }
        let line = match memchr::memchr2(b'\n', b'\r', rest) {
            Some(at) => at,
            None if self.last => rest.len(),
            None => return self.find_quoted(),
        };
        if line > self.layout.max_record_bytes || !self.split(line) {
            return self.find_quoted();
        }
        self.end = rest.len().min(line + 1) + self.start;
        Found::Record
    }

    /// Splits a line of `len` bytes at its commas; false where it has a quote, or a byte-order mark that the
    /// parser knows to drop.
    fn split(&mut self, len: usize) -> bool {
        if self.data[self.start..].starts_with(BOM) {
            return false;
        }
        let mut field = self.start;
        for at in memchr::memchr2_iter(b',', b'"', &self.data[self.start..self.start + len]) {
            let at = self.start + at;
            if self.data[at] == b'"' {
                self.fields.clear();
                return false;
            }
            self.fields.push(field..at);
            field = at + 1;
        }
        self.fields.push(field..self.start + len);
        true
    }

    fn find_quoted(&mut self) -> Found {
        let max = self.layout.max_record_bytes;
        let rest = &self.data[self.start..];
        self.quoted = true;
        self.parser.reset();
        self.parsed.resize(self.parsed.len().max(PARSED_BYTES), 0);
        self.ends.resize(self.ends.len().max(self.layout.width.max(64)), 0);
        let (mut read, mut written, mut fields) = (0, 0, 0);
        loop {
            // No input is how the parser learns of the end.
            let (result, nin, nout, nend) =
                self.parser.read_record(&rest[read..], &mut self.parsed[written..], &mut self.ends[fields..]);
            read += nin;
            written += nout;
            fields += nend;
            match result {
                ReadRecordResult::Record if trim_line_end(&rest[..read]).len() > max => {
                    return Found::TooLong;
                }
                ReadRecordResult::Record => {
                    self.end = self.start + read;
                    let starts = std::iter::once(0).chain(self.ends[..fields].iter().copied());
                    self.fields.extend(starts.zip(&self.ends[..fields]).map(|(start, &end)| start..end));
                    return Found::Record;
                }
                ReadRecordResult::End => return Found::End,
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                // Unquoted, a record is never longer than it was.
                ReadRecordResult::OutputFull if self.parsed.len() > max => return Found::TooLong,
                ReadRecordResult::OutputFull => self.parsed.resize(2 * self.parsed.len(), 0),
                ReadRecordResult::InputEmpty if rest.len() > max.saturating_add(2) => {
                    return Found::TooLong;
                }
                ReadRecordResult::InputEmpty if self.last => {}
                // The next block has the rest.
                ReadRecordResult::InputEmpty => return Found::End,
            }
        }
    }

    /// The bytes of the record.
    fn bytes(&self) -> &'a [u8] {
        trim_line_end(&self.data[self.start..self.end])
    }

    /// Cuts the record down to its first line, if it has more than one.
    fn cut_to_first_line(&mut self) -> bool {
        match memchr::memchr2(b'\n', b'\r', self.bytes()) {
            Some(at) => {
                self.end = self.start + at;
                true
            }
            None => false,
        }
    }

    fn field(&self, at: usize) -> Option<&str> {
        let range = self.fields[at].clone();
        match self.text {
            _ if self.quoted => std::str::from_utf8(&self.parsed[range]).ok(),
            Some(text) => text.get(range),
            None => std::str::from_utf8(&self.data[range]).ok(),
        }
    }

    /// Whether every field is UTF-8. A comma or a quote is never in the middle of a character.
    fn is_utf8(&self) -> bool {
        self.text.is_some() || std::str::from_utf8(&self.data[self.start..self.end]).is_ok()
    }

    /// Makes the record its first line.
    fn too_long(&mut self) -> Rejection {
        let limit = self.layout.max_record_bytes;
        let rest = &self.data[self.start..];
        let line = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        self.end = self.start + line;
        let message = if line > limit {
            format!("the record is longer than {limit} bytes")
        } else {
            format!("the record that begins here is longer than {limit} bytes; is a quote not closed?")
        };
        Rejection::new(Reason::TooLong, message)
    }

    /// Looks at the number of fields and at quotes that the end of the file closes.
    fn misfit(&mut self) -> Option<Rejection> {
        let (fields, width) = (self.fields.len(), self.layout.width);
        let torn = self.last
            && self.end == self.data.len()
            && self.bytes().iter().filter(|&&b| b == b'"').count() % 2 == 1;
        if fields == width && !torn {
            return None;
        }
        let cut = self.cut_to_first_line();
        if fields == width && !cut {
            return None;
        }
        if std::str::from_utf8(self.bytes()).is_err() {
            return Some(not_utf8());
        }
        let hint = if cut { ", or a quote that is not closed" } else { "" };
        Some(Rejection::new(Reason::WrongType, format!("{fields} fields instead of {width}{hint}")))
    }
}

fn not_utf8() -> Rejection {
    Rejection::new(Reason::InvalidUtf8, "the record is not UTF-8")
}

impl Fields for CsvRecords<'_> {
    fn value(&self, slot: usize) -> Value<'_> {
        match self.layout.columns.get(slot).copied().flatten() {
            None => Value::Absent,
            Some(at) => match self.field(at) {
                Some("") => Value::Null,
                Some(text) => Value::Text(Cow::Borrowed(text)),
                None => Value::NotUtf8,
            },
        }
    }
}

impl Records for CsvRecords<'_> {
    fn advance(&mut self) -> Step {
        match self.find() {
            Found::End => Step::End,
            Found::TooLong => Step::Rejected(self.too_long()),
            Found::Record => match self.misfit() {
                Some(rejection) => Step::Rejected(rejection),
                None if !self.is_utf8() => Step::Rejected(not_utf8()),
                None => Step::Record,
            },
        }
    }

    fn raw(&mut self) -> Result<Vec<u8>, IngestError> {
        let bytes = self.bytes();
        Ok(bytes[..bytes.len().min(self.layout.max_record_bytes)].to_vec())
    }

    fn done(&self) -> usize {
        self.end
    }
}
