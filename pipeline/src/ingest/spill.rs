//! The temporary file for rows that do not fit into memory.
//!
//! ```text
//!   ┌─ flush 1 ───────────────────────────┐┌─ flush 2 ──────────────┐
//!   │ 2026-11-20 │ 2026-11-21 │ 2026-11-22 ││ 2026-11-21 │ 2026-11-22 │ …     an Arrow stream each
//!   └────────────────────────────────────┘└────────────────────────┘
//! ```
//!
//! The file is unlinked as soon as it is open, so it disappears with the process, however that ends. A run has one such
//! file. The position of each segment is kept in memory: 24 bytes for each date of each flush.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::error::IngestError;
use crate::records::STAGED_SCHEMA;

const WRITE_BUFFER_BYTES: usize = 1 << 20;
const READ_BUFFER_BYTES: usize = 64 << 10;

/// The position of the rows of one date and one flush.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    offset: u64,
    pub(super) bytes: u64,
    pub(super) rows: u64,
}

/// The temporary file.
pub(super) struct SpillFile {
    file: BufWriter<File>,
    bytes: u64,
}

impl SpillFile {
    /// A new file in `directory`.
    pub(super) fn create(directory: &Path) -> Result<Self, IngestError> {
        let file = tempfile::tempfile_in(directory).map_err(IngestError::scratch)?;
        Ok(Self { file: BufWriter::with_capacity(WRITE_BUFFER_BYTES, file), bytes: 0 })
    }

    /// Appends batches as one segment, which can be read after the next [`flush`](Self::flush).
    pub(super) fn append(
        &mut self,
        batches: impl Iterator<Item = Result<RecordBatch, IngestError>>,
    ) -> Result<Segment, IngestError> {
        let mut rows = 0;
        let mut writer =
            StreamWriter::try_new(&mut self.file, &STAGED_SCHEMA).map_err(IngestError::scratch)?;
        for batch in batches {
            let batch = batch?;
            writer.write(&batch).map_err(IngestError::scratch)?;
            rows += batch.num_rows() as u64;
        }
        writer.finish().map_err(IngestError::scratch)?;
        drop(writer);
        let end = self.file.stream_position().map_err(IngestError::scratch)?;
        let offset = std::mem::replace(&mut self.bytes, end);
        Ok(Segment { offset, bytes: end - offset, rows })
    }

    pub(super) fn flush(&mut self) -> Result<(), IngestError> {
        self.file.flush().map_err(IngestError::scratch)
    }

    /// The batches of a segment. Several threads may read at once.
    pub(super) fn read(
        &self,
        segment: Segment,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, IngestError>> + use<'_>, IngestError> {
        let part =
            Part { file: self.file.get_ref(), at: segment.offset, end: segment.offset + segment.bytes };
        let reader = StreamReader::try_new(BufReader::with_capacity(READ_BUFFER_BYTES, part), None);
        Ok(reader.map_err(IngestError::scratch)?.map(|batch| batch.map_err(IngestError::scratch)))
    }
}

/// Reads a part of a file without moving the file's own position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let n = buffer.len().min(left);
        let n = self.file.read_at(&mut buffer[..n], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
