//! A window on a stream of bytes that grows only as far as one record needs.

use std::io::Read;

const CHUNK_BYTES: usize = 256 << 10;
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The bytes of a stream from the current record on.
///
/// Memory: the longest record that its user lets it hold, and one chunk.
pub(super) struct Input {
    stream: Box<dyn Read>,
    buffer: Vec<u8>,
    start: usize,
    ended: bool,
}

impl Input {
    /// Starts at the first byte that is not a byte-order mark.
    pub(super) fn new(stream: Box<dyn Read>) -> std::io::Result<Self> {
        let mut input = Self { stream, buffer: Vec::new(), start: 0, ended: false };
        while input.data().len() < BOM.len() && input.more()? {}
        if input.data().starts_with(BOM) {
            input.consume(BOM.len());
        }
        Ok(input)
    }

    /// What is there.
    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// Lets go of the first `n` bytes.
    pub(super) fn consume(&mut self, n: usize) {
        self.start += n;
    }

    /// Whether the stream has ended; [`data`](Self::data) is then the rest.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// Reads on; false at the end of the stream.
    pub(super) fn more(&mut self) -> std::io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + CHUNK_BYTES, 0);
        let read = loop {
            match self.stream.read(&mut self.buffer[held..]) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let n = match read {
            Ok(n) => n,
            Err(e) => {
                self.buffer.truncate(held);
                return Err(e);
            }
        };
        self.buffer.truncate(held + n);
        self.ended = n == 0;
        Ok(n > 0)
    }

    /// Drops everything up to and with the next line feed, or to the end of the stream.
    pub(super) fn skip_line(&mut self) -> std::io::Result<()> {
        loop {
            if let Some(at) = self.data().iter().position(|&b| b == b'\n') {
                self.consume(at + 1);
                return Ok(());
            }
            self.consume(self.data().len());
            if !self.more()? {
                return Ok(());
            }
        }
    }
}
