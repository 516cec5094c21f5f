//! Temporary files for everything that does not fit into memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

use arrow::buffer::Buffer;
use arrow::buffer::MutableBuffer;
use datafusion::common::DataFusionError;
use terminal::scratch::{HINT, directory};

/// A scratch file that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("scratch file in {directory}: cannot {action} {bytes} bytes; {}", HINT)]
pub struct ScratchError {
    directory: String,
    action: &'static str,
    bytes: usize,
    source: std::io::Error,
}

impl From<ScratchError> for DataFusionError {
    fn from(error: ScratchError) -> Self {
        Self::External(Box::new(error))
    }
}

/// The position of a piece of data in a scratch file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScratchChunk {
    lane: usize,
    offset: u64,
    len: usize,
}

/// Unlinked files in the [`directory`] for temporary files, written by many threads at once.
///
/// There are several files, because a file system lets one thread at a time write to a file. Each is created when it is
/// first needed, and disappears when this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Scratch {
    lanes: Vec<Lane>,
    bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Lane {
    file: OnceLock<File>,
    /// The end of the file; locked while a thread writes.
    end: Mutex<u64>,
}

impl Scratch {
    /// Empty; for `threads` writers at once.
    pub(crate) fn new(threads: usize) -> Self {
        Self { lanes: (0..threads.max(1)).map(|_| Lane::default()).collect(), bytes: AtomicU64::new(0) }
    }

    /// A file that no thread is writing to, and its end. If all are in use, waits for the first.
    fn free_lane(&self) -> (usize, MutexGuard<'_, u64>) {
        for (n, lane) in self.lanes.iter().enumerate() {
            match lane.end.try_lock() {
                Ok(end) => return (n, end),
                Err(TryLockError::Poisoned(end)) => return (n, end.into_inner()),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        (0, self.lanes[0].end.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Appends the concatenated `parts`.
    pub(crate) fn append(&self, parts: &[&[u8]]) -> Result<ScratchChunk, ScratchError> {
        let len = parts.iter().map(|part| part.len()).sum();
        let fail = |source| error("write", len, source);
        let (lane, mut end) = self.free_lane();
        let file = match self.lanes[lane].file.get() {
            Some(file) => file,
            None => {
                let file = tempfile::tempfile_in(directory()).map_err(fail)?;
                self.lanes[lane].file.get_or_init(|| file)
            }
        };
        let offset = *end;
        for part in parts {
            file.write_all_at(part, *end).map_err(fail)?;
            *end += part.len() as u64;
        }
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(ScratchChunk { lane, offset, len })
    }

    /// Reads a chunk back.
    pub(crate) fn read(&self, chunk: ScratchChunk) -> Result<Buffer, ScratchError> {
        let fail = |source| error("read", chunk.len, source);
        let mut bytes = MutableBuffer::from_len_zeroed(chunk.len);
        let Some(file) = self.lanes[chunk.lane].file.get() else {
            return Err(fail(std::io::Error::other("nothing was written")));
        };
        file.read_exact_at(&mut bytes, chunk.offset).map_err(fail)?;
        Ok(bytes.into())
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn error(action: &'static str, bytes: usize, source: std::io::Error) -> ScratchError {
    ScratchError { directory: directory().display().to_string(), action, bytes, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_as_they_were() {
        let scratch = Scratch::new(2);
        let one = scratch.append(&[b"one"]).unwrap();
        let two = scratch.append(&[]).unwrap();
        let three = scratch.append(&[b"th", b"ree"]).unwrap();
        assert_eq!(scratch.read(three).unwrap().as_slice(), b"three");
        assert_eq!(scratch.read(one).unwrap().as_slice(), b"one");
        assert_eq!(scratch.read(two).unwrap().as_slice(), b"");
        assert_eq!(scratch.bytes(), 8);
    }
}
