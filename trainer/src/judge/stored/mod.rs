//! Results that `trainer evaluate` stores with the model, for `trainer compare` and for any Parquet reader:
//!
//! ```text
//! evaluation-<split>.json   the report
//! ranks-<split>.parquet     one row per held-out target, with its ranks
//! horizon-<split>.parquet   one row per event after an anchor, ten each (`horizon`), if the split has anchors
//! ```
//!
//! and, if requested, the results under conditions ([`instructed`]).
//!
//! | column | content |
//! |---|---|
//! | `user_id`, `position`, `ts`, `item_id` | the target: user, position in the user's whole history (from 0), time, item |
//! | `horizon` | steps from the anchor; 1 is the event that the prediction is for |
//! | `standard_rank`, `as_served_rank` | rank among all active items, from 1 |
//! | `standard_unseen_rank`, `as_served_unseen_rank` | rank among the active items that the user has not seen |
//!
//! A rank of 0 is a miss for every K: the item was seen, or is inactive. A null rank excludes the target from the means of the
//! protocol, so `avg(rank between 1 and 10)` in SQL is HR@10. Memory: all rows of a file.

pub mod instructed;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::array::{PrimitiveArray, UInt8Array, UInt32Array};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Schema, TimeUnit, TimestampMillisecondType, UInt8Type, UInt32Type,
};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::{EvaluateReport, Protocol, Ranks};

/// Columns of ranks: per protocol, among all items and among unseen items.
const RANK_COLUMNS: [[&str; 2]; Protocol::ALL.len()] =
    [["standard_rank", "standard_unseen_rank"], ["as_served_rank", "as_served_unseen_rank"]];

/// One row of a file of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetRank {
    /// User of the target.
    pub user_id: String,
    /// Position of the target in the user's whole history, from 0.
    pub position: u32,
    /// Time of the target, epoch milliseconds.
    pub ts: i64,
    /// Item of the target.
    pub item_id: String,
    /// Steps from the anchor of the prediction; 1 is the event that the prediction is for.
    pub horizon: u8,
    /// Ranks by protocol, in the order of [`Protocol::ALL`]; `None` where the target takes no part.
    pub ranks: [Option<Ranks>; Protocol::ALL.len()],
}

/// An error in storing or reading results.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A file does not have the expected format.
    #[error("{path} is damaged ({problem}); `trainer evaluate` writes it again")]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Description of the damage.
        problem: String,
    },
}

/// Returns the path of the file of ranks in a model's directory.
pub fn ranks_path(model: &Path, split: &str) -> PathBuf {
    model.join(format!("ranks-{split}.parquet"))
}

/// Returns the path of the file of the horizon curve in a model's directory.
pub fn horizon_path(model: &Path, split: &str) -> PathBuf {
    model.join(format!("horizon-{split}.parquet"))
}

/// Writes the results of `split` to the model's directory, each file atomically and the report last. If `horizon` is empty, an
/// older horizon file is removed.
///
/// # Errors
///
/// A file cannot be written or removed.
pub fn store(
    model: &Path,
    split: &str,
    report: &EvaluateReport,
    ranks: &[TargetRank],
    horizon: &[TargetRank],
) -> Result<(), StoredError> {
    write_ranks(&ranks_path(model, split), ranks)?;
    let path = horizon_path(model, split);
    if !horizon.is_empty() {
        write_ranks(&path, horizon)?;
    } else if let Err(e) = fs::remove_file(&path)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(io_error(&path)(e));
    }
    let path = model.join(format!("evaluation-{split}.json"));
    let json = serde_json::to_vec_pretty(report).map_err(io::Error::from).map_err(io_error(&path))?;
    write_whole(&path, &json)
}

/// Writes rows of ranks to `path`. Equal rows give equal bytes.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_ranks(path: &Path, rows: &[TargetRank]) -> Result<(), StoredError> {
    write_batch(path, &batch(rows).map_err(|e| damaged(path, &e))?)
}

/// Writes a batch as a Parquet file, atomically.
fn write_batch(path: &Path, batch: &RecordBatch) -> Result<(), StoredError> {
    let properties =
        WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut bytes = Vec::new();
    let write = || {
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties))?;
        writer.write(batch)?;
        writer.close()
    };
    write().map_err(|e| damaged(path, &e))?;
    write_whole(path, &bytes)
}

/// Reads the batches of a Parquet file; `None` if it does not exist.
fn read_batches(path: &Path) -> Result<Option<Vec<RecordBatch>>, StoredError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io_error(path))?,
    };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.build())
        .map_err(|e| damaged(path, &e))?;
    reader.map(|batch| batch.map_err(|e| damaged(path, &e))).collect::<Result<_, _>>().map(Some)
}

