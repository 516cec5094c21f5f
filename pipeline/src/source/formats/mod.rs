//! The formats of files. A format is a file of this folder (how it finds its columns, cuts blocks and reads records) and an arm of
//! each `match` below; its name, endings and magic bytes are [`Format`]'s. Everything else knows a [`Source`] of [`Block`]s.
//!
//! ```text
//!   Source ── in the order of the file ─▶ Block ─▶ Records ─▶ Visit
//!   one thread reads                      any thread walks the records
//! ```

mod csv;
mod jsonl;
mod parquet;

use std::sync::Arc;

use schemas::config::Format;

use self::csv::{CsvLayout, CsvRecords, open_csv};
pub(crate) use self::jsonl::SeenFields;
use self::jsonl::{JsonlLayout, JsonlRecords, open_jsonl};
pub(crate) use self::parquet::WholeRows;
use self::parquet::{
    ParquetBlocks, ParquetLayout, ParquetRecords, ParquetRows, check_parquet, open_parquet_blocks,
};
use super::blocks::{TextBlock, TextBlocks};
use super::error::SourceError;
use super::files::{ByteCount, InputFile, ReadOptions};
use super::walk::{Counted, Visit, walk};
use crate::records::Wanted;

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

    /// Refuses a file whose wanted columns are missing or cannot be read, where that shows before any row is read.
    pub(crate) fn check(
        file: &InputFile,
        wanted: &[Wanted],
        reading: &ReadOptions,
    ) -> Result<(), SourceError> {
        match file.format {
            Format::Parquet => check_parquet(file, wanted, reading),
            // Text is looked at when its turn comes: it may be packed, or a stream.
            Format::Csv | Format::Jsonl => Ok(()),
        }
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

/// What a walk over a block found.
pub(crate) struct Walked {
    pub(crate) counted: Counted,
    /// The wanted fields that occurred; only for JSON Lines.
    pub(crate) seen: SeenFields,
    /// Reads rejected rows again; only for Parquet.
    pub(crate) whole: Option<Arc<WholeRows>>,
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
        Ok(match self {
            Self::Csv(layout, block) => Walked {
                counted: walk(&mut CsvRecords::new(layout, block), visit)?,
                seen: SeenFields::default(),
                whole: None,
            },
            Self::Jsonl(layout, block) => {
                let mut records = JsonlRecords::new(layout, block);
                let counted = walk(&mut records, visit)?;
                Walked { counted, seen: records.into_seen(), whole: None }
            }
            Self::Parquet(layout, rows) => Walked {
                counted: walk(&mut ParquetRecords::new(layout, rows)?, visit)?,
                seen: SeenFields::default(),
                whole: Some(layout.whole.clone()),
            },
        })
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

/// The end of a block that holds the beginning of an unfinished record.
#[derive(Default)]
pub(crate) struct Carry(Vec<u8>);

impl Carry {
    /// Whether the next block begins with a record.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block with the carried bytes before it.
    pub(crate) fn join(&mut self, mut block: Block) -> Block {
        if let Some(text) = block.text_mut().filter(|_| !self.is_empty()) {
            text.bytes.splice(..0, std::mem::take(&mut self.0));
        }
        block
    }

    /// Keeps the bytes of the block that were not read.
    pub(crate) fn keep(&mut self, block: &Block, walked: &Walked) {
        if let Some(text) = block.text() {
            self.0.extend_from_slice(&text.bytes[walked.counted.done..]);
        }
    }
}
