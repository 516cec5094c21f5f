//! The output directory: clearing it, and writing files under temporary names.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use chrono::NaiveDate;
use clap::ValueEnum;
use parquet::errors::ParquetError;
use store::files;

use crate::day::LogRecord;
use crate::error::SimulateError;
use crate::lines::{LineWriter, Syntax};
use crate::parquet::ParquetWriter;
use crate::{Compression, LogFormat};

/// The configuration's name in the directory.
pub(crate) const CONFIG: &str = "simulated.toml";
/// The catalogue's name in the directory.
pub(crate) const ITEMS: &str = "items.jsonl";
/// The directory of the files of events in the directory.
pub(crate) const EVENTS: &str = "events";

/// The ending of the names of files of events, with the dot.
pub(crate) fn extension(format: LogFormat, compression: Compression) -> &'static str {
    match (format, compression) {
        (LogFormat::Parquet, _) => ".parquet",
        (LogFormat::Csv, Compression::None) => ".csv",
        (LogFormat::Csv, Compression::Gzip) => ".csv.gz",
        (LogFormat::Csv, Compression::Zstd) => ".csv.zst",
        (LogFormat::Jsonl, Compression::None) => ".jsonl",
        (LogFormat::Jsonl, Compression::Gzip) => ".jsonl.gz",
        (LogFormat::Jsonl, Compression::Zstd) => ".jsonl.zst",
    }
}

/// The endings of all files of events that this program may have written.
fn extensions() -> impl Iterator<Item = &'static str> {
    let packed =
        |&format: &LogFormat| Compression::value_variants().iter().map(move |&how| extension(format, how));
    LogFormat::value_variants().iter().flat_map(packed)
}

/// Prepares the directory, which must be empty; with `force`, deletes the files of an earlier simulation.
pub(crate) fn prepare(directory: &Path, force: bool) -> Result<(), SimulateError> {
    let events = directory.join(EVENTS);
    fs::create_dir_all(directory).map_err(|e| SimulateError::write(directory, e))?;
    let empty = names(directory)?.is_empty();
    if !empty && !force {
        return Err(SimulateError::NotEmpty { path: directory.into() });
    }
    if !empty {
        // Delete the configuration first: if it exists, the log is complete.
        for path in [directory.join(CONFIG), directory.join(ITEMS)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(SimulateError::write(&path, e));
                }
                _ => {}
            }
        }
        if events.is_dir() {
            for path in names(&events)?.into_iter().filter(|path| path.file_name().is_some_and(is_ours)) {
                fs::remove_file(&path).map_err(|e| SimulateError::write(&path, e))?;
            }
        }
    }
    fs::create_dir_all(&events).map_err(|e| SimulateError::write(&events, e))
}

fn names(directory: &Path) -> Result<Vec<PathBuf>, SimulateError> {
    let fail = |e| SimulateError::write(directory, e);
    fs::read_dir(directory).map_err(fail)?.map(|entry| Ok(entry.map_err(fail)?.path())).collect()
}

/// Whether a file has the name of a file of events of this program: `2026-01-31.csv`, `2026-01-31-2.parquet`.
fn is_ours(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    // A killed run leaves names with these endings.
    let name = files::NewFile::intended(name).or_else(|| name.strip_suffix(".part")).unwrap_or(name);
    extensions().filter_map(|extension| name.strip_suffix(extension)).any(|stem| {
        let Some((date, rest)) = stem.split_at_checked(10) else { return false };
        let number =
            rest.strip_prefix('-').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        (rest.is_empty() || number) && date.parse::<NaiveDate>().is_ok()
    })
}

/// A file that gets its name when it is complete. Dropped before that, it deletes itself.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: files::NewFile,
}

impl LogFile {
    pub(crate) fn create(path: PathBuf) -> Result<(Self, File), SimulateError> {
        let (file, out) = files::NewFile::create(&path).map_err(|e| SimulateError::write(&path, e))?;
        Ok((Self { path, file }, out))
    }

    /// An error about this file.
    pub(crate) fn fail(&self, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> SimulateError {
        SimulateError::write(&self.path, e)
    }

    /// Gives the file its name; returns its size in bytes.
    pub(crate) fn complete(self) -> Result<u64, SimulateError> {
        let bytes = fs::metadata(self.file.temporary()).map_err(|e| self.fail(e))?.len();
        let Self { path, file } = self;
        file.finish().map_err(|e| SimulateError::write(&path, e))?;
        Ok(bytes)
    }
}

/// A file of events being written.
pub(crate) struct EventFile {
    file: LogFile,
    writer: Writer,
}

enum Writer {
    Lines(Box<LineWriter>),
    Parquet(Box<ParquetWriter>),
}

impl EventFile {
    pub(crate) fn create(
        path: PathBuf,
        format: LogFormat,
        compression: Compression,
    ) -> Result<Self, SimulateError> {
        let (file, out) = LogFile::create(path)?;
        let lines = |out, syntax| -> Result<Writer, SimulateError> {
            let writer = LineWriter::create(out, syntax, compression).map_err(|e| file.fail(e))?;
            Ok(Writer::Lines(Box::new(writer)))
        };
        let writer = match format {
            LogFormat::Csv => lines(out, Syntax::Csv)?,
            LogFormat::Jsonl => lines(out, Syntax::Jsonl)?,
            LogFormat::Parquet => {
                let writer = ParquetWriter::create(out, compression).map_err(|e| file.fail(e))?;
                Writer::Parquet(Box::new(writer))
            }
        };
        Ok(Self { file, writer })
    }

    pub(crate) fn write(&mut self, record: &LogRecord) -> Result<(), SimulateError> {
        match &mut self.writer {
            Writer::Lines(lines) => lines.write(record).map_err(|e| self.file.fail(e)),
            Writer::Parquet(rows) => rows.write(record).map_err(|e: ParquetError| self.file.fail(e)),
        }
    }

    /// Completes the file; returns its size in bytes.
    pub(crate) fn finish(self) -> Result<u64, SimulateError> {
        match self.writer {
            Writer::Lines(lines) => lines.finish().map_err(|e| self.file.fail(e))?,
            Writer::Parquet(rows) => rows.finish().map_err(|e| self.file.fail(e))?,
        }
        self.file.complete()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_program_gives_are_its_own() {
        for name in
            ["2026-01-31.csv", "2026-01-31-2.parquet", "2026-01-31-02.jsonl.gz.0123456789abcdef.writing"]
        {
            assert!(is_ours(OsStr::new(name)), "{name}");
        }
        for name in
            ["2026-02-31.csv", "log.csv", "2026-01-31.txt", "2026-01-31-.csv", "2026-01-31-a.csv", "é.csv"]
        {
            assert!(!is_ours(OsStr::new(name)), "{name}");
        }
    }
}
