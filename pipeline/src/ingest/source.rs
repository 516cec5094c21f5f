//! A file of any format, block by block; and a block, record by record.
//!
//! ```text
//!   Source ── in the order of the file ─▶ Block ─┐
//!      └────── once ────────────────────▶ Layout ┴─▶ Records ─▶ Visit
//!   one thread reads                                 any thread takes apart
//! ```

use std::sync::Arc;

use schemas::config::Format;
use schemas::tables::Reason;

use super::blocks::{TextBlock, TextBlocks};
use super::csv::{CsvLayout, CsvRecords, open_csv};
use super::error::IngestError;
use super::files::{ByteCount, InputFile, Reading};
use super::jsonl::{JsonlLayout, JsonlRecords, Seen, open_jsonl};
use super::parquet::{
    ParquetBlocks, ParquetLayout, ParquetRecords, ParquetRows, WholeRows, open_parquet_blocks,
};
use super::record::{Kept, Raw, Records, Step};
use super::report::Counts;
use crate::forget::UserColumn;
use crate::records::{Rejection, Wanted};

/// What becomes of records, whatever their format.
pub(super) trait Visit {
    /// Takes a record, or says why not.
    fn record(&mut self, record: &impl Records, at: u64) -> Result<Result<Kept, Rejection>, IngestError>;

    /// Whether a rejected record does not say whose it is.
    fn says_nobody(&self, _record: &impl Records) -> bool {
        false
    }

    /// Whether a record that does not say whose it is, is of somebody who was forgotten.
    fn is_forgotten(&self, _column: UserColumn, _raw: &[u8]) -> bool {
        false
    }
}

/// A rejected record.
pub(super) struct Rejected {
    /// Its place in the block.
    pub(super) at: u64,
    pub(super) raw: Raw,
    pub(super) rejection: Rejection,
    /// Whether it does not say whose it is.
    pub(super) of_nobody: bool,
}

/// What was in a block.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) counts: Counts,
    pub(super) rejected: Vec<Rejected>,
    pub(super) seen: Seen,
    /// Where rows are read again.
    pub(super) whole: Option<Arc<WholeRows>>,
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
                let walked = walk(&mut ParquetRecords::new(layout, rows)?, visit)?;
                Ok(Walked { whole: Some(layout.whole.clone()), ..walked })
            }
            (Self::Parquet(_), Block::Text(_)) | (_, Block::Rows(_)) => Ok(Walked::default()),
        }
    }
}

fn walk<R: Records>(records: &mut R, visit: &mut impl Visit) -> Result<Walked, IngestError> {
    let mut walked = Walked::default();
    let counts = &mut walked.counts;
    loop {
        let (rejection, of_nobody) = match records.advance() {
            Step::End => break,
            Step::Rejected(rejection) => (Some(rejection), true),
            Step::Record => match visit.record(records, counts.read)? {
                Ok(Kept::Accepted) => {
                    counts.accepted += 1;
                    (None, false)
                }
                Ok(Kept::Duplicate) => {
                    counts.duplicates += 1;
                    (None, false)
                }
                Err(Rejection { reason: Reason::Forgotten, .. }) => {
                    counts.forgotten += 1;
                    (None, false)
                }
                Err(rejection) => (Some(rejection), visit.says_nobody(records)),
            },
        };
        if let Some(rejection) = rejection {
            let column = records.user_column();
            match records.raw() {
                Raw::Bytes(bytes) if of_nobody && visit.is_forgotten(column, &bytes) => counts.forgotten += 1,
                raw => {
                    counts.dead_letters += 1;
                    walked.rejected.push(Rejected { at: counts.read, raw, rejection, of_nobody });
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
        reading: &Reading,
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
