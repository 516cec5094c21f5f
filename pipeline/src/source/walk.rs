//! A file of any format, block by block; and a block, record by record.
//!
//! ```text
//!   Source ── in the order of the file ─▶ Block ─▶ Records ─▶ Visit
//!   one thread reads                      any thread walks the records
//! ```
//!
//! A block carries the layout of its format, so that a new format needs an arm wherever blocks are opened, read and
//! walked. Memory: the block that is walked, and the beginning of a record that the next block ends.

use std::sync::Arc;

use schemas::config::Format;
use schemas::tables::Reason;

use super::blocks::{TextBlock, TextBlocks};
use super::counts::RecordCounts;
use super::csv::{CsvLayout, CsvRecords, open_csv};
use super::error::SourceError;
use super::files::{ByteCount, InputFile, ReadOptions};
use super::jsonl::{JsonlLayout, JsonlRecords, SeenFields, open_jsonl};
use super::parquet::{
    ParquetBlocks, ParquetLayout, ParquetRecords, ParquetRows, WholeRows, open_parquet_blocks,
};
use super::record::{Accepted, Raw, Records, Step};
use crate::privacy::UserColumn;
use crate::records::{Rejection, Wanted};

/// Takes the records of any format.
pub(crate) trait Visit {
    /// What can stop the walk.
    type Error: From<SourceError>;

    /// Takes a record, or says why not.
    fn record(&mut self, record: &impl Records, at: u64) -> Result<Result<Accepted, Rejection>, Self::Error>;

    /// Whether the user of a rejected record cannot be read.
    fn user_unreadable(&self, _record: &impl Records) -> bool {
        false
    }

    /// Whether a record whose user cannot be read names a forgotten user.
    fn is_forgotten(&self, _column: UserColumn, _raw: &[u8]) -> bool {
        false
    }
}

/// A rejected record.
pub(crate) struct Rejected {
    /// Its place in the block.
    pub(crate) at: u64,
    pub(crate) raw: Raw,
    pub(crate) rejection: Rejection,
    /// Whether its user cannot be read.
    pub(crate) user_unreadable: bool,
}

/// What was in a block.
#[derive(Default)]
pub(crate) struct Walked {
    pub(crate) counts: RecordCounts,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) seen: SeenFields,
    /// Where rows are read again.
    pub(crate) whole: Option<Arc<WholeRows>>,
    done: usize,
}

/// A piece of a file whose records can be read by themselves, with the layout of its format.
pub(crate) enum Block {
    Csv(Arc<CsvLayout>, TextBlock),
    Jsonl(Arc<JsonlLayout>, TextBlock),
    Parquet(Arc<ParquetLayout>, ParquetRows),
}

impl Block {
    /// Shows the records to `visit`.
    pub(crate) fn walk<V: Visit>(&self, visit: &mut V) -> Result<Walked, V::Error> {
        match self {
            Self::Csv(layout, block) => walk(&mut CsvRecords::new(layout, block), visit),
            Self::Jsonl(layout, block) => {
                let mut records = JsonlRecords::new(layout, block);
                let walked = walk(&mut records, visit)?;
                Ok(Walked { seen: records.into_seen(), ..walked })
            }
            Self::Parquet(layout, rows) => {
                let walked = walk(&mut ParquetRecords::new(layout, rows)?, visit)?;
                Ok(Walked { whole: Some(layout.whole.clone()), ..walked })
            }
        }
    }

    /// The text of a block whose last record may end in the next one.
    fn text(&self) -> Option<&TextBlock> {
        match self {
            Self::Csv(_, text) | Self::Jsonl(_, text) => Some(text),
            Self::Parquet(..) => None,
        }
    }

    fn text_mut(&mut self) -> Option<&mut TextBlock> {
        match self {
            Self::Csv(_, text) | Self::Jsonl(_, text) => Some(text),
            Self::Parquet(..) => None,
        }
    }
}

