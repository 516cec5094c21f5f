//! Output of rows: JSON Lines on standard output, or a JSON Lines or Parquet file that appears only when complete. Memory: one
//! batch of rows.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use arrow::array::{Float32Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use store::files::NewFile;
use terminal::shown;

use super::requests::Refusal;
use crate::serve::Origin;

/// One row of the result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row<'a> {
    /// User id.
    pub user_id: &'a str,
    /// Condition of the list; in a merged list, the condition of the list that the item comes from.
    pub condition: Option<&'a str>,
    /// Rank in the list, from 1.
    pub rank: u32,
    /// Item id.
    pub item_id: &'a str,
    /// `φ(h, e)`; for popular items, the number of training events.
    pub score: f32,
    /// Origin of the list, `model` or `popular`.
    pub origin: Origin,
}

/// One record of the output.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Answer<'a> {
    /// A row of a list.
    Row(Row<'a>),
    /// The answer to a line of standard input that cannot be served.
    Refusal(&'a Refusal),
}

/// Columns of a Parquet file of rows.
pub static ROWS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Utf8, false),
        Field::new("condition", DataType::Utf8, true),
        Field::new("rank", DataType::UInt32, false),
        Field::new("item_id", DataType::Utf8, false),
        Field::new("score", DataType::Float32, false),
        Field::new("origin", DataType::Utf8, false),
    ]))
});

/// An error while writing rows.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be written")]
pub struct OutputError {
    path: PathBuf,
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Destination of the rows.
#[derive(Debug)]
pub struct RowsOutput {
    /// Path of the file, or a name for standard output in messages.
    path: PathBuf,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    Stdout(BufWriter<io::Stdout>),
    JsonLines(NewFile, BufWriter<File>),
    Parquet(NewFile, Box<ArrowWriter<File>>),
    /// The reader of standard output has closed it.
    Closed,
}

/// True if the extension of `path` names a supported format (`parquet` or `jsonl`).
pub fn is_writable(path: &Path) -> bool {
    matches!(extension(path), "parquet" | "jsonl")
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

impl RowsOutput {
    /// Returns an output that writes JSON Lines to standard output.
    pub fn stdout() -> Self {
        Self { path: "standard output".into(), sink: Sink::Stdout(BufWriter::new(io::stdout())) }
    }

    /// Creates a file under a temporary name until [`finish`](Self::finish): Parquet if `path` ends in `.parquet`, else JSON
    /// Lines.
    ///
    /// # Errors
    ///
    /// The file cannot be created.
    pub fn file(path: &Path) -> Result<Self, OutputError> {
        let open = || -> Result<Sink, Box<dyn std::error::Error + Send + Sync>> {
            let (new, file) = NewFile::create(path)?;
            if extension(path) != "parquet" {
                return Ok(Sink::JsonLines(new, BufWriter::new(file)));
            }
            let properties =
                WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
            let writer = ArrowWriter::try_new(file, ROWS_SCHEMA.clone(), Some(properties))?;
            Ok(Sink::Parquet(new, Box::new(writer)))
        };
        let sink = open().map_err(|source| OutputError { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), sink })
    }

    /// True if standard output was closed by its reader.
    pub fn closed(&self) -> bool {
        matches!(self.sink, Sink::Closed)
    }

    /// Writes `answers`. Standard output is flushed before this returns. A Parquet file has no row for refusals; they become
    /// warnings.
    ///
    /// # Errors
    ///
    /// Writing fails; a closed standard output is not an error (see [`closed`](Self::closed)).
    pub fn write(&mut self, answers: &[Answer<'_>]) -> Result<(), OutputError> {
        let written: Result<(), Box<dyn std::error::Error + Send + Sync>> = match &mut self.sink {
            Sink::Closed => Ok(()),
            Sink::Parquet(_, writer) => {
                let mut rows = Vec::with_capacity(answers.len());
                for answer in answers {
                    match answer {
                        Answer::Row(row) => rows.push(*row),
                        Answer::Refusal(Refusal { line, error, .. }) => {
                            eprintln!("warning: line {line} is not answered: {error}");
                        }
                    }
                }
                batch(&rows).map_err(Into::into).and_then(|b| Ok(writer.write(&b)?))
            }
            Sink::JsonLines(_, file) => json_lines(file, answers).map_err(Into::into),
            Sink::Stdout(stdout) => match shown_lines(stdout, answers).and_then(|()| stdout.flush()) {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                    self.sink = Sink::Closed;
                    Ok(())
                }
                written => written.map_err(Into::into),
            },
        };
        written.map_err(|source| OutputError { path: self.path.clone(), source })
    }

    /// Syncs the file to disk and renames it to its final path; does nothing for standard output.
    ///
    /// # Errors
    ///
    /// Writing, syncing or renaming fails.
    pub fn finish(mut self) -> Result<(), OutputError> {
        let path = self.path.clone();
        let mut finish = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let (new, file) = match std::mem::replace(&mut self.sink, Sink::Closed) {
                Sink::Stdout(_) | Sink::Closed => return Ok(()),
                Sink::JsonLines(new, file) => {
                    (new, file.into_inner().map_err(io::IntoInnerError::into_error)?)
                }
                Sink::Parquet(new, writer) => (new, writer.into_inner()?),
            };
            file.sync_all()?;
            Ok(new.finish()?)
        };
        let finished = finish();
        finished.map_err(|source| OutputError { path: path.clone(), source })
    }
}

