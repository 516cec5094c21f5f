//! Opens a file's decompressed bytes.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use schemas::config::{Dialect, Format};
use schemas::memory::MemorySize;

use super::error::SourceError;
use super::partition::PartitionValue;

/// How the bytes of a file are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Packing {
    /// Every packing but none.
    pub(crate) const PACKED: [Self; 4] = [Self::Gzip, Self::Zstd, Self::Bzip2, Self::Xz];

    /// The ending of the names of packed files.
    pub(crate) fn ending(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Gzip => "gz",
            Self::Zstd => "zst",
            Self::Bzip2 => "bz2",
            Self::Xz => "xz",
        }
    }

    /// The name in messages.
    fn title(self) -> &'static str {
        match self {
            Self::Plain => "not packed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }

    /// Whether a packed file may begin with the bytes of `head`, of which there are [`HEAD_BYTES`] unless the file is shorter.
    fn fits(self, head: &[u8]) -> bool {
        match self {
            Self::Plain => false,
            Self::Gzip => head.starts_with(&[0x1f, 0x8b]),
            Self::Zstd => head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
            // Text may begin with `BZh`; then comes the mark of the first block, or of the end.
            Self::Bzip2 => {
                head.starts_with(b"BZh")
                    && head.get(3).is_some_and(|level| (b'1'..=b'9').contains(level))
                    && (head[4..].starts_with(b"1AY&SY")
                        || head[4..].starts_with(b"\x17\x72\x45\x38\x50\x90"))
            }
            Self::Xz => head.starts_with(b"\xfd7zXZ\0"),
        }
    }

    /// The unpacked bytes of `stored`; all members or streams of it, one after the other.
    fn unpack(self, stored: impl Read + Send + 'static) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::Plain => Box::new(stored),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(stored)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::new(stored)?),
            Self::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(stored)),
            Self::Xz => {
                let stored = BufReader::with_capacity(XZ_READ_BYTES, stored);
                Box::new(lzma_rust2::XzReader::new_mem_limit(stored, true, XZ_MEMORY_KIB))
            }
        })
    }
}

/// The bytes by which a packing or a format is recognized.
const HEAD_BYTES: usize = 10;

const XZ_READ_BYTES: usize = 64 << 10;

/// Maximum memory for unpacking xz, in KiB: its header demands up to 4 GiB. `xz -9` needs 65 MiB; zstd may take 128 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// One input file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputFile {
    /// The absolute path with symbolic links resolved: `source` of every record of the file. The name is the
    /// same in every run, wherever the run was started and however the path was written. Standard input is `stdin`.
    pub(crate) source: String,
    /// Whether it is standard input.
    pub(crate) is_stdin: bool,
    pub(crate) format: Format,
    /// By the file's name; standard input has none, and is recognized by its first bytes.
    pub(crate) packing: Packing,
    /// Of delimited text: the configured dialect, completed by the file's name.
    pub(crate) dialect: Dialect,
    /// Columns whose values the path has.
    pub(crate) partitions: Vec<PartitionValue>,
    /// Size as stored; 0 for standard input.
    pub(crate) bytes: u64,
}

impl InputFile {
    /// Whether its bytes can be read in any order.
    pub(crate) fn is_seekable(&self) -> bool {
        self.packing == Packing::Plain && !self.is_stdin
    }
}

/// Counts the stored bytes read so far, for the progress of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct ByteCount(Arc<AtomicU64>);

impl ByteCount {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The bytes counted since the last call.
    pub(crate) fn take(&self) -> u64 {
        self.0.swap(0, Ordering::Relaxed)
    }
}

struct Counted<R> {
    stored: R,
    count: ByteCount,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.stored.read(buffer)?;
        self.count.add(n as u64);
        Ok(n)
    }
}

/// The decompressed bytes of `file`, after checking that its first bytes match its name's ending.
pub(crate) fn open(file: &InputFile, count: &ByteCount) -> Result<Box<dyn Read + Send>, SourceError> {
    let path = &file.source;
    let fail = |e: std::io::Error| SourceError::read(path, e);
    let mut head = [0u8; HEAD_BYTES];
    if file.is_stdin {
        let mut stdin = std::io::stdin();
        let n = read_up_to(&mut stdin, &mut head).map_err(fail)?;
        let packing = Packing::PACKED.into_iter().find(|packing| packing.fits(&head[..n]));
        let packing = packing.unwrap_or(Packing::Plain);
        check_head(file, packing, &head[..n])?;
        return packing.unpack(Cursor::new(head).take(n as u64).chain(stdin)).map_err(fail);
    }
    let mut stored = File::open(path).map_err(fail)?;
    let n = read_up_to(&mut stored, &mut head).map_err(fail)?;
    stored.seek(SeekFrom::Start(0)).map_err(fail)?;
    check_head(file, file.packing, &head[..n])?;
    file.packing.unpack(Counted { stored, count: count.clone() }).map_err(fail)
}