fn batch(rows: &[TargetRank]) -> arrow::error::Result<RecordBatch> {
    let text = |value: fn(&TargetRank) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
    };
    let ts = TimestampMillisecondArray::from_iter_values(rows.iter().map(|r| r.ts)).with_timezone("UTC");
    let mut columns: Vec<(Field, ArrayRef)> = vec![
        (Field::new("user_id", DataType::Utf8, false), text(|r| &r.user_id)),
        (
            Field::new("position", DataType::UInt32, false),
            Arc::new(UInt32Array::from_iter_values(rows.iter().map(|r| r.position))),
        ),
        (Field::new("ts", utc(), false), Arc::new(ts)),
        (Field::new("item_id", DataType::Utf8, false), text(|r| &r.item_id)),
        (
            Field::new("horizon", DataType::UInt8, false),
            Arc::new(UInt8Array::from_iter_values(rows.iter().map(|r| r.horizon))),
        ),
    ];
    for (protocol, names) in RANK_COLUMNS.iter().enumerate() {
        for (name, rank) in names.iter().zip([|r: Ranks| r.all, |r: Ranks| r.unseen]) {
            let ranks = rows.iter().map(|row| row.ranks[protocol].map(|r| rank(r).unwrap_or(0)));
            columns
                .push((Field::new(*name, DataType::UInt32, true), Arc::new(UInt32Array::from_iter(ranks))));
        }
    }
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

/// Reads a file of ranks; `None` if it does not exist.
///
/// # Errors
///
/// The file cannot be read, or is damaged.
pub fn read_ranks(path: &Path) -> Result<Option<Vec<TargetRank>>, StoredError> {
    let Some(batches) = read_batches(path)? else { return Ok(None) };
    let mut rows = Vec::new();
    for batch in batches {
        let (users, items) = (texts(path, &batch, "user_id")?, texts(path, &batch, "item_id")?);
        let positions = numbers::<UInt32Type>(path, &batch, "position")?;
        let times = numbers::<TimestampMillisecondType>(path, &batch, "ts")?;
        let horizons = numbers::<UInt8Type>(path, &batch, "horizon")?;
        let mut ranks = Vec::new();
        for [all, unseen] in RANK_COLUMNS {
            ranks.push((
                numbers::<UInt32Type>(path, &batch, all)?,
                numbers::<UInt32Type>(path, &batch, unseen)?,
            ));
        }
        for row in 0..batch.num_rows() {
            rows.push(TargetRank {
                user_id: users.value(row).into(),
                position: positions.value(row),
                ts: times.value(row),
                item_id: items.value(row).into(),
                horizon: horizons.value(row),
                ranks: std::array::from_fn(|protocol| {
                    let (all, unseen) = ranks[protocol];
                    let rank = |rank: u32| (rank > 0).then_some(rank);
                    (all.is_valid(row) && unseen.is_valid(row))
                        .then(|| Ranks { all: rank(all.value(row)), unseen: rank(unseen.value(row)) })
                }),
            });
        }
    }
    Ok(Some(rows))
}

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

fn column<'a>(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef, StoredError> {
    batch.column_by_name(name).ok_or_else(|| damaged(path, &format!("it has no column `{name}`")))
}

fn texts<'a>(path: &Path, batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, StoredError> {
    let other = || damaged(path, &format!("column `{name}` is no text"));
    column(path, batch, name)?.as_string_opt::<i32>().ok_or_else(other)
}

fn numbers<'a, T: ArrowPrimitiveType>(
    path: &Path,
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a PrimitiveArray<T>, StoredError> {
    let other = || damaged(path, &format!("column `{name}` has another type"));
    column(path, batch, name)?.as_primitive_opt::<T>().ok_or_else(other)
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoredError> {
    store::files::replace(path, bytes).map_err(io_error(path))
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoredError + '_ {
    |source| StoredError::Io { path: path.to_owned(), source }
}

fn damaged(path: &Path, problem: &dyn std::fmt::Display) -> StoredError {
    StoredError::Damaged { path: path.to_owned(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_read_back_with_misses_and_absent_targets() {
        let path = std::env::temp_dir().join(format!("ranks-{}.parquet", std::process::id()));
        let row = |position, ranks| TargetRank {
            user_id: format!("u{position}"),
            position,
            ts: 1_600_000_000_000 + i64::from(position),
            item_id: "ü, \"x\"".into(),
            horizon: 1,
            ranks,
        };
        let rows = [
            row(3, [Some(Ranks { all: Some(7), unseen: Some(2) }), None]),
            row(4, [Some(Ranks { all: Some(1), unseen: None }), Some(Ranks { all: None, unseen: None })]),
            row(5, [None, None]),
        ];
        write_ranks(&path, &rows).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(read_ranks(&path).unwrap().unwrap(), rows);
        write_ranks(&path, &rows).unwrap();
        assert!(fs::read(&path).unwrap() == bytes, "equal rows, equal bytes");
        fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
        let message = read_ranks(&path).unwrap_err().to_string();
        assert!(message.contains("trainer evaluate") && message.contains("ranks-"), "{message}");
        fs::remove_file(&path).unwrap();
        assert_eq!(read_ranks(&path).unwrap(), None);
    }
}