fn json_lines(out: &mut impl Write, answers: &[Answer<'_>]) -> io::Result<()> {
    for answer in answers {
        serde_json::to_writer(&mut *out, answer)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Writes JSON Lines as [`json_lines`] does, with control characters escaped for a terminal.
fn shown_lines(out: &mut impl Write, answers: &[Answer<'_>]) -> io::Result<()> {
    for answer in answers {
        shown::to_json(out, answer)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn batch(rows: &[Row<'_>]) -> arrow::error::Result<RecordBatch> {
    let text = |value: fn(&Row<'_>) -> &'static str| StringArray::from_iter_values(rows.iter().map(value));
    RecordBatch::try_new(
        ROWS_SCHEMA.clone(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.user_id))),
            Arc::new(StringArray::from_iter(rows.iter().map(|row| row.condition))),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.rank))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.item_id))),
            Arc::new(Float32Array::from_iter_values(rows.iter().map(|row| row.score))),
            Arc::new(text(|row| row.origin.name())),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row<'_> = Row {
        user_id: "u\"1",
        condition: Some("genre=Rock"),
        rank: 1,
        item_id: "i",
        score: 0.5,
        origin: Origin::Model,
    };

    #[test]
    fn files_appear_when_they_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let files = || std::fs::read_dir(directory.path()).unwrap().count();
        for name in ["rows.parquet", "rows.jsonl"] {
            let path = directory.path().join(name);
            let mut output = RowsOutput::file(&path).unwrap();
            output.write(&[Answer::Row(ROW)]).unwrap();
            drop(output);
            assert_eq!(files(), 0, "an unfinished one leaves nothing");
            let mut output = RowsOutput::file(&path).unwrap();
            let rows = [ROW, Row { rank: 2, condition: None, ..ROW }].map(Answer::Row);
            output.write(&rows).unwrap();
            output.finish().unwrap();
            assert!(path.exists() && files() == 1);
            std::fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_line_is_one_row() {
        let mut out = Vec::new();
        let refusal = Refusal { line: 7, user_id: None, error: "no\nrequest".into() };
        let rows = [ROW, Row { condition: None, origin: Origin::Popular, ..ROW }].map(Answer::Row);
        json_lines(&mut out, &[&rows[..], &[Answer::Refusal(&refusal)]].concat()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = r#"{"user_id":"u\"1","condition":"genre=Rock","rank":1,"item_id":"i","score":0.5,"origin":"model"}"#;
        assert_eq!(text.lines().next(), Some(expected));
        assert!(text.lines().nth(1).unwrap().contains(r#""condition":null"#));
        assert!(text.lines().nth(1).unwrap().ends_with("\"popular\"}"));
        assert_eq!(text.lines().nth(2), Some(r#"{"line":7,"user_id":null,"error":"no\nrequest"}"#));
        assert!(text.lines().count() == 3 && text.ends_with('\n'));
    }
}
