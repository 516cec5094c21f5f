//! Some users of `sequences`, drawn by lot, at the cost of those users: what a refresh repeats and is validated on does not need
//! the whole log.
//!
//! ```text
//! shard   ├──── run ────┼──── run ────┼──── run ────┤     RUN rows each; runs are drawn without replacement
//! users   a a b c c c c c d e e e f f f f f g h h h h
//!                        └─ of the second run: d, e, f, with all their rows ─┘
//! ```
//!
//! A user belongs to the run that the user's first row is in, so every user, and with it every row, is drawn with the same chance.
//! Of a file, only the pages with the rows of a run are decoded.

use arrow::array::{AsArray, RecordBatch, StringArray};
use rand::Rng;
use rand::seq::SliceRandom;
use schemas::delta::{Shard, Snapshot};

use super::catalogue::column;
use super::sequences::{COLUMNS, Reading};
use super::{DataError, Sequences};

/// Rows of a run.
const RUN: u64 = 512;
/// A table with fewer rows is read as a whole.
const WHOLE: u64 = 8 * RUN;
/// Rows behind a run that are read with it, because its last user may go on there.
const BEHIND: u64 = 32;
/// Runs that are read at least: one alone holds users whose ids are alike.
const RUNS_MIN: usize = 8;

/// Reads users of `snapshot`, a version of `sequences`, until `enough` says so of the rows read so far and the number of runs, or all
/// are read. What is read depends on the generator and the table alone.
pub(super) async fn sample(
    snapshot: &Snapshot,
    items: usize,
    generator: &mut impl Rng,
    mut enough: impl FnMut(&Sequences, usize) -> bool,
) -> Result<Sequences, DataError> {
    let mut reading = Reading::new(snapshot, items);
    let known: Option<Vec<(&Shard, u64)>> = snapshot.shards().iter().map(|s| Some((s, s.rows?))).collect();
    let Some(shards) = known.filter(|shards| shards.iter().map(|(_, rows)| rows).sum::<u64>() > WHOLE) else {
        for shard in snapshot.shards() {
            for batch in snapshot.read_shard(shard, &COLUMNS).await? {
                reading.add(&shard.path, &batch, |_| true)?;
            }
        }
        return Ok(reading.all);
    };
    let of_shard =
        |&(shard, rows): &(_, u64)| (0..rows).step_by(RUN as usize).map(move |from| (shard, rows, from));
    let mut runs: Vec<(&Shard, u64, u64)> = shards.iter().flat_map(of_shard).collect();
    runs.shuffle(generator);
    for (read, (shard, rows, from)) in (1..).zip(runs) {
        add_run(snapshot, shard, (from, rows), &mut reading).await?;
        if read >= RUNS_MIN && enough(&reading.all, read) {
            break;
        }
    }
    Ok(reading.all)
}

/// Adds the users whose first row is one of the [`RUN`] from `from` on, of a shard with `rows` rows.
async fn add_run(
    snapshot: &Snapshot,
    shard: &Shard,
    (from, rows): (u64, u64),
    reading: &mut Reading<'_>,
) -> Result<(), DataError> {
    let end = (from + RUN).min(rows);
    let mut at = from.saturating_sub(1);
    // Whose rows come before the run, and whose are the last ones of it.
    let (mut before, mut last): (Option<String>, Option<String>) = (None, None);
    let mut until = (end + BEHIND).min(rows);
    while at < until {
        let batches = snapshot.read_rows(shard, &COLUMNS, at..until).await?;
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
            reading.add(&shard.path, batch, keep)?;
            if first_after < batch.num_rows() {
                return Ok(());
            }
            at += batch.num_rows() as u64;
        }
        // The last user may go on behind the run.
        until = (at + RUN).min(rows);
    }
    Ok(())
}

fn users<'a>(snapshot: &Snapshot, batch: &'a RecordBatch) -> Result<&'a StringArray, DataError> {
    column(snapshot, batch.column(0).as_string_opt::<i32>(), COLUMNS[0])
}
