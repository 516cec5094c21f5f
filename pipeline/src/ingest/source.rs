//! A file of any format, block by block; a block, record by record; and a record's values by field.
//!
//! ```text
//!   Source ── in the order of the file ─▶ Block ─┐
//!      └────── once ────────────────────▶ Layout ┴─▶ Records ─▶ Visit
//!   one thread reads                                 any thread takes apart
//! ```

use std::borrow::Cow;
use std::sync::Arc;

use schemas::config::Format;
use schemas::tables::Reason;

use super::blocks::{TextBlock, TextBlocks};
use super::csv::{CsvLayout, CsvRecords, open_csv};
use super::error::IngestError;
use super::files::{ByteCount, InputFile};
use super::jsonl::{JsonlLayout, JsonlRecords, Seen, open_jsonl};
use super::parquet::{ParquetBlocks, ParquetLayout, ParquetRecords, ParquetRows, open_parquet_blocks};
use super::report::Counts;

/// A value as a source has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// The source has no such column, or the JSON object no such key.
    Absent,
    /// No value.
    Null,
    Text(Cow<'a, str>),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// An instant in epoch milliseconds, from a typed column.
    Instant(i64),
    List(Vec<Cow<'a, str>>),
    /// Text that is not UTF-8.
    NotUtf8,
    /// Something else, in words.
    Other(&'static str),
}

impl Value<'_> {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Absent | Self::Null => "nothing",
            Self::Text(_) => "text",
            Self::Int(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Bool(_) => "a boolean",
            Self::Instant(_) => "a time",
            Self::List(_) => "a list",
            Self::NotUtf8 => "text that is not UTF-8",
            Self::Other(kind) => kind,
        }
    }
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Rejection {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Whether a file without a wanted column is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing can be read without it.
    Required,
    /// The configuration names it.
    Named,
    /// Read where there is one.
    IfPresent,
}

/// A column to read. Its position in the list of wanted columns is its slot.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The key of the configuration that names it.
    pub(super) key: String,
    pub(super) column: String,
    pub(super) need: Need,
}

/// What [`Records::advance`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A record; [`Records::value`] has its values.
    Record,
    /// A record that cannot be taken apart.
    Rejected(Rejection),
    /// The end of the block.
    End,
}

/// How files are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// The longest record that is not rejected.
    pub(super) max_record_bytes: usize,
    /// Bytes that one thread takes apart at a time.
    pub(super) block_bytes: usize,
}

/// The records of a block, one after the other.
pub(super) trait Records {
    /// Moves to the next record.
    fn advance(&mut self) -> Step;
    /// The value in `slot` of the current record.
    fn value(&self, slot: usize) -> Value<'_>;
    /// The bytes of the current record, no more of them than the configured limit.
    fn raw(&mut self) -> Result<Vec<u8>, IngestError>;
    /// After the end: the bytes of the block that have been read. What lies behind them is the beginning of
    /// a record that the next block ends.
    fn done(&self) -> usize;
}

/// What becomes of records, whatever their format.
pub(super) trait Visit {
    /// Takes a record, or says why not.
    fn record(&mut self, record: &impl Records, at: u64) -> Result<Result<Kept, Rejection>, IngestError>;
}

/// What a record that is none of the rejected came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    Accepted,
    Duplicate,
}

/// A rejected record.
pub(super) struct Rejected {
    /// Its place in the block.
    pub(super) at: u64,
    pub(super) raw: Vec<u8>,
    pub(super) rejection: Rejection,
}

/// What was in a block.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) counts: Counts,
    pub(super) rejected: Vec<Rejected>,
    pub(super) seen: Seen,
    done: usize,
}

/// A piece of a file that can be taken apart by itself.
pub(super) enum Block {
    Text(TextBlock),
    Rows(ParquetRows),
}

/// How the blocks of a file are to be taken apart.
pub(super) enum Layout {
    Csv(CsvLayout),
    Jsonl(JsonlLayout),
    Parquet(ParquetLayout),
}

impl Layout {
    /// Shows the records of a block to `visit`.
    pub(super) fn walk(&self, block: &Block, visit: &mut impl Visit) -> Result<Walked, IngestError> {
        match (self, block) {
            (Self::Csv(layout), Block::Text(block)) => walk(&mut CsvRecords::new(layout, block), visit),
            (Self::Jsonl(layout), Block::Text(block)) => {
                let mut records = JsonlRecords::new(layout, block);
                let walked = walk(&mut records, visit)?;
                Ok(Walked { seen: records.into_seen(), ..walked })
            }
            (Self::Parquet(layout), Block::Rows(rows)) => {
                walk(&mut ParquetRecords::new(layout, rows)?, visit)
            }
            (Self::Parquet(_), Block::Text(_)) | (_, Block::Rows(_)) => Ok(Walked::default()),
        }
    }
}

