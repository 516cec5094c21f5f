//! Results of each target under its own conditions, stored with the model:
//!
//! ```text
//! instructed-<split>-<condition>.parquet   one row per target, protocol and choice of filters
//! ```
//!
//! | column | content |
//! |---|---|
//! | `user_id`, `position`, `ts`, `item_id` | the target, as in the file of ranks |
//! | `protocol` | `standard` or `as-served` |
//! | `filter_seen`, `condition_filter` | whether lists exclude seen items, and items that do not carry the condition |
//! | `hr_10`, …, `cc_50` | each of [`METRICS`], the mean over the target's values of the attribute |
//!
//! Memory: all rows of a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow::array::{TimestampMillisecondArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, TimestampMillisecondType, UInt32Type};

use super::{StoredError, column, damaged, numbers, read_batches, texts, utc, write_batch};
use crate::judge::{ALL, METRICS, PerMetric, Protocol};

/// One row of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct InstructedTarget {
    /// User of the target.
    pub user_id: String,
    /// Position of the target in the user's whole history, from 0.
    pub position: u32,
    /// Time of the target, epoch milliseconds.
    pub ts: i64,
    /// Item of the target.
    pub item_id: String,
    /// Protocol of the evaluation.
    pub protocol: Protocol,
    /// Whether seen items are excluded.
    pub filter_seen: bool,
    /// Whether items that do not carry the condition are excluded.
    pub condition_filter: bool,
    /// Value of each metric.
    pub numbers: PerMetric<f64, ALL>,
}

/// Returns the path of the file in a model's directory.
pub fn instructed_path(model: &Path, split: &str, condition: &str) -> PathBuf {
    model.join(format!("instructed-{split}-{condition}.parquet"))
}

/// Writes the rows of one condition atomically. Equal rows give equal bytes.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_instructed(path: &Path, rows: &[InstructedTarget]) -> Result<(), StoredError> {
    let text = |value: fn(&InstructedTarget) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
    };
    let flag = |value: fn(&InstructedTarget) -> bool| -> ArrayRef {
        Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(value(row)))))
    };
    let positions = UInt32Array::from_iter_values(rows.iter().map(|r| r.position));
    let ts = TimestampMillisecondArray::from_iter_values(rows.iter().map(|r| r.ts)).with_timezone("UTC");
    let columns: [(&str, DataType, ArrayRef); 7] = [
        ("user_id", DataType::Utf8, text(|r| &r.user_id)),
        ("position", DataType::UInt32, Arc::new(positions)),
        ("ts", utc(), Arc::new(ts)),
        ("item_id", DataType::Utf8, text(|r| &r.item_id)),
        ("protocol", DataType::Utf8, text(|r| r.protocol.name())),
        ("filter_seen", DataType::Boolean, flag(|r| r.filter_seen)),
        ("condition_filter", DataType::Boolean, flag(|r| r.condition_filter)),
    ];
    let numbers = PerMetric::<ArrayRef, ALL>::from_fn(|key| {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.numbers[key])))
    });
    let numbers = numbers.iter().map(|(metric, array)| (metric.column(), DataType::Float64, array.clone()));
    let columns = columns.into_iter().map(|(name, of, array)| (name.to_owned(), of, array)).chain(numbers);
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) =
        columns.map(|(name, of, array)| (Field::new(name, of, false), array)).unzip();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| damaged(path, &e))?;
    write_batch(path, &batch)
}

/// Reads the rows of one condition; `None` if the file does not exist.
///
/// # Errors
///
/// The file cannot be read, or is damaged.
pub fn read_instructed(path: &Path) -> Result<Option<Vec<InstructedTarget>>, StoredError> {
    let Some(batches) = read_batches(path)? else { return Ok(None) };
    let mut rows = Vec::new();
    for batch in batches {
        let (users, items) = (texts(path, &batch, "user_id")?, texts(path, &batch, "item_id")?);
        let positions = numbers::<UInt32Type>(path, &batch, "position")?;
        let times = numbers::<TimestampMillisecondType>(path, &batch, "ts")?;
        let protocols = texts(path, &batch, "protocol")?;
        let flags = |name: &str| -> Result<&BooleanArray, StoredError> {
            let other = || damaged(path, &format!("column `{name}` has another type"));
            column(path, &batch, name)?.as_boolean_opt().ok_or_else(other)
        };
        let (seen, condition) = (flags("filter_seen")?, flags("condition_filter")?);
        let values = METRICS
            .iter()
            .map(|metric| numbers::<Float64Type>(path, &batch, &metric.column()))
            .collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let name = protocols.value(row);
            let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
            rows.push(InstructedTarget {
                user_id: users.value(row).into(),
                position: positions.value(row),
                ts: times.value(row),
                item_id: items.value(row).into(),
                protocol: protocol.ok_or_else(|| damaged(path, &format!("there is no protocol `{name}`")))?,
                filter_seen: seen.value(row),
                condition_filter: condition.value(row),
                numbers: PerMetric::from_fn(|key| values[key.index()].value(row)),
            });
        }
    }
    Ok(Some(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back() {
        let path = std::env::temp_dir().join(format!("instructed-{}.parquet", std::process::id()));
        let row = |position, filter_seen, protocol| InstructedTarget {
            user_id: "u".into(),
            position,
            ts: 5,
            item_id: "i".into(),
            protocol,
            filter_seen,
            condition_filter: !filter_seen,
            numbers: PerMetric::from_fn(|key| key.index() as f64 / 3.0),
        };
        let rows = [row(1, true, Protocol::Standard), row(2, false, Protocol::AsServed)];
        write_instructed(&path, &rows).unwrap();
        assert_eq!(read_instructed(&path).unwrap().unwrap(), rows);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_instructed(&path).unwrap(), None);
    }
}
