//! Cuts a stream of text into blocks that several threads can parse.
//!
//! A block ends at the end of a line, so a block mostly begins with a record. Where it does not (a quoted CSV
//! field may hold line ends), parsing the previous block shows it. A line longer than the longest allowed record
//! is truncated while it is read, so memory holds only the part that is kept.

use std::io::Read;

/// A byte-order mark.
pub(crate) const BOM: &[u8] = b"\xef\xbb\xbf";
const SKIP_BYTES: usize = 64 << 10;

/// Whole lines of a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TextBlock {
    pub(crate) bytes: Vec<u8>,
    /// Whether the file ends here.
    pub(crate) last: bool,
}

/// The line end of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LineEnd {
    /// `\n`, with or without `\r` before it.
    LineFeed,
    /// `\n` or `\r`.
    Any,
}

impl LineEnd {
    fn last_in(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::LineFeed => memchr::memrchr(b'\n', bytes),
            Self::Any => memchr::memrchr2(b'\n', b'\r', bytes),
        }
    }

    fn first_in(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Self::LineFeed => memchr::memchr(b'\n', bytes),
            Self::Any => memchr::memchr2(b'\n', b'\r', bytes),
        }
    }
}

/// The blocks of a stream. Memory: one block, or one line where that is longer.
pub(crate) struct TextBlocks {
    stream: Box<dyn Read + Send>,
    line_end: LineEnd,
    block_bytes: usize,
    /// Maximum bytes of a line that are kept; more than the longest allowed record.
    line_bytes_max: usize,
    /// Bytes that were read and belong to the next block.
    held: Vec<u8>,
    started: bool,
    ended: bool,
}

impl TextBlocks {
    /// `record_bytes_max` is the longest record that is not rejected.
    pub(crate) fn new(
        stream: Box<dyn Read + Send>,
        line_end: LineEnd,
        block_bytes: usize,
        record_bytes_max: usize,
    ) -> Self {
        // Two bytes for the line end, and one more to distinguish a line that is too long from one that just fits.
        let line_bytes_max = record_bytes_max.saturating_add(3);
        let block_bytes = block_bytes.max(BOM.len());
        Self { stream, line_end, block_bytes, line_bytes_max, held: Vec::new(), started: false, ended: false }
    }

    /// The next block; the last one may be empty, and after it there is none.
    pub(crate) fn next(&mut self) -> std::io::Result<Option<TextBlock>> {
        if self.ended {
            return Ok(None);
        }
        let mut bytes = std::mem::take(&mut self.held);
        loop {
            // Read whole blocks, so that their boundaries do not depend on the sizes of the stream's reads.
            let wanted = (bytes.len() + 1).next_multiple_of(self.block_bytes);
            self.ended = self.fill(&mut bytes, wanted)?;
            if !self.started {
                self.started = true;
                if bytes.starts_with(BOM) {
                    bytes.drain(..BOM.len());
                }
            }
            if self.ended {
                return Ok(Some(TextBlock { bytes, last: true }));
            }
            if let Some(at) = self.line_end.last_in(&bytes) {
                self.held = bytes.split_off(at + 1);
                return Ok(Some(TextBlock { bytes, last: false }));
            }
            if bytes.len() > self.line_bytes_max {
                bytes.truncate(self.line_bytes_max);
                self.skip_line()?;
                if !self.ended {
                    bytes.push(b'\n');
                }
                return Ok(Some(TextBlock { bytes, last: self.ended }));
            }
        }
    }

    /// Reads until there are `wanted` bytes; returns true if the stream ends before.
    fn fill(&mut self, bytes: &mut Vec<u8>, wanted: usize) -> std::io::Result<bool> {
        let held = bytes.len();
        let missing = wanted.saturating_sub(held);
        bytes.reserve(missing);
        let read = self.stream.by_ref().take(missing as u64).read_to_end(bytes)?;
        Ok(read < missing)
    }

    /// Drops the rest of the line; bytes after its end are held for the next block.
    fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            self.held.clear();
            let mut chunk = std::mem::take(&mut self.held);
            self.ended = self.fill(&mut chunk, SKIP_BYTES)?;
            match self.line_end.first_in(&chunk) {
                Some(at) => {
                    self.held = chunk.split_off(at + 1);
                    // The next read finds the end of the stream again, after the held bytes.
                    self.ended = false;
                    return Ok(());
                }
                None if self.ended => return Ok(()),
                None => self.held = chunk,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn blocks(text: &[u8], line_end: LineEnd, block_bytes: usize, record_bytes_max: usize) -> Vec<TextBlock> {
        let stream = Box::new(std::io::Cursor::new(text.to_vec()));
        let mut blocks = TextBlocks::new(stream, line_end, block_bytes, record_bytes_max);
        std::iter::from_fn(|| blocks.next().unwrap()).collect()
    }

    #[test]
    fn a_long_line_is_cut_short() {
        let text = [&b"a\n"[..], &[b'x'; 300_000], b"\nb\nc"].concat();
        let whole: Vec<u8> =
            blocks(&text, LineEnd::LineFeed, 10, 20).into_iter().flat_map(|block| block.bytes).collect();
        assert_eq!(whole, [&b"a\n"[..], &[b'x'; 23], b"\nb\nc"].concat());
    }

    proptest! {
        #[test]
        fn blocks_are_the_stream_and_end_with_lines(
            text in prop::collection::vec(prop::sample::select(&b"ab\n\r"[..]), 0..200),
            block_bytes in 1usize..50,
            any in any::<bool>(),
        ) {
            let line_end = if any { LineEnd::Any } else { LineEnd::LineFeed };
            let blocks = blocks(&text, line_end, block_bytes, 1_000);
            let (last, others) = blocks.split_last().unwrap();
            prop_assert!(last.last && others.iter().all(|b| !b.last && line_end.last_in(&b.bytes) == Some(b.bytes.len() - 1)));
            let whole: Vec<u8> = blocks.iter().flat_map(|block| block.bytes.clone()).collect();
            prop_assert_eq!(whole, text);
        }
    }
}
