//! Delimited text: comma-separated values with a header row, or another [`Dialect`].
//!
//! **Quotes.** A field that begins with a quote ends with one: `""` inside is a quote, and what follows the field
//! is a delimiter or the end of the record, so that line ends and delimiters inside belong to the field (RFC 4180). A
//! quote inside a field that does not begin with one is a character like any other, as long as the record is one
//! line.
//!
//! **Damage.** A record is damaged if its quotes do not pair up in this way, if it is too long or never closed, or if it
//! spans lines and has another number of fields than the header. Only its first line is rejected, and reading continues
//! at the second line. A damaged line therefore costs itself only: its stray opening quote pairs with the opening quote of
//! a later field, and no delimiter follows there. Two cases look like a valid field: a second damage that closes the quote as a
//! field is closed, and a later quoted field of several lines that begins with a delimiter or a line end (quotes before it
//! aside). A damaged record of several lines costs all of its lines; one of them with as many fields as the header then
//! counts as a record.
//!
//! The fields of a line without quotes are slices of the block; a record with quotes is copied.

use std::borrow::Cow;
use std::ops::Range;

use schemas::config::Dialect;
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
    /// Number of columns.
    width: usize,
    marks: Marks,
    max_record_bytes: usize,
}

/// The marks of a dialect, as bytes.
#[derive(Debug)]
struct Marks {
    delimiter: Vec<u8>,
    quote: Option<u8>,
    comment: Option<Vec<u8>>,
    is_default: bool,
}

impl Marks {
    fn new(dialect: &Dialect) -> Self {
        let delimiter = dialect.delimiter.as_deref().unwrap_or(",").as_bytes().to_vec();
        let quote = dialect.quote.as_deref().unwrap_or("\"").bytes().next();
        let comment = dialect.comment.as_ref().map(|comment| comment.clone().into_bytes());
        let is_default = delimiter == b"," && quote == Some(b'"');
        Self { delimiter, quote, comment, is_default }
    }

    /// The end of an unquoted field that begins at `at`: the next delimiter or line end.
    fn field_end(&self, bytes: &[u8], mut at: usize) -> usize {
        loop {
            match memchr::memchr3(self.delimiter[0], b'\n', b'\r', &bytes[at..]) {
                None => return bytes.len(),
                Some(n) if matches!(bytes[at + n], b'\n' | b'\r') => return at + n,
                Some(n) if bytes[at + n..].starts_with(&self.delimiter) => return at + n,
                Some(n) => at += n + 1,
            }
        }
    }
}

/// Reads the header of `file`, unless the dialect names the columns; the first block, after the header, is delivered with the
/// others.
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
    let marks = Marks::new(&file.dialect);
    let mut layout = CsvLayout { columns: vec![None; wanted.len()], width: 0, marks, max_record_bytes };
    let names = &file.dialect.names;
    if !names.is_empty() {
        layout.width = names.len();
        layout.columns = locate(file, wanted, names)?;
        let first = blocks.next().map_err(fail)?.unwrap_or(TextBlock { bytes: Vec::new(), last: true });
        return Ok((layout, first, blocks));
    }
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
                let mut header = header.ok_or_else(|| not("is not CSV: its header is not UTF-8"))?;
                if file.dialect.typed_header == Some(true) {
                    for name in &mut header {
                        let end = name.rfind(':').unwrap_or(name.len());
                        name.truncate(end);
                    }
                }
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
        self.start = self.skip_to_record();
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

    /// Returns where the next record begins: after empty lines and comments, and after the second byte of the previous record's
    /// line end.
    fn skip_to_record(&self) -> usize {
        let mut start = self.end;
        loop {
            start += self.data[start..].iter().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            let rest = &self.data[start..];
            match &self.layout.marks.comment {
                Some(comment) if rest.starts_with(comment) => {}
                _ => return start,
            }
            match memchr::memchr2(b'\n', b'\r', rest) {
                Some(line) => start += line,
                None if self.last => return self.data.len(),
                None => return start,
            }
        }
    }

    /// Splits a line of `len` bytes at its delimiters; returns false if it has a quote or a byte-order mark.
    fn split(&mut self, len: usize) -> bool {
        if self.data[self.start..].starts_with(BOM) {
            return false;
        }
        let marks = &self.layout.marks;
        let (delimiter, line) = (marks.delimiter.as_slice(), &self.data[..self.start + len]);
        let mut field = self.start;
        // Without a quote, the delimiter's byte is looked for twice.
        let quote = marks.quote.unwrap_or(delimiter[0]);
        for at in memchr::memchr2_iter(delimiter[0], quote, &line[self.start..]) {
            let at = self.start + at;
            if Some(line[at]) == marks.quote {
                self.fields.clear();
                return false;
            }
            if delimiter.len() > 1 && (at < field || !line[at..].starts_with(delimiter)) {
                continue;
            }
            self.fields.push(field..at);
            field = at + delimiter.len();
        }
        self.fields.push(field..line.len());
        true
    }

    fn find_quoted(&mut self) -> Found {
        let (max, marks) = (self.layout.max_record_bytes, &self.layout.marks);
        let rest = &self.data[self.start..];
        self.quoted = true;
        self.parsed.clear();
        // A byte-order mark inside a file is left by concatenating files.
        let mut at = if rest.starts_with(BOM) { BOM.len() } else { 0 };
        let mut has_stray_quote = false;
        loop {
            let from = self.parsed.len();
            if rest.get(at).is_some_and(|&byte| Some(byte) == marks.quote) {
                match self.quoted_field(rest, at, rest[at]) {
                    Ok(end) => at = end,
                    Err(found) => return found,
                }
            } else {
                let end = marks.field_end(rest, at);
                has_stray_quote |=
                    marks.quote.is_some_and(|quote| memchr::memchr(quote, &rest[at..end]).is_some());
                self.parsed.extend_from_slice(&rest[at..end]);
                at = end;
            }
            self.fields.push(from..self.parsed.len());
            match rest.get(at) {
                // Stop here, so that the result does not depend on how far the block reaches.
                _ if at > max.saturating_add(2) => return Found::TooLong,
                Some(_) if rest[at..].starts_with(&marks.delimiter) => at += marks.delimiter.len(),
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

    /// Copies the field that opens with `quote` at `at`; returns the position after its closing quote.
    fn quoted_field(&mut self, rest: &[u8], mut at: usize, quote: u8) -> Result<usize, Found> {
        let delimiter = &self.layout.marks.delimiter;
        let far = self.layout.max_record_bytes.saturating_add(2);
        loop {
            at += 1;
            match memchr::memchr(quote, &rest[at..]) {
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
                Some(&byte) if byte == quote => self.parsed.push(quote),
                None | Some(b'\n' | b'\r') => return Ok(at),
                Some(_) if rest[at..].starts_with(delimiter) => return Ok(at),
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

    /// Whether every field is UTF-8. A delimiter or a quote is never in the middle of a character.
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
        // Other dialects are searched for the user as a whole.
        let user = user.filter(|_| self.layout.marks.is_default);
        user.map_or(UserColumn::Unknown, |column| UserColumn::At { column, of: self.layout.width })
    }

    fn done(&self) -> usize {
        self.end
    }
}