/// Refuses a file whose first bytes are not those of its packing, or of another packing or format.
fn check_head(file: &InputFile, packing: Packing, head: &[u8]) -> Result<(), SourceError> {
    let not = |problem: String| Err(SourceError::NotTheFormat { path: file.source.clone(), problem });
    if packing != Packing::Plain {
        return match packing.fits(head) {
            true => Ok(()),
            false => not(format!("is named .{} and is not {}", packing.ending(), packing.title())),
        };
    }
    let format = file.format.title();
    if let Some(packing) = Packing::PACKED.into_iter().find(|packing| packing.fits(head)) {
        return not(format!("is not {format} but {}; name it .{}", packing.title(), packing.ending()));
    }
    if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) {
        return not(format!("is not {format} but UTF-16; convert it to UTF-8"));
    }
    let found =
        Format::ALL.into_iter().find(|format| format.magic().is_some_and(|magic| head.starts_with(magic)));
    match found {
        Some(found) if found != file.format => not(format!("is not {format} but {}", found.title())),
        _ => Ok(()),
    }
}

/// How files are read.
#[derive(Debug, Clone)]
pub(crate) struct ReadOptions {
    /// The longest record that is not rejected.
    pub(crate) max_record_bytes: usize,
    /// Bytes that one thread parses at a time.
    pub(crate) block_bytes: usize,
    pub(crate) unpacking: Unpacking,
    /// Whether implausible times stop the run.
    pub(crate) check_times: bool,
}

/// How files are unpacked that cannot be read from their beginning to their end.
#[derive(Debug, Clone)]
pub(crate) struct Unpacking {
    /// The largest file that is unpacked.
    pub(crate) limit: MemorySize,
    pub(crate) directory: PathBuf,
}

impl Unpacking {
    /// Unpacks `file` to a temporary file that is already unlinked when this returns, so it disappears with the process.
    fn unpack(&self, file: &InputFile, count: &ByteCount) -> Result<File, SourceError> {
        let mut packed = open(file, count)?;
        let mut unpacked = tempfile::tempfile_in(&self.directory).map_err(SourceError::scratch)?;
        let mut buffer = vec![0; UNPACK_BYTES];
        let mut bytes = 0;
        loop {
            let read = packed.read(&mut buffer).map_err(|e| SourceError::read(&file.source, e))?;
            if read == 0 {
                return Ok(unpacked);
            }
            bytes += read as u64;
            if bytes > self.limit.bytes {
                return Err(SourceError::Unpacked { path: file.source.clone(), limit: self.limit });
            }
            unpacked.write_all(&buffer[..read]).map_err(SourceError::scratch)?;
        }
    }
}

const UNPACK_BYTES: usize = 256 << 10;

/// `file` as a seekable Parquet file.
pub(crate) fn open_parquet(
    file: &InputFile,
    unpacking: &Unpacking,
    count: &ByteCount,
) -> Result<File, SourceError> {
    let path = &file.source;
    let fail = |e: std::io::Error| SourceError::read(path, e);
    let mut seekable = if file.is_seekable() {
        open(file, &ByteCount::default())?;
        File::open(path).map_err(fail)?
    } else {
        unpacking.unpack(file, count)?
    };
    let not = || SourceError::NotTheFormat { path: path.clone(), problem: "is not Parquet".into() };
    let bytes = seekable.metadata().map_err(fail)?.len();
    if bytes < 12 {
        return Err(not());
    }
    for at in [SeekFrom::Start(0), SeekFrom::End(-4)] {
        let mut magic = [0u8; 4];
        seekable.seek(at).map_err(fail)?;
        seekable.read_exact(&mut magic).map_err(fail)?;
        if Format::Parquet.magic() != Some(&magic) {
            return Err(not());
        }
    }
    Ok(seekable)
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match reader.read(&mut buffer[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}
