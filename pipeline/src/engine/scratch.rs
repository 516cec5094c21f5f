//! One temporary file for everything that does not fit into memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::buffer::Buffer;
use arrow::buffer::MutableBuffer;
use datafusion::common::DataFusionError;

/// A scratch file that cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[error("scratch file in {directory}: cannot {action} {bytes} bytes; TMPDIR names another directory")]
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

/// Where a piece of the file lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    offset: u64,
    len: usize,
}

/// A file without a name in the system's temporary directory, written by many threads at once.
///
/// It is made when the first chunk is written, and gone when this is dropped or the process ends, however it
/// ends.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    file: OnceLock<File>,
    end: AtomicU64,
}

impl Scratch {
    /// Writes `parts`, one after the other, behind what is there.
    pub(crate) fn append(&self, parts: &[&[u8]]) -> Result<Chunk, ScratchError> {
        let len = parts.iter().map(|part| part.len()).sum();
        let fail = |source| error("write", len, source);
        let file = match self.file.get() {
            Some(file) => file,
            None => {
                let file = tempfile::tempfile().map_err(fail)?;
                self.file.get_or_init(|| file)
            }
        };
        let offset = self.end.fetch_add(len as u64, Ordering::Relaxed);
        let mut at = offset;
        for part in parts {
            file.write_all_at(part, at).map_err(fail)?;
            at += part.len() as u64;
        }
        Ok(Chunk { offset, len })
    }

    /// Reads a chunk back.
    pub(crate) fn read(&self, chunk: Chunk) -> Result<Buffer, ScratchError> {
        let fail = |source| error("read", chunk.len, source);
        let mut bytes = MutableBuffer::from_len_zeroed(chunk.len);
        let Some(file) = self.file.get() else {
            return Err(fail(std::io::Error::other("nothing was written")));
        };
        file.read_exact_at(&mut bytes, chunk.offset).map_err(fail)?;
        Ok(bytes.into())
    }

    /// Bytes written so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }
}

fn error(action: &'static str, bytes: usize, source: std::io::Error) -> ScratchError {
    let directory: PathBuf = std::env::temp_dir();
    ScratchError { directory: directory.display().to_string(), action, bytes, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_come_back_as_they_were() {
        let scratch = Scratch::default();
        let one = scratch.append(&[b"one"]).unwrap();
        let two = scratch.append(&[]).unwrap();
        let three = scratch.append(&[b"th", b"ree"]).unwrap();
        assert_eq!(scratch.read(three).unwrap().as_slice(), b"three");
        assert_eq!(scratch.read(one).unwrap().as_slice(), b"one");
        assert_eq!(scratch.read(two).unwrap().as_slice(), b"");
        assert_eq!(scratch.bytes(), 8);
    }
}
