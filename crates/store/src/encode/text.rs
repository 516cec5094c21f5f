//! A column of texts in a row group: each different text once, and its code in each row.

use arrow::array::{Array, StringArray};
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, PageType};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ColumnChunkMetaData, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::{Statistics, ValueStatistics};
use parquet::file::writer::{SerializedPageWriter, SerializedRowGroupWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::codes::Codes;
use super::hybrid::{encode, width};

/// Bytes of different texts at which a row group ends.
pub(super) const TEXTS_MAX: usize = 1 << 20;

/// Maximum bytes of a text that becomes a statistic.
const STATISTIC_MAX: usize = 64;

/// The texts of a column of a row group.
pub(super) struct TextChunk {
    column: ColumnDescPtr,
    statistics: bool,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    page_rows: usize,
    codes: Codes,
    /// Rows of the page under construction: codes of the texts, and whether there is one.
    page: Vec<u32>,
    present: Vec<u32>,
    pages: Vec<DataPage>,
    rows: u64,
    nulls: u64,
}

/// A data page, compressed.
struct DataPage {
    page: CompressedPage,
    rows: usize,
}

fn failed(error: std::io::Error) -> ParquetError {
    ParquetError::External(error.into())
}

impl TextChunk {
    /// An empty chunk of `column`.
    pub(super) fn new(column: ColumnDescPtr, properties: &WriterProperties) -> Self {
        let statistics = properties.statistics_enabled(column.path()) != EnabledStatistics::None;
        let level = match properties.compression(column.path()) {
            Compression::ZSTD(level) => Some(level.compression_level()),
            _ => None,
        };
        Self {
            column,
            statistics,
            compressor: level.and_then(|level| zstd::bulk::Compressor::new(level).ok()),
            page_rows: properties.data_page_row_count_limit(),
            codes: Codes::new(),
            page: Vec::new(),
            present: Vec::new(),
            pages: Vec::new(),
            rows: 0,
            nulls: 0,
        }
    }

    /// About the bytes in the file.
    pub(super) fn bytes(&self) -> usize {
        let pages: usize = self.pages.iter().map(|page| page.page.compressed_size()).sum();
        pages + self.codes.bytes() + self.page.len() * usize::from(width(self.codes.len())) / 8
    }

    /// Whether the row group should end.
    pub(super) fn is_full(&self) -> bool {
        self.codes.bytes() >= TEXTS_MAX
    }

    /// Appends texts.
    pub(super) fn write(&mut self, texts: &StringArray) -> Result<()> {
        let mut rest = texts.clone();
        while !rest.is_empty() {
            let rows = rest.len().min(self.page_rows - self.present.len());
            let part = rest.slice(0, rows);
            match part.nulls() {
                Some(nulls) => self.present.extend(nulls.iter().map(u32::from)),
                None => self.present.resize(self.present.len() + rows, 1),
            }
            self.codes.encode(&part, &mut self.page);
            rest = rest.slice(rows, rest.len() - rows);
            if self.present.len() == self.page_rows {
                self.end_page()?;
            }
        }
        Ok(())
    }

    fn end_page(&mut self) -> Result<()> {
        let rows = self.present.len();
        if rows == 0 {
            return Ok(());
        }
        let mut bytes = Vec::new();
        if self.column.max_def_level() > 0 {
            bytes.extend_from_slice(&[0; 4]);
            encode(&self.present, 1, &mut bytes);
            let length = (bytes.len() - 4) as u32;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
        }
        let width = width(self.codes.len());
        bytes.push(width);
        encode(&self.page, width, &mut bytes);
        let size = bytes.len();
        let page = Page::DataPage {
            buf: self.compressed(bytes)?,
            num_values: rows as u32,
            encoding: Encoding::RLE_DICTIONARY,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        self.pages.push(DataPage { page: CompressedPage::new(page, size), rows });
        self.rows += rows as u64;
        self.nulls += (rows - self.page.len()) as u64;
        self.page.clear();
        self.present.clear();
        Ok(())
    }

    fn compressed(&mut self, bytes: Vec<u8>) -> Result<Bytes> {
        match &mut self.compressor {
            Some(compressor) => Ok(compressor.compress(&bytes).map_err(failed)?.into()),
            None => Ok(bytes.into()),
        }
    }

    fn dictionary(&mut self) -> Result<CompressedPage> {
        let mut bytes = Vec::with_capacity(self.codes.bytes() + 4 * self.codes.len());
        for text in self.codes.texts() {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text);
        }
        let size = bytes.len();
        let page = Page::DictionaryPage {
            buf: self.compressed(bytes)?,
            num_values: self.codes.len() as u32,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        Ok(CompressedPage::new(page, size))
    }

    fn statistics(&self) -> Statistics {
        let short = |text: Option<&[u8]>| {
            text.filter(|text| text.len() <= STATISTIC_MAX).map(|text| ByteArray::from(text.to_vec()))
        };
        let (least, greatest) = (short(self.codes.texts().min()), short(self.codes.texts().max()));
        let distinct = Some(self.codes.len() as u64);
        Statistics::ByteArray(ValueStatistics::new(least, greatest, distinct, Some(self.nulls), false))
    }

    /// Writes the chunk as the next column of a row group.
    pub(super) fn append_to<W: std::io::Write + Send>(
        mut self,
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> Result<()> {
        self.end_page()?;
        let dictionary = self.dictionary()?;
        let mut out = TrackedWrite::new(Vec::new());
        let mut writer = SerializedPageWriter::new(&mut out);
        let first = writer.write_page(dictionary)?;
        let (mut uncompressed, mut compressed) = (first.uncompressed_size, first.compressed_size);
        let data_offset = first.bytes_written;
        let mut offsets = OffsetIndexBuilder::new();
        let pages = self.pages.len() as i32;
        for DataPage { page, rows } in std::mem::take(&mut self.pages) {
            let written = writer.write_page(page)?;
            debug_assert_eq!(written.page_type, PageType::DATA_PAGE);
            uncompressed += written.uncompressed_size;
            compressed += written.compressed_size;
            offsets.append_row_count(rows as i64);
            offsets.append_offset_and_size(written.offset as i64, written.compressed_size as i32);
            offsets.append_unencoded_byte_array_data_bytes(None);
        }
        let mut metadata = ColumnChunkMetaData::builder(self.column.clone())
            .set_encodings(vec![Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY])
            .set_compression(match self.compressor {
                Some(_) => Compression::ZSTD(Default::default()),
                None => Compression::UNCOMPRESSED,
            })
            // Tells readers that the dictionary has all texts, so that they may skip the chunk by it.
            .set_page_encoding_stats(vec![
                PageEncodingStats {
                    page_type: PageType::DICTIONARY_PAGE,
                    encoding: Encoding::PLAIN,
                    count: 1,
                },
                PageEncodingStats {
                    page_type: PageType::DATA_PAGE,
                    encoding: Encoding::RLE_DICTIONARY,
                    count: pages,
                },
            ])
            .set_num_values(self.rows as i64)
            .set_total_compressed_size(compressed as i64)
            .set_total_uncompressed_size(uncompressed as i64)
            .set_dictionary_page_offset(Some(0))
            .set_data_page_offset(data_offset as i64);
        if self.statistics {
            metadata = metadata.set_statistics(self.statistics());
        }
        let close = ColumnCloseResult {
            bytes_written: compressed as u64,
            rows_written: self.rows,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(offsets.build()),
        };
        group.append_column(&Bytes::from(out.into_inner()?), close)
    }
}
