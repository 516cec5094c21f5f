//! Comma-separated values with a header row.
//!
//! **Quotes.** A field that begins with a quote ends with one: `""` inside is a quote, and what follows the field
//! is a comma or the end of the record, so that line ends and commas inside belong to the field (RFC 4180). A
//! quote inside a field that does not begin with one is a character like any other, as long as the record is one
//! line.
//!
//! **Damage.** A record is damaged if its quotes do not pair up in this way, if it is too long or never closed, or if it
//! spans lines and has another number of fields than the header. Only its first line is rejected, and reading continues
//! at the second line. A damaged line therefore costs itself only: its stray opening quote pairs with the opening quote of
//! a later field, and no comma follows there. Two cases look like a valid field: a second damage that closes the quote as a
//! field is closed, and a later quoted field of several lines that begins with a comma or a line end (quotes before it
//! aside). A damaged record of several lines costs all of its lines; one of them with as many fields as the header then
//! counts as a record.
//!
//! The fields of a line without quotes are slices of the block; a record with quotes is copied.

use std::borrow::Cow;
use std::ops::Range;

use schemas::tables::Reason;

use super::super::blocks::{BOM, LineEnd, TextBlock, TextBlocks};
use super::super::error::SourceError;
use super::super::files::{ByteCount, InputFile, ReadOptions, open};
use super::super::record::{Raw, Records, Step, locate, trim_line_end};
use crate::privacy::UserColumn;
use crate::records::{Fields, Rejection, Value, Wanted};

/// The columns of a file's wanted fields, from its header.
pub(crate) struct CsvLayout {
    /// Slot → column.
    columns: Vec<Option<usize>>,
    /// Fields of the header.
    width: usize,
    max_record_bytes: usize,
}

/// Reads the header of `file`; the first block, after the header, is delivered with the others.
pub(crate) fn open_csv(
    file: &InputFile,
    wanted: &[Wanted],
    reading: &ReadOptions,
    count: &ByteCount,
) -> Result<(CsvLayout, TextBlock, TextBlocks), SourceError> {
    let fail = |e| SourceError::read(&file.source, e);
    let not =
        |problem: &str| SourceError::NotTheFormat { path: file.source.clone(), problem: problem.into() };
    let ReadOptions { max_record_bytes, block_bytes, .. } = *reading;
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
            Found::Malformed => return Err(not("is not CSV: the quotes of its header do not pair up")),
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
    /// Quotes that do not pair up.
    Malformed,
    TooLong,
    /// No bytes are left, or the rest continues in the next block.
    End,
}

/// The records of a block.
pub(crate) struct CsvRecords<'a> {
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
}

impl<'a> CsvRecords<'a> {
    pub(crate) fn new(layout: &'a CsvLayout, block: &'a TextBlock) -> Self {
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
        }
    }

    /// Finds the record after the current one; skips empty lines.
    fn find(&mut self) -> Found {
        // Skip line ends before the record, also the second byte of the previous record's line end.
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

    /// Splits a line of `len` bytes at its commas; returns false if it has a quote or a byte-order mark.
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
        self.parsed.clear();
        // A byte-order mark inside a file is left by concatenating files.
        let mut at = if rest.starts_with(BOM) { BOM.len() } else { 0 };
        let mut has_stray_quote = false;
        loop {
            let from = self.parsed.len();
            if rest.get(at) == Some(&b'"') {
                match self.quoted_field(rest, at) {
                    Ok(end) => at = end,
                    Err(found) => return found,
                }
            } else {
                let end = memchr::memchr3(b',', b'\n', b'\r', &rest[at..]).map_or(rest.len(), |n| at + n);
                has_stray_quote |= memchr::memchr(b'"', &rest[at..end]).is_some();
                self.parsed.extend_from_slice(&rest[at..end]);
                at = end;
            }
            self.fields.push(from..self.parsed.len());
            match rest.get(at) {
                // Stop here, so that the result does not depend on how far the block reaches.
                _ if at > max.saturating_add(2) => return Found::TooLong,
                Some(b',') => at += 1,
                None if !self.last => return Found::End,
                found => {
                    self.end = self.start + at + usize::from(found.is_some());
                    break;
                }
            }
        }
        let record = self.bytes();
        if record.len() > max {
            Found::TooLong
        } else if has_stray_quote && memchr::memchr2(b'\n', b'\r', record).is_some() {
            Found::Malformed
        } else {
            Found::Record
        }
    }

    /// Copies the quoted field that opens at `at`; returns the position after its closing quote.
    fn quoted_field(&mut self, rest: &[u8], mut at: usize) -> Result<usize, Found> {
        let far = self.layout.max_record_bytes.saturating_add(2);
        loop {
            at += 1;
            match memchr::memchr(b'"', &rest[at..]) {
                Some(len) if at + len <= far => {
                    self.parsed.extend_from_slice(&rest[at..at + len]);
                    at += len + 1;
                }
                Some(_) => return Err(Found::TooLong),
                None if rest.len() > far => return Err(Found::TooLong),
                None if self.last => return Err(Found::Malformed),
                None => return Err(Found::End),
            }
            match rest.get(at) {
                Some(b'"') => self.parsed.push(b'"'),
                None | Some(b',' | b'\n' | b'\r') => return Ok(at),
                Some(_) if at > far => return Err(Found::TooLong),
                Some(_) => return Err(Found::Malformed),
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

    /// Makes the record its first line.
    fn malformed(&mut self) -> Rejection {
        let rest = &self.data[self.start..];
        let line = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        if line > self.layout.max_record_bytes {
            return self.too_long();
        }
        self.end = self.start + line;
        if std::str::from_utf8(self.bytes()).is_err() {
            return not_utf8();
        }
        let message = "a quote is not closed, or something follows the one that closes a field";
        Rejection::new(Reason::WrongType, message)
    }

    /// Rejects a record whose number of fields differs from the header's.
    fn misfit(&mut self) -> Option<Rejection> {
        let (fields, width) = (self.fields.len(), self.layout.width);
        if fields == width {
            return None;
        }
        let cut = self.cut_to_first_line();
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
            Found::Malformed => Step::Rejected(self.malformed()),
            Found::Record => match self.misfit() {
                Some(rejection) => Step::Rejected(rejection),
                None if !self.is_utf8() => Step::Rejected(not_utf8()),
                None => Step::Record,
            },
        }
    }

    fn raw(&mut self) -> Raw {
        let bytes = self.bytes();
        Raw::Bytes(bytes[..bytes.len().min(self.layout.max_record_bytes)].to_vec())
    }

    fn user_column(&self) -> UserColumn {
        // The user is the first slot of an event.
        let user = self.layout.columns.first().copied().flatten();
        user.map_or(UserColumn::Unknown, |column| UserColumn::At { column, of: self.layout.width })
    }

    fn done(&self) -> usize {
        self.end
    }
}
