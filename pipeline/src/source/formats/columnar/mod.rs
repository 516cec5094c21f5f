//! Columns of Parquet and Arrow: what their values mean, where the wanted ones are, and rows as JSON.
//!
//! A column is a tree of physical values ([`Cells`]) whose leaves have meanings ([`Shape`]). Formats bring their own types into
//! this form.

mod cells;
mod json;
mod meaning;

use arrow::array::RecordBatch;

use super::super::error::SourceError;
use super::super::files::InputFile;
use super::super::record::locate;
use crate::records::Wanted;
pub(super) use cells::Cells;
pub(super) use json::JsonWriter;
pub(super) use meaning::{Meaning, Shape, Ticks};

/// A column, and the way to a field inside it.
pub(super) type SlotPath = (usize, Vec<usize>);

/// Maximum bytes of text in a block, unless one row has more.
const BLOCK_BYTES: usize = 32 << 20;

/// Where the wanted columns are: under their own names, or as fields of structs, whose paths have points between the names.
pub(super) fn locate_inside(
    file: &InputFile,
    wanted: &[Wanted],
    names: &[String],
    shapes: &[Shape],
) -> Result<Vec<Option<SlotPath>>, SourceError> {
    let path = |column: &str| {
        let (root, path) = column.split_once('.')?;
        let at = names.iter().position(|name| name == root)?;
        Some((at, shapes[at].path(path)?))
    };
    let mut inside: Vec<_> = wanted.iter().map(|wanted| path(&wanted.column)).collect();
    let roots: Vec<Wanted> = wanted
        .iter()
        .zip(&inside)
        .map(|(wanted, inside)| match inside {
            Some((at, _)) if !names.contains(&wanted.column) => {
                Wanted { column: names[*at].clone(), ..wanted.clone() }
            }
            _ => wanted.clone(),
        })
        .collect();
    let located = locate(file, &roots, names)?;
    let found = located.into_iter().zip(&mut inside).zip(wanted).map(|((at, inside), wanted)| {
        let at = at?;
        let path = inside.take().filter(|_| !names.contains(&wanted.column));
        Some((at, path.map(|(_, path)| path).unwrap_or_default()))
    });
    Ok(found.collect())
}

/// Refuses times that are floats of 32 bits or fewer, if times are checked.
pub(super) fn refuse_short_times(
    file: &InputFile,
    wanted: &Wanted,
    is_short: bool,
    check_times: bool,
) -> Result<(), SourceError> {
    let is_time = ["events.columns.ts", "events.columns.request_ts"].contains(&&*wanted.key);
    if !(check_times && is_short && is_time) {
        return Ok(());
    }
    let problem = format!(
        "column `{}` holds times as floats of 32 bits or fewer, which are 128 s apart today; were they whole numbers once?",
        wanted.column
    );
    Err(SourceError::Times { path: file.source.clone(), problem })
}

/// Cuts a batch into parts of at most [`BLOCK_BYTES`] of text: a page may hold one long text many times.
pub(super) fn cut(
    batch: &RecordBatch,
    path: &str,
    shapes: &[Shape],
) -> Result<Vec<RecordBatch>, SourceError> {
    let columns = cells(batch, path, shapes)?;
    if columns.iter().map(Cells::text_bytes_max).sum::<usize>() <= BLOCK_BYTES {
        return Ok(vec![batch.clone()]);
    }
    let bytes = |row| columns.iter().map(|column| column.text_bytes(row)).sum::<usize>();
    let (mut parts, mut start, mut sum) = (Vec::new(), 0, 0);
    for row in 0..batch.num_rows() {
        let row_bytes = bytes(row);
        if sum + row_bytes > BLOCK_BYTES && row > start {
            parts.push(batch.slice(start, row - start));
            (start, sum) = (row, 0);
        }
        sum += row_bytes;
    }
    parts.push(batch.slice(start, batch.num_rows() - start));
    Ok(parts)
}

/// The columns of a batch, read by their shapes.
pub(super) fn cells(batch: &RecordBatch, path: &str, shapes: &[Shape]) -> Result<Vec<Cells>, SourceError> {
    let cells = batch.columns().iter().zip(shapes).map(|(column, shape)| Cells::new(column, shape));
    cells
        .collect::<Option<_>>()
        .ok_or_else(|| SourceError::read(path, "a column was not read in the type that its schema has"))
}
