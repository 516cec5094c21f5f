//! Draws random users of `sequences`, or of tables of examples, at the cost of those users: a refresh replays and validates on
//! them without reading the whole log.
//!
//! ```text
//! shard   ├──── run ────┼──── run ────┼──── run ────┤     RUN rows each; runs are drawn without replacement
//! users   a a b c c c c c d e e e f f f f f g h h h h
//!                        └─ of the second run: d, e, f, with all their rows ─┘
//! ```
//!
//! A user belongs to the run with the user's first row, so every user, and thus every row, is drawn with the same chance.
//! The runs of several tables are shuffled together, so each table contributes its share.
//! Only the pages of a file that contain a run's rows are decoded.

use std::ops::Range;

use arrow::array::{AsArray, RecordBatch, StringArray};
use rand::Rng;
use rand::seq::SliceRandom;
use store::{Shard, Snapshot};

use super::DataError;
use super::catalogue::column;

/// Rows of a run.
const RUN: u64 = 512;
/// Tables with at most this many rows in total are read as a whole.
const WHOLE: u64 = 8 * RUN;
/// Rows after a run that are read with it, since its last user may continue there.
const BEHIND: u64 = 32;
/// Minimum number of runs: the users of a single run have similar ids.
const RUNS_MIN: usize = 8;

/// Receiver of the rows of tables.
pub(super) trait Rows {
    /// Columns to read; the first is `user_id`.
    const COLUMNS: &'static [&'static str];

    /// Adds the rows of a batch of [`COLUMNS`](Self::COLUMNS) from a shard of `table` for which `keep` is true. A user's rows are
    /// consecutive.
    ///
    /// # Errors
    ///
    /// A row breaks the contract, or a column has another type.
    fn add(
        &mut self,
        table: &Snapshot,
        shard: &str,
        batch: &RecordBatch,
        keep: impl Fn(usize) -> bool,
    ) -> Result<(), DataError>;
}

/// Reads all rows of a table.
pub(super) async fn read_all<R: Rows>(table: &Snapshot, rows: &mut R) -> Result<(), DataError> {
    for shard in table.shards() {
        for batch in table.read_shard(shard, R::COLUMNS).await? {
            rows.add(table, &shard.path, &batch, |_| true)?;
        }
    }
    Ok(())
}

/// Reads randomly drawn users of the tables until `enough`, given the rows read and the number of runs, returns true, or all are
/// read. The result depends only on the generator and the tables.
pub(super) async fn sample<R: Rows>(
    tables: &[Snapshot],
    rows: &mut R,
    generator: &mut impl Rng,
    mut enough: impl FnMut(&R, usize) -> bool,
) -> Result<(), DataError> {
    let shards = tables.iter().flat_map(|table| table.shards().iter().map(move |shard| (table, shard)));
    let known: Option<Vec<_>> = shards.map(|(table, shard)| Some((table, shard, shard.rows?))).collect();
    let is_large = |shards: &Vec<(_, _, u64)>| shards.iter().map(|(.., rows)| rows).sum::<u64>() > WHOLE;
    let Some(shards) = known.filter(is_large) else {
        for table in tables {
            read_all(table, rows).await?;
        }
        return Ok(());
    };
    let of_shard = |&(table, shard, rows): &(_, _, u64)| {
        (0..rows).step_by(RUN as usize).map(move |from| (table, shard, from..rows))
    };
    let mut runs: Vec<(&Snapshot, &Shard, Range<u64>)> = shards.iter().flat_map(of_shard).collect();
    runs.shuffle(generator);
    for (read, (table, shard, places)) in (1..).zip(runs) {
        add_run(table, shard, places, rows).await?;
        if read >= RUNS_MIN && enough(rows, read) {
            break;
        }
    }
    Ok(())
}

/// Adds the users whose first row is among the first [`RUN`] of `places`, which extends to the end of the shard.
async fn add_run<R: Rows>(
    snapshot: &Snapshot,
    shard: &Shard,
    Range { start: from, end: rows }: Range<u64>,
    into: &mut R,
) -> Result<(), DataError> {
    let end = (from + RUN).min(rows);
    let mut at = from.saturating_sub(1);
    // The user of the row before the run, and the user of its last row.
    let (mut before, mut last): (Option<String>, Option<String>) = (None, None);
    let mut until = (end + BEHIND).min(rows);
    while at < until {
        let batches = snapshot.read_rows(shard, R::COLUMNS, at..until).await?;
        for batch in &batches {
            let users = users(snapshot, batch)?;
            if before.is_none() && from > 0 {
                before = Some(users.value(0).to_owned());
            }
            let is_before = |row: usize| before.as_deref() == Some(users.value(row));
            let mut first_after = 0;
            while first_after < batch.num_rows() {
                let user = users.value(first_after);
                if at + (first_after as u64) < end {
                    if last.as_deref() != Some(user) {
                        last = Some(user.to_owned());
                    }
                } else if last.as_deref() != Some(user) || is_before(first_after) {
                    break;
                }
                first_after += 1;
            }
            let keep = |row: usize| row < first_after && !is_before(row);
            into.add(snapshot, &shard.path, batch, keep)?;
            if first_after < batch.num_rows() {
                return Ok(());
            }
            at += batch.num_rows() as u64;
        }
        // The last user may continue after the run.
        until = (at + RUN).min(rows);
    }
    Ok(())
}

fn users<'a>(snapshot: &Snapshot, batch: &'a RecordBatch) -> Result<&'a StringArray, DataError> {
    column(snapshot, batch.column(0).as_string_opt::<i32>(), "user_id")
}
