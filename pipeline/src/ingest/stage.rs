//! Keeps accepted events between reading and writing; takes them in order, and returns them date by date.
//!
//! ```text
//!   batches in order of (source, position) ─▶ memory, up to a limit
//!                                                │ full: all of it, grouped by date
//!                                                ▼
//!                                           temporary file
//!   for each date: its segments in the order they were written, or its rows in memory
//! ```
//!
//! Batches come in order of (source, position), and so do the rows of each segment and the segments of each
//! date: the rows of a date have this order in memory and on disk.
//!
//! Memory: the limit, of which the index by date takes 12 bytes a row, and one batch more.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use store::failpoint;

use super::error::{IngestError, build};
use super::spill::{Segment, SpillFile};
use crate::records::EventBatch;

/// Maximum rows of a batch that is returned or written.
pub(super) const BATCH_ROWS: usize = 1 << 14;

/// Bytes a row in the index by date: a [`BatchRow`] and a date.
const INDEX_BYTES: usize = 12;

/// Where an event was read: the number of its file, and its place there.
pub(super) type FilePosition = (u32, i64);

/// Batch and row.
type BatchRow = (u32, u32);

/// The accepted events of a run, while they are read.
pub(super) struct EventStage {
    bytes_max: usize,
    bytes: usize,
    batches: Vec<EventBatch>,
    directory: PathBuf,
    spilled: Option<Spilled>,
}

pub(super) struct Spilled {
    file: SpillFile,
    by_date: BTreeMap<i32, Vec<Segment>>,
}

impl EventStage {
    /// An empty stage, which keeps up to `bytes_max` in memory and the rest in the directory for temporary files.
    pub(super) fn new(bytes_max: usize) -> Self {
        let directory = terminal::scratch::directory();
        Self { bytes_max, bytes: 0, batches: Vec::new(), directory, spilled: None }
    }

    /// Appends events; in order of (source, position) they must come after all earlier ones.
    pub(super) fn push(&mut self, batch: EventBatch) -> Result<(), IngestError> {
        if batch.dates.is_empty() {
            return Ok(());
        }
        self.bytes += batch.rows.get_array_memory_size() + INDEX_BYTES * batch.dates.len();
        self.batches.push(batch);
        if self.bytes > self.bytes_max { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), IngestError> {
        self.bytes = 0;
        let kept = InMemory::new(std::mem::take(&mut self.batches));
        let spilled = match &mut self.spilled {
            Some(spilled) => spilled,
            none => {
                none.insert(Spilled { file: SpillFile::create(&self.directory)?, by_date: BTreeMap::new() })
            }
        };
        for &date in kept.by_date.keys() {
            let segment = spilled.file.append(kept.rows(date))?;
            spilled.by_date.entry(date).or_default().push(segment);
        }
        spilled.file.flush()?;
        failpoint::reach("ingest:spilled");
        Ok(())
    }

    /// All events that were pushed.
    pub(super) fn finish(mut self) -> Result<Staged, IngestError> {
        if self.spilled.is_some() && !self.batches.is_empty() {
            self.spill()?;
        }
        Ok(match self.spilled {
            Some(spilled) => Staged::Spilled(spilled),
            None => Staged::InMemory(InMemory::new(self.batches)),
        })
    }
}

/// Batches in memory, and the index of their rows by date.
pub(super) struct InMemory {
    batches: Vec<RecordBatch>,
    by_date: BTreeMap<i32, Vec<BatchRow>>,
}

impl InMemory {
    fn new(batches: Vec<EventBatch>) -> Self {
        let mut by_date: BTreeMap<i32, Vec<BatchRow>> = BTreeMap::new();
        for (at, batch) in (0..).zip(&batches) {
            let mut row = 0;
            // Consecutive rows mostly have the same date.
            for run in batch.dates.chunk_by(|a, b| a == b) {
                let places = by_date.entry(run[0]).or_default();
                let end = row + run.len() as u32;
                places.extend((row..end).map(|row| (at, row)));
                row = end;
            }
        }
        Self { batches: batches.into_iter().map(|batch| batch.rows).collect(), by_date }
    }

    fn rows(&self, date: i32) -> impl Iterator<Item = Result<RecordBatch, IngestError>> {
        let places = self.by_date.get(&date).map(Vec::as_slice).unwrap_or_default();
        chunks(places).map(|places| self.gather(places))
    }

