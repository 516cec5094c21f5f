//! The formats of files. A format is a file of this folder (how it finds its columns, cuts blocks and reads records) and an arm of
//! each `match` below; its name, endings and magic bytes are [`Format`]'s. Everything else knows a [`Source`] of [`Block`]s.
//!
//! ```text
//!   Source ── in the order of the file ─▶ Block ─▶ Records ─▶ Visit
//!   one thread reads                      any thread walks the records
//! ```

mod arrow;
mod columnar;
mod csv;
mod jsonl;
mod parquet;

use std::sync::Arc;

use schemas::config::Format;

use self::arrow::{ArrowBlocks, ArrowLayout, ArrowRecords, ArrowRows, open_arrow};
use self::csv::{CsvLayout, CsvRecords, open_csv};
pub(crate) use self::jsonl::SeenFields;
use self::jsonl::{JsonlLayout, JsonlRecords, open_jsonl};
use self::parquet::{
    ParquetBlocks, ParquetLayout, ParquetRecords, ParquetRows, check_parquet, open_parquet_blocks,
};
pub(crate) use self::parquet::{WholeRows, parquet_columns};
use super::blocks::{TextBlock, TextBlocks};
use super::error::SourceError;
use super::files::{ByteCount, InputFile, ReadOptions};
use super::partition::{BesidePath, PathValues};
use super::record::Records;
use super::walk::{Counted, Visit, walk};
use crate::records::{Exploding, Wanted};

/// A file, block by block.
pub(crate) struct Source {
    path: String,
    in_path: Option<Arc<PathValues>>,
    blocks: Blocks,
}

/// The blocks of a file, with the layout of its format.
enum Blocks {
    Csv(Arc<CsvLayout>, Texts),
    Jsonl(Arc<JsonlLayout>, Texts),
    Parquet(Arc<ParquetLayout>, Box<ParquetBlocks>),
    Arrow(Arc<ArrowLayout>, Box<ArrowBlocks>),
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
        let in_path = PathValues::new(file, wanted)?;
        let rest = in_path.as_ref().map(|values| values.rest(wanted));
        let wanted = rest.as_deref().unwrap_or(wanted);
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
            Format::Arrow => {
                let (layout, blocks) = open_arrow(file, wanted, reading, count)?;
                Blocks::Arrow(layout, Box::new(blocks))
            }
        };
        Ok(Self { path: file.source.clone(), in_path: in_path.map(Arc::new), blocks })
    }

    /// Refuses a file whose wanted columns are missing or cannot be read, where that shows before any row is read.
    pub(crate) fn check(
        file: &InputFile,
        wanted: &[Wanted],
        reading: &ReadOptions,
    ) -> Result<(), SourceError> {
        let rest = PathValues::new(file, wanted)?.map(|values| values.rest(wanted));
        let wanted = rest.as_deref().unwrap_or(wanted);
        match file.format {
            Format::Parquet => check_parquet(file, wanted, reading),
            // What may be packed, or a stream, is looked at when its turn comes.
            Format::Csv | Format::Jsonl | Format::Arrow => Ok(()),
        }
    }

    /// The next block, or none at the end of the file.
    pub(crate) fn next(&mut self) -> Result<Option<Block>, SourceError> {
        let content = match &mut self.blocks {
            Blocks::Csv(layout, texts) => {
                texts.next(&self.path)?.map(|text| Content::Csv(Arc::clone(layout), text))
            }
            Blocks::Jsonl(layout, texts) => {
                texts.next(&self.path)?.map(|text| Content::Jsonl(Arc::clone(layout), text))
            }
            Blocks::Parquet(layout, blocks) => {
                blocks.next()?.map(|rows| Content::Parquet(Arc::clone(layout), rows))
            }
            Blocks::Arrow(layout, blocks) => {
                blocks.next()?.map(|rows| Content::Arrow(Arc::clone(layout), rows))
            }
        };
        Ok(content.map(|content| Block { in_path: self.in_path.clone(), content }))
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

/// A piece of a file whose records can be read by themselves.
pub(crate) struct Block {
    in_path: Option<Arc<PathValues>>,
    content: Content,
}

/// The bytes or rows of a block, with the layout of its format.
enum Content {
    Csv(Arc<CsvLayout>, TextBlock),
    Jsonl(Arc<JsonlLayout>, TextBlock),
    Parquet(Arc<ParquetLayout>, ParquetRows),
    Arrow(Arc<ArrowLayout>, ArrowRows),
}

impl Block {
    /// Shows the records to `visit`, or the elements that `exploding` finds in them.
    pub(crate) fn walk<V: Visit>(
        &self,
        exploding: Option<&Exploding>,
        visit: &mut V,
    ) -> Result<Walked, V::Error> {
        Ok(match &self.content {
            Content::Csv(layout, block) => Walked {
                counted: self.count(&mut CsvRecords::new(layout, block), exploding, visit)?,
                seen: SeenFields::default(),
                whole: None,
            },
            Content::Jsonl(layout, block) => {
                let mut records = JsonlRecords::new(layout, block);
                let counted = self.count(&mut records, exploding, visit)?;
                let mut seen = records.into_seen();
                if let Some(values) = &self.in_path {
                    seen.add_where(|slot| values.has(slot));
                }
                Walked { counted, seen, whole: None }
            }
            Content::Parquet(layout, rows) => Walked {
                counted: self.count(&mut ParquetRecords::new(layout, rows)?, exploding, visit)?,
                seen: SeenFields::default(),
                whole: Some(layout.whole.clone()),
            },
            Content::Arrow(layout, rows) => Walked {
                counted: self.count(&mut ArrowRecords::new(layout, rows)?, exploding, visit)?,
                seen: SeenFields::default(),
                whole: None,
            },
        })
    }

    /// Walks `records` with the values of the file's path.
    fn count<R: Records, V: Visit>(
        &self,
        records: &mut R,
        exploding: Option<&Exploding>,
        visit: &mut V,
    ) -> Result<Counted, V::Error> {
        match &self.in_path {
            Some(values) => walk(&mut BesidePath { records, values }, exploding, visit),
            None => walk(records, exploding, visit),
        }
    }

    /// The size of the block as text; 0 of rows that were read by column.
    pub(crate) fn bytes(&self) -> usize {
        self.text().map_or(0, |text| text.bytes.len())
    }

    /// The text of a block whose last record may end in the next one.
    fn text(&self) -> Option<&TextBlock> {
        match &self.content {
            Content::Csv(_, text) | Content::Jsonl(_, text) => Some(text),
            Content::Parquet(..) | Content::Arrow(..) => None,
        }
    }

    fn text_mut(&mut self) -> Option<&mut TextBlock> {
        match &mut self.content {
            Content::Csv(_, text) | Content::Jsonl(_, text) => Some(text),
            Content::Parquet(..) | Content::Arrow(..) => None,
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
