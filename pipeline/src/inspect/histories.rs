//! Histories: `sequences` and tables of its columns.

use std::collections::HashMap;

use arrow::array::{AsArray, UInt32Array};
use arrow::datatypes::{TimestampMillisecondType, UInt8Type, UInt32Type};
use arrow::record_batch::RecordBatch;
use schemas::history::Role;
use schemas::tables::{SEQUENCES, properties};
use serde::Serialize;
use store::Snapshot;

use super::distribution::{Collector, Distribution};
use super::error::InspectError;
use super::spans::{SpanCollector, SpanDistribution};
use crate::histories::TargetCounts;

/// Contents of a table of histories. Sessions, request batches and targets are counted over owned positions, so
/// an event in two rows counts once.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SequencesContents {
    /// Users.
    pub users: u64,
    /// Owned positions by role.
    pub targets: TargetCounts,
    /// Positions a row.
    pub row_length: Distribution,
    /// Events a user.
    pub history_length: Distribution,
    /// Events a session.
    pub session_length: Distribution,
    /// Events a request batch.
    pub request_size: Distribution,
    /// Time from one event of a user to the next.
    pub inter_event: SpanDistribution,
    /// Events at the same time as another one of their user; the tie policy decides their order.
    pub tied: u64,
    /// The policy.
    pub tie_policy: String,
    /// Share of a target's earlier positions in its row that it may not see.
    pub hidden_share: f64,
    /// Targets by the share of earlier positions that is hidden from them: none, up to a quarter, half, three quarters,
    /// less than all, all. Targets at the first position of their row are not counted.
    pub hidden: [u64; 6],
    /// Targets that see nothing.
    pub nothing_visible: u64,
}

const COLUMNS: [&str; 7] = ["user_id", "session", "request", "visible_len", "role", "target_from", "ts"];

pub(super) async fn read(snapshot: &Snapshot) -> Result<SequencesContents, InspectError> {
    // Rows of `refresh` may have gaps between them.
    let mut reader = Reader { whole: snapshot.name() == SEQUENCES, ..Reader::default() };
    for shard in snapshot.shards() {
        for batch in snapshot.read_shard(shard, &COLUMNS).await? {
            reader.batch(&batch);
        }
    }
    reader.close_user();
    let mut contents = reader.contents;
    contents.tie_policy = snapshot.properties().get(properties::TIE_POLICY).cloned().unwrap_or_default();
    contents.hidden_share =
        if reader.earlier == 0 { 0.0 } else { reader.hidden as f64 / reader.earlier as f64 };
    contents.row_length = reader.row_length.finish();
    contents.history_length = reader.history_length.finish();
    contents.session_length = reader.session_length.finish();
    contents.request_size = reader.request_size.finish();
    contents.inter_event = reader.inter_event.finish();
    Ok(contents)
}

#[derive(Default)]
struct Reader {
    contents: SequencesContents,
    row_length: Collector,
    history_length: Collector,
    session_length: Collector,
    request_size: Collector,
    inter_event: SpanCollector,
    whole: bool,
    earlier: u64,
    hidden: u64,
    /// The user whose rows are being read, and the sizes of that user's sessions and request batches.
    user: String,
    events: u64,
    /// The user's newest event so far, in epoch milliseconds.
    newest: Option<i64>,
    /// Number of the user's events at that time.
    at_newest: u64,
    sessions: HashMap<u32, u64>,
    requests: HashMap<u32, u64>,
}

impl Reader {
    fn batch(&mut self, batch: &RecordBatch) {
        let users = batch.column(0).as_string::<i32>();
        let list = |column: usize, row| batch.column(column).as_list::<i32>().value(row);
        let from: &UInt32Array = batch.column(5).as_primitive::<UInt32Type>();
        for row in 0..batch.num_rows() {
            if users.value(row) != self.user || self.events == 0 {
                self.close_user();
                self.user = users.value(row).to_owned();
            }
            let (sessions, requests, visible) = (list(1, row), list(2, row), list(3, row));
            let sessions = sessions.as_primitive::<UInt32Type>().values();
            let requests = requests.as_primitive::<UInt32Type>().values();
            let visible = visible.as_primitive::<UInt32Type>().values();
            let roles = list(4, row);
            let roles = roles.as_primitive::<UInt8Type>().values();
            let times = list(6, row);
            let times = times.as_primitive::<TimestampMillisecondType>().values();
            self.row_length.add(sessions.len() as u64);
            if !self.whole {
                (self.newest, self.at_newest) = (None, 0);
            }
            for k in from.value(row) as usize..sessions.len() {
                self.events += 1;
                if let Some(before) = self.newest.replace(times[k]) {
                    self.tie(before == times[k]);
                    self.inter_event.add(times[k].saturating_sub(before).max(0) as u64);
                }
                *self.sessions.entry(sessions[k]).or_default() += 1;
                *self.requests.entry(requests[k]).or_default() += 1;
                self.target(k as u64, u64::from(visible[k]), roles[k]);
            }
        }
    }

    /// Counts an event; `same`: whether it has the time of the previous one.
    fn tie(&mut self, same: bool) {
        self.at_newest = if same { self.at_newest.max(1) + 1 } else { 1 };
        self.contents.tied += match self.at_newest {
            1 => 0,
            2 => 2,
            _ => 1,
        };
    }

    fn target(&mut self, earlier: u64, visible: u64, role: u8) {
        if let Some(role) = Role::from_u8(role) {
            self.contents.targets.count(role);
        }
        let hidden = earlier.saturating_sub(visible);
        self.contents.nothing_visible += u64::from(visible == 0);
        self.earlier += earlier;
        self.hidden += hidden;
        if earlier > 0 {
            let bin = match hidden {
                0 => 0,
                all if all == earlier => 5,
                some => (4 * some).div_ceil(earlier).clamp(1, 4) as usize,
            };
            self.contents.hidden[bin] += 1;
        }
    }

    fn close_user(&mut self) {
        if self.events == 0 {
            return;
        }
        self.contents.users += 1;
        (self.newest, self.at_newest) = (None, 0);
        self.history_length.add(std::mem::take(&mut self.events));
        self.sessions.drain().for_each(|(_, size)| self.session_length.add(size));
        self.requests.drain().for_each(|(_, size)| self.request_size.add(size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_of_a_tie_counts_once() {
        let mut reader = Reader::default();
        // 5 5 5 6 7 7: five of six are tied.
        for same in [true, true, false, false, true] {
            reader.tie(same);
        }
        assert_eq!(reader.contents.tied, 5);
    }
}
