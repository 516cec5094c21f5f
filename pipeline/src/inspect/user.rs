//! Reads one user's history.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{TimestampMillisecondType, UInt8Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;
use schemas::tables::{ITEMS, REFRESH, SEQUENCES, properties};
use store::boxed::Boxed;
use store::{Root, Snapshot};

use super::error::{InspectError, known_table};
use super::instructions;
use super::timeline::{Entry, Mark, TargetRow, Timeline};

const COLUMNS: [&str; 8] =
    ["user_id", "item_index", "ts", "session", "request", "visible_len", "role", "target_from"];

/// Events of `user` in `table` (by default `sequences`) as seen by the event at position `target` (by default the
/// newest): the `last` newest events, or as many around the target.
///
/// # Errors
///
/// [`InspectError`] if the table has no histories, the user has none in it, or the target does not exist.
pub fn draw_user<'a>(
    root: &'a Root,
    table: Option<&'a str>,
    user: &'a str,
    last: usize,
    target: Option<u64>,
) -> Boxed<'a, Result<Timeline, InspectError>> {
    Box::pin(draw(root, table, user, last, target))
}

async fn draw(
    root: &Root,
    table: Option<&str>,
    user: &str,
    last: usize,
    target: Option<u64>,
) -> Result<Timeline, InspectError> {
    let table = table.unwrap_or(SEQUENCES);
    if ![SEQUENCES, REFRESH].contains(&known_table(root, table)?.as_str()) {
        return Err(InspectError::NoHistories { table: table.into() });
    }
    let snapshot = root.require(table, "pipeline build-sequences").await?;
    let mut timeline = Timeline {
        user: user.into(),
        table: table.into(),
        version: snapshot.version(),
        events: 0,
        rows: 0,
        sessions: 0,
        delta_tau_ms: snapshot.properties().get(properties::DELTA_TAU_MS).and_then(|ms| ms.parse().ok()),
        target: target.unwrap_or(u64::MAX),
        entries: Vec::new(),
        instructions: instructions::of_user(root, user).await?,
    };
    let mut target_row = None;
    for shard in snapshot.shards() {
        let users = snapshot.read_shard(shard, &["user_id"]).await?;
        let is_user = |batch: &RecordBatch, row| batch.column(0).as_string::<i32>().value(row) == user;
        if !users.iter().any(|batch| (0..batch.num_rows()).any(|row| is_user(batch, row))) {
            continue;
        }
        for batch in snapshot.read_shard(shard, &COLUMNS).await? {
            for row in (0..batch.num_rows()).filter(|&row| is_user(&batch, row)) {
                // The last row that begins at or before the target owns it.
                if timeline.events <= timeline.target {
                    target_row = Some(shown_before(&batch, row, timeline.rows));
                }
                timeline.add(&batch, row);
            }
        }
        // All rows of a user lie in one shard.
        break;
    }
    let Some(target_row) = target_row else {
        return Err(InspectError::UnknownUser {
            user: user.into(),
            table: table.into(),
            version: snapshot.version(),
        });
    };
    timeline.target = target.unwrap_or(timeline.events.saturating_sub(1));
    if timeline.target >= timeline.events {
        let (target, events) = (timeline.target, timeline.events);
        return Err(InspectError::UnknownTarget { user: user.into(), target, events });
    }
    let sessions: HashSet<u32> = timeline.entries.iter().map(|entry| entry.session).collect();
    timeline.sessions = sessions.len() as u64;
    timeline.mark(&target_row);
    timeline.keep(last);
    if let Some(items) = root.snapshot(ITEMS).await? {
        timeline.name_items(&items).await?;
    }
    Ok(timeline)
}

/// The context of a row.
fn shown_before(batch: &RecordBatch, row: usize, number: u64) -> TargetRow {
    let list = |column: usize| batch.column(column).as_list::<i32>().value(row);
    let (items, ts, sessions, requests) = (list(1), list(2), list(3), list(4));
    let number_at = |list: &dyn Array, k| list.as_primitive::<UInt32Type>().value(k);
    let time = |k| DateTime::from_timestamp_millis(ts.as_primitive::<TimestampMillisecondType>().value(k));
    let from = batch.column(7).as_primitive::<UInt32Type>().value(row) as usize;
    let context = (0..from).map(|k| {
        let (session, request) = (number_at(&sessions, k), number_at(&requests, k));
        (number_at(&items, k), time(k).unwrap_or_default(), session, request)
    });
    TargetRow { context: context.collect(), row: number }
}

impl Timeline {
    fn add(&mut self, batch: &RecordBatch, row: usize) {
        let list = |column: usize| batch.column(column).as_list::<i32>().value(row);
        let (items, ts, sessions, requests) = (list(1), list(2), list(3), list(4));
        let (visible, roles) = (list(5), list(6));
        let from = batch.column(7).as_primitive::<UInt32Type>().value(row);
        for k in from as usize..items.len() {
            self.entries.push(Entry {
                position: self.events,
                ts: DateTime::from_timestamp_millis(ts.as_primitive::<TimestampMillisecondType>().value(k))
                    .unwrap_or_default(),
                item_index: items.as_primitive::<UInt32Type>().value(k),
                item_id: None,
                title: None,
                session: sessions.as_primitive::<UInt32Type>().value(k),
                request: requests.as_primitive::<UInt32Type>().value(k),
                row: self.rows,
                row_position: k as u32,
                visible_len: visible.as_primitive::<UInt32Type>().value(k),
                role: roles.as_primitive::<UInt8Type>().value(k),
                mark: Mark::Later,
            });
            self.events += 1;
        }
        self.rows += 1;
    }

    async fn name_items(&mut self, items: &Snapshot) -> Result<(), InspectError> {
        let mut wanted: HashMap<u32, Vec<usize>> = HashMap::new();
        for (e, entry) in self.entries.iter().enumerate() {
            wanted.entry(entry.item_index).or_default().push(e);
        }
        for shard in items.shards() {
            for batch in items.read_shard(shard, &["item_index", "item_id", "title"]).await? {
                let indexes = batch.column(0).as_primitive::<UInt32Type>();
                let (ids, titles) = (batch.column(1).as_string::<i32>(), batch.column(2).as_string::<i32>());
                for row in 0..batch.num_rows() {
                    for &e in wanted.get(&indexes.value(row)).into_iter().flatten() {
                        self.entries[e].item_id = Some(ids.value(row).to_owned());
                        self.entries[e].title = titles.is_valid(row).then(|| titles.value(row).to_owned());
                    }
                }
            }
        }
        Ok(())
    }
}