    fn gather(&self, places: &[BatchRow]) -> Result<RecordBatch, IngestError> {
        if let [(batch, row), ..] = *places
            && run_len(places) == places.len()
        {
            return Ok(self.batches[batch as usize].slice(row as usize, places.len()));
        }
        // `interleave` gets only the batches that it needs: there may be thousands.
        let mut batches: Vec<&RecordBatch> = Vec::new();
        let mut last = None;
        let mut indexes = Vec::with_capacity(places.len());
        for &(batch, row) in places {
            if last != Some(batch) {
                last = Some(batch);
                batches.push(&self.batches[batch as usize]);
            }
            indexes.push((batches.len() - 1, row as usize));
        }
        interleave_record_batch(&batches, &indexes).map_err(build)
    }
}

/// The number of leading rows that are consecutive in one batch.
fn run_len(places: &[BatchRow]) -> usize {
    places.windows(2).take_while(|pair| pair[0].0 == pair[1].0 && pair[0].1 + 1 == pair[1].1).count()
        + usize::from(!places.is_empty())
}

/// Cuts rows into chunks of at most [`BATCH_ROWS`]. A long run of consecutive rows, as in a log in order of
/// time, becomes a chunk of its own, which is sliced instead of copied.
fn chunks(mut places: &[BatchRow]) -> impl Iterator<Item = &[BatchRow]> {
    const SLICE_ROWS: usize = 1 << 10;
    std::iter::from_fn(move || {
        let mut end = 0;
        while end < places.len().min(BATCH_ROWS) {
            let run = run_len(&places[end..]);
            if run >= SLICE_ROWS && end > 0 {
                break;
            }
            end += run;
            if run >= SLICE_ROWS {
                break;
            }
        }
        let chunk;
        (chunk, places) = places.split_at(end.min(BATCH_ROWS));
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// The accepted events of a run, by date.
pub(super) enum Staged {
    InMemory(InMemory),
    Spilled(Spilled),
}

impl Staged {
    /// The dates in ascending order, in days.
    pub(super) fn dates(&self) -> Vec<i32> {
        match self {
            Self::InMemory(kept) => kept.by_date.keys().copied().collect(),
            Self::Spilled(spilled) => spilled.by_date.keys().copied().collect(),
        }
    }

    /// The number of rows of a date, and their approximate bytes in memory.
    pub(super) fn size(&self, date: i32) -> (u64, u64) {
        /// Approximate bytes of an event without its source.
        const ROW_BYTES: u64 = 136;
        match self {
            Self::InMemory(kept) => {
                let rows = kept.by_date.get(&date).map_or(0, |places| places.len() as u64);
                (rows, rows * ROW_BYTES)
            }
            Self::Spilled(spilled) => {
                let segments = spilled.by_date.get(&date).into_iter().flatten();
                segments.fold((0, 0), |(rows, bytes), s| (rows + s.rows, bytes + s.bytes))
            }
        }
    }

    /// The rows of a date in order of source and position.
    pub(super) fn rows(&self, date: i32) -> Box<dyn Iterator<Item = Result<RecordBatch, IngestError>> + '_> {
        match self {
            Self::InMemory(kept) => Box::new(kept.rows(date)),
            Self::Spilled(spilled) => {
                let segments = spilled.by_date.get(&date).into_iter().flatten();
                Box::new(segments.flat_map(|&segment| {
                    let (batches, error) = match spilled.file.read(segment) {
                        Ok(batches) => (Some(batches), None),
                        Err(error) => (None, Some(Err(error))),
                    };
                    batches.into_iter().flatten().chain(error)
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_are_the_places_in_order(
            runs in prop::collection::vec((0..3u32, 1..3_000u32), 0..40),
        ) {
            let mut places: Vec<BatchRow> = Vec::new();
            for (n, (skip, len)) in (0..).zip(runs) {
                places.extend((skip..skip + len).map(|row| (n, row)));
            }
            let cut: Vec<&[BatchRow]> = chunks(&places).collect();
            prop_assert!(cut.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= BATCH_ROWS));
            prop_assert_eq!(cut.concat(), places);
        }
    }
}
