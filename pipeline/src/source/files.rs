//! Resolves paths and patterns to files, and opens a file's decompressed bytes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use schemas::config::Format;
use schemas::memory::MemorySize;

use super::error::SourceError;

/// How the bytes of a file are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// One input file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputFile {
    /// The absolute path with symbolic links resolved: `source` of every record of the file. The name is the
    /// same in every run, wherever the run was started and however the path was written.
    pub(crate) source: String,
    pub(crate) format: Format,
    pub(crate) packing: Packing,
    /// Size as stored.
    pub(crate) bytes: u64,
}

/// The files that `paths` name: in the order given, a pattern's in the order of their names, each file once.
pub(crate) fn resolve(paths: &[String], format: Option<Format>) -> Result<Vec<InputFile>, SourceError> {
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    for path in paths {
        for found in expand(path)? {
            let fail = |e| SourceError::read(&found, e);
            let source = std::fs::canonicalize(&found).map_err(fail)?;
            let source = source.into_os_string().into_string().map_err(|_| SourceError::NotTheFormat {
                path: found.clone(),
                problem: "its path is not UTF-8, and so cannot be stored as the source of an event".into(),
            })?;
            let metadata = std::fs::metadata(&source).map_err(fail)?;
            if metadata.is_dir() {
                return Err(SourceError::NotTheFormat {
                    path: found,
                    problem: "is a directory; name the files in it, for example with /*.csv".into(),
                });
            }
            if seen.insert(source.clone()) {
                let (format, packing) = kind(&found, format)?;
                files.push(InputFile { source, format, packing, bytes: metadata.len() });
            }
        }
    }
    Ok(files)
}

fn expand(path: &str) -> Result<Vec<String>, SourceError> {
    // An existing file whose name contains brackets is a file, not a pattern.
    if Path::new(path).exists() {
        return Ok(vec![path.into()]);
    }
    if !path.contains(['*', '?', '[']) {
        return Err(SourceError::NoSuchFile { path: path.into() });
    }
    let not_a_pattern = |e: glob::PatternError| SourceError::NotTheFormat {
        path: path.into(),
        problem: format!("is not a pattern: {e}"),
    };
    let mut found = Vec::new();
    for entry in glob::glob(path).map_err(not_a_pattern)? {
        let entry = entry.map_err(|e| SourceError::read(path, e))?;
        if entry.is_file() {
            found.push(entry.to_string_lossy().into_owned());
        }
    }
    if found.is_empty() {
        return Err(SourceError::NoMatch { pattern: path.into() });
    }
    found.sort();
    Ok(found)
}

/// The endings of all formats, as a list for a message.
fn endings() -> String {
    let all: Vec<String> =
        Format::ALL.iter().flat_map(|format| format.endings()).map(|ending| format!(".{ending}")).collect();
    match all.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

fn kind(path: &str, configured: Option<Format>) -> Result<(Format, Packing), SourceError> {
    let name = path.to_ascii_lowercase();
    let (name, packing) = match name.rsplit_once('.') {
        Some((name, "gz")) => (name, Packing::Gzip),
        Some((name, "zst")) => (name, Packing::Zstd),
        _ => (name.as_str(), Packing::Plain),
    };
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let by_name = Format::ALL.into_iter().find(|format| format.endings().contains(&ending));
    match configured.or(by_name) {
        Some(format) => Ok((format, packing)),
        None => Err(SourceError::NotTheFormat {
            path: path.into(),
            problem: format!(
                "its name does not say its format ({}, each also with .gz or .zst); set `format` in the configuration",
                endings()
            ),
        }),
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

struct Counted {
    file: File,
    count: ByteCount,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.count.add(n as u64);
        Ok(n)
    }
}

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The decompressed bytes of `file`, after checking that its first bytes match its name's ending.
pub(crate) fn open(file: &InputFile, count: &ByteCount) -> Result<Box<dyn Read + Send>, SourceError> {
    let path = &file.source;
    let fail = |e: std::io::Error| SourceError::read(path, e);
    let not = |problem: &str| SourceError::NotTheFormat { path: path.clone(), problem: problem.into() };
    let mut stored = File::open(path).map_err(fail)?;
    let mut head = [0u8; 4];
    let n = read_up_to(&mut stored, &mut head).map_err(fail)?;
    stored.seek(SeekFrom::Start(0)).map_err(fail)?;
    let head = &head[..n];
    let stored = Counted { file: stored, count: count.clone() };
    match file.packing {
        Packing::Gzip if head.starts_with(GZIP_MAGIC) => {
            Ok(Box::new(flate2::read::MultiGzDecoder::new(stored)))
        }
        Packing::Gzip => Err(not("is named .gz and is not gzip")),
        Packing::Zstd if head.starts_with(ZSTD_MAGIC) => {
            Ok(Box::new(zstd::stream::read::Decoder::new(stored).map_err(fail)?))
        }
        Packing::Zstd => Err(not("is named .zst and is not zstd")),
        Packing::Plain => {
            let what = match head {
                _ if head.starts_with(GZIP_MAGIC) => "gzip; name it .gz",
                _ if head.starts_with(ZSTD_MAGIC) => "zstd; name it .zst",
                _ if head.starts_with(&[0xff, 0xfe]) || head.starts_with(&[0xfe, 0xff]) => {
                    "UTF-16; convert it to UTF-8"
                }
                _ => match Format::ALL.into_iter().find(|format| format.magic() == Some(head)) {
                    Some(format) if format != file.format => format.title(),
                    _ => return Ok(Box::new(stored)),
                },
            };
            Err(not(&format!("is not {} but {what}", file.format.title())))
        }
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

/// How packed Parquet files are unpacked.
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
    let mut seekable = if file.packing == Packing::Plain {
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