fn walk<R: Records>(records: &mut R, visit: &mut impl Visit) -> Result<Walked, IngestError> {
    let mut walked = Walked::default();
    let counts = &mut walked.counts;
    loop {
        let rejection = match records.advance() {
            Step::End => break,
            Step::Rejected(rejection) => Some(rejection),
            Step::Record => match visit.record(records, counts.read)? {
                Ok(Kept::Accepted) => {
                    counts.accepted += 1;
                    None
                }
                Ok(Kept::Duplicate) => {
                    counts.duplicates += 1;
                    None
                }
                Err(rejection) => Some(rejection),
            },
        };
        if let Some(rejection) = rejection {
            counts.dead_letters += 1;
            walked.rejected.push(Rejected { at: counts.read, raw: records.raw()?, rejection });
        }
        counts.read += 1;
    }
    walked.done = records.done();
    Ok(walked)
}

/// The end of a block that a record began in and did not end in.
#[derive(Default)]
pub(super) struct Carry(Vec<u8>);

impl Carry {
    /// Whether the next block begins where a record does.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block with what was carried before it.
    pub(super) fn join(&mut self, block: Block) -> Block {
        match block {
            Block::Text(mut text) if !self.is_empty() => {
                text.bytes.splice(..0, std::mem::take(&mut self.0));
                Block::Text(text)
            }
            block => block,
        }
    }

    /// Keeps what was not read of the block.
    pub(super) fn keep(&mut self, block: &Block, walked: &Walked) {
        if let Block::Text(text) = block {
            self.0.extend_from_slice(&text.bytes[walked.done..]);
        }
    }
}

/// A file, block by block.
pub(super) struct Source {
    pub(super) layout: Arc<Layout>,
    path: String,
    first: Option<TextBlock>,
    blocks: Blocks,
}

enum Blocks {
    Text(TextBlocks),
    Parquet(Box<ParquetBlocks>),
}

impl Source {
    /// Opens `file` to read the wanted columns.
    pub(super) fn open(
        file: &InputFile,
        wanted: &[Wanted],
        reading: Reading,
        count: &ByteCount,
    ) -> Result<Self, IngestError> {
        let (layout, first, blocks) = match file.format {
            Format::Csv => {
                let (layout, first, blocks) = open_csv(file, wanted, reading, count)?;
                (Layout::Csv(layout), Some(first), Blocks::Text(blocks))
            }
            Format::Jsonl => {
                let (layout, first, blocks) = open_jsonl(file, wanted, reading, count)?;
                (Layout::Jsonl(layout), Some(first), Blocks::Text(blocks))
            }
            Format::Parquet => {
                let (layout, blocks) = open_parquet_blocks(file, wanted, reading, count)?;
                (Layout::Parquet(layout), None, Blocks::Parquet(Box::new(blocks)))
            }
        };
        Ok(Self { layout: Arc::new(layout), path: file.source.clone(), first, blocks })
    }

    /// The next block, or none at the end of the file.
    pub(super) fn next(&mut self) -> Result<Option<Block>, IngestError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(Block::Text(first)));
        }
        match &mut self.blocks {
            Blocks::Text(blocks) => {
                let block = blocks.next().map_err(|e| IngestError::read(&self.path, e))?;
                Ok(block.map(Block::Text))
            }
            Blocks::Parquet(blocks) => Ok(blocks.next()?.map(Block::Rows)),
        }
    }
}

/// Where each wanted column is among `present`; an error where a needed one is not.
pub(super) fn locate(
    file: &InputFile,
    wanted: &[Wanted],
    present: &[String],
) -> Result<Vec<Option<usize>>, IngestError> {
    wanted
        .iter()
        .map(|w| {
            let mut found = present.iter().enumerate().filter(|(_, name)| **name == w.column);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(IngestError::NotTheFormat {
                    path: file.source.clone(),
                    problem: format!("has more than one column `{}`", w.column),
                }),
                (Some((at, _)), None) => Ok(Some(at)),
                (None, _) if w.need == Need::IfPresent => Ok(None),
                (None, _) => Err(no_such_column(file, "column", w, present.to_vec())),
            }
        })
        .collect()
}

pub(super) fn no_such_column(
    file: &InputFile,
    unit: &'static str,
    wanted: &Wanted,
    present: Vec<String>,
) -> IngestError {
    IngestError::NoSuchColumn {
        path: file.source.clone(),
        unit,
        column: wanted.column.clone(),
        key: wanted.key.clone(),
        present,
    }
}

/// The record without its line end.
pub(super) fn trim_line_end(mut record: &[u8]) -> &[u8] {
    while let [rest @ .., b'\n' | b'\r'] = record {
        record = rest;
    }
    record
}
