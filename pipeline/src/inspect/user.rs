//! One user's history, drawn event by event.

use std::collections::{HashMap, HashSet};
use std::fmt;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{TimestampMillisecondType, UInt8Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use schemas::delta::{Root, Snapshot};
use schemas::history::Role;
use schemas::tables::{ITEMS, SEQUENCES};
use serde::Serialize;

use super::print::{duration, fitted};
use super::{InspectError, REFRESH};

/// The newest part of one user's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timeline {
    /// The user.
    pub user: String,
    /// The table that was read.
    pub table: String,
    /// Its version.
    pub version: u64,
    /// Events of the whole history.
    pub events: u64,
    /// Rows of the whole history.
    pub rows: u64,
    /// Sessions of the whole history.
    pub sessions: u64,
    /// The newest events, oldest first.
    pub entries: Vec<Entry>,
}

/// One event, in the row that owns it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Place in the history, from 0.
    pub position: u64,
    /// When.
    pub ts: DateTime<Utc>,
    /// The item's index.
    pub item_index: u32,
    /// The item's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub item_id: Option<String>,
    /// The item's title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Session ordinal.
    pub session: u32,
    /// Request-batch ordinal.
    pub request: u32,
    /// Which of the user's rows owns the event, from 0.
    pub row: u64,
    /// Place in that row.
    pub row_position: u32,
    /// How many positions of that row it may see as a target.
    pub visible_len: u32,
    /// Role number.
    pub role: u8,
}

const COLUMNS: [&str; 7] = ["item_index", "ts", "session", "request", "visible_len", "role", "target_from"];

/// The `last` newest events of `user` in `table` (`sequences` where none is named).
pub async fn draw_user(
    root: &Root,
    table: Option<&str>,
    user: &str,
    last: usize,
) -> Result<Timeline, InspectError> {
    let table = table.unwrap_or(SEQUENCES);
    if ![SEQUENCES, REFRESH].contains(&super::known(root, table)?.as_str()) {
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
        entries: Vec::new(),
    };
    for shard in snapshot.shards() {
        let users = snapshot.read_shard(shard, &["user_id"]).await?;
        let is_user = |batch: &RecordBatch, row| batch.column(0).as_string::<i32>().value(row) == user;
        if !users.iter().any(|batch| (0..batch.num_rows()).any(|row| is_user(batch, row))) {
            continue;
        }
        let mut columns = vec!["user_id"];
        columns.extend(COLUMNS);
        for batch in snapshot.read_shard(shard, &columns).await? {
            for row in (0..batch.num_rows()).filter(|&row| is_user(&batch, row)) {
                timeline.add(&batch, row);
            }
        }
        // All rows of a user lie in one shard.
        break;
    }
    if timeline.rows == 0 {
        return Err(InspectError::UnknownUser {
            user: user.into(),
            table: table.into(),
            version: snapshot.version(),
        });
    }
    let sessions: HashSet<u32> = timeline.entries.iter().map(|entry| entry.session).collect();
    timeline.sessions = sessions.len() as u64;
    timeline.entries.drain(..timeline.entries.len().saturating_sub(last));
    if let Some(items) = root.snapshot(ITEMS).await? {
        timeline.name_items(&items).await?;
    }
    Ok(timeline)
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

fn role(number: u8) -> &'static str {
    match Role::from_u8(number) {
        Some(Role::Pretrain) => "pre-training",
        Some(Role::Sft) => "instruction tuning",
        Some(Role::Validation) => "validation",
        Some(Role::Test) => "test",
        Some(Role::Context) => "context",
        None => "unknown",
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "user {}  {} events, {} sessions, {} rows ({} version {})",
            self.user, self.events, self.sessions, self.rows, self.table, self.version
        )?;
        if (self.entries.len() as u64) < self.events {
            writeln!(f, "the last {} events; --last N shows more", self.entries.len())?;
        }
        writeln!(
            f,
            "sees m/k: as a target it may see the first m of the k positions before it in its row\n\n\
             {:>8}  {:<19}  {:<12}  {:<34}  {:>7}  {:>7}  {:>5}  {:>11}  role",
            "position", "time (UTC)", "item", "title", "session", "batch", "row", "sees"
        )?;
        let mut before: Option<&Entry> = None;
        for entry in &self.entries {
            if let Some(before) = before
                && before.session != entry.session
            {
                let gap = (entry.ts - before.ts).num_milliseconds();
                writeln!(f, "{:>8}  ── {} later ──", "", duration(gap))?;
            }
            let item = entry.item_id.clone().unwrap_or_else(|| format!("#{}", entry.item_index));
            writeln!(
                f,
                "{:>8}  {}  {}  {}  {:>7}  {:>7}  {:>5}  {:>11}  {}",
                entry.position,
                entry.ts.format("%Y-%m-%d %H:%M:%S"),
                fitted(&item, 12),
                fitted(entry.title.as_deref().unwrap_or(""), 34),
                entry.session,
                entry.request,
                entry.row,
                format!("{}/{}", entry.visible_len, entry.row_position),
                role(entry.role)
            )?;
            before = Some(entry);
        }
        Ok(())
    }
}