fn walk<R: Records, V: Visit>(records: &mut R, visit: &mut V) -> Result<Walked, V::Error> {
    let mut walked = Walked::default();
    let counts = &mut walked.counts;
    loop {
        let (rejection, user_unreadable) = match records.advance() {
            Step::End => break,
            Step::Rejected(rejection) => (Some(rejection), true),
            Step::Record => match visit.record(records, counts.read)? {
                Ok(Accepted::New) => {
                    counts.accepted += 1;
                    (None, false)
                }
                Ok(Accepted::Duplicate) => {
                    counts.duplicates += 1;
                    (None, false)
                }
                Err(Rejection { reason: Reason::Forgotten, .. }) => {
                    counts.forgotten += 1;
                    (None, false)
                }
                Err(rejection) => (Some(rejection), visit.user_unreadable(records)),
            },
        };
        if let Some(rejection) = rejection {
            let column = records.user_column();
            match records.raw() {
                Raw::Bytes(bytes) if user_unreadable && visit.is_forgotten(column, &bytes) => {
                    counts.forgotten += 1
                }
                raw => {
                    counts.dead_letters += 1;
                    walked.rejected.push(Rejected { at: counts.read, raw, rejection, user_unreadable });
                }
            }
        }
        counts.read += 1;
    }
    walked.done = records.done();
    Ok(walked)
}

/// The end of a block that a record began in and did not end in.
#[derive(Default)]
pub(crate) struct Carry(Vec<u8>);

impl Carry {
    /// Whether the next block begins where a record does.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block with what was carried before it.
    pub(crate) fn join(&mut self, mut block: Block) -> Block {
        if let Some(text) = block.text_mut().filter(|_| !self.is_empty()) {
            text.bytes.splice(..0, std::mem::take(&mut self.0));
        }
        block
    }

    /// Keeps what was not read of the block.
    pub(crate) fn keep(&mut self, block: &Block, walked: &Walked) {
        if let Some(text) = block.text() {
            self.0.extend_from_slice(&text.bytes[walked.done..]);
        }
    }
}

/// A file, block by block.
pub(crate) struct Source {
    path: String,
    blocks: Blocks,
}

/// The blocks of a file, with the layout of its format.
enum Blocks {
    Csv(Arc<CsvLayout>, Texts),
    Jsonl(Arc<JsonlLayout>, Texts),
    Parquet(Arc<ParquetLayout>, Box<ParquetBlocks>),
}

/// The blocks of a text file: the one that was read to find the layout, and the rest.
struct Texts {
    first: Option<TextBlock>,
    rest: TextBlocks,
}

impl Texts {
    fn next(&mut self, path: &str) -> Result<Option<TextBlock>, SourceError> {
        match self.first.take() {
            Some(first) => Ok(Some(first)),
            None => self.rest.next().map_err(|e| SourceError::read(path, e)),
        }
    }
}

impl Source {
    /// Opens `file` to read the wanted columns.
    pub(crate) fn open(
        file: &InputFile,
        wanted: &[Wanted],
        reading: &ReadOptions,
        count: &ByteCount,
    ) -> Result<Self, SourceError> {
        let blocks = match file.format {
            Format::Csv => {
                let (layout, first, rest) = open_csv(file, wanted, reading, count)?;
                Blocks::Csv(Arc::new(layout), Texts { first: Some(first), rest })
            }
            Format::Jsonl => {
                let (layout, first, rest) = open_jsonl(file, wanted, reading, count)?;
                Blocks::Jsonl(Arc::new(layout), Texts { first: Some(first), rest })
            }
            Format::Parquet => {
                let (layout, blocks) = open_parquet_blocks(file, wanted, reading, count)?;
                Blocks::Parquet(Arc::new(layout), Box::new(blocks))
            }
        };
        Ok(Self { path: file.source.clone(), blocks })
    }

    /// The next block, or none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Block>, SourceError> {
        Ok(match &mut self.blocks {
            Blocks::Csv(layout, texts) => {
                texts.next(&self.path)?.map(|text| Block::Csv(Arc::clone(layout), text))
            }
            Blocks::Jsonl(layout, texts) => {
                texts.next(&self.path)?.map(|text| Block::Jsonl(Arc::clone(layout), text))
            }
            Blocks::Parquet(layout, blocks) => {
                blocks.next()?.map(|rows| Block::Parquet(Arc::clone(layout), rows))
            }
        })
    }
}
