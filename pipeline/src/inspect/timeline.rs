//! A user's history as a time line: the events that a target may see, and why it may not see the others.

use std::collections::HashMap;
use std::fmt;

use chrono::{DateTime, Utc};
use schemas::history::{DeltaTau, Role};
use serde::Serialize;
use terminal::shown::{Shown, fitted};

use super::instructions::Instruction;
use super::print::duration;

/// A part of one user's history, as one of its events sees it.
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
    /// `Δτ` of the table in milliseconds; none where it is off.
    pub delta_tau_ms: Option<i64>,
    /// Position of the target, the event that looks back.
    pub target: u64,
    /// Some consecutive events, the target among them, oldest first.
    pub entries: Vec<Entry>,
    /// The user's recall instructions in order of priority; absent if the root has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Vec<Instruction>>,
}

/// One event, in the row that owns it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Position in the history, from 0.
    pub position: u64,
    /// The event's time.
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
    /// Number of the user's row that owns the event, from 0.
    pub row: u64,
    /// Position in that row.
    pub row_position: u32,
    /// Number of positions of that row that it may see as a target.
    pub visible_len: u32,
    /// Role number.
    pub role: u8,
    /// The event's relation to the target of the time line.
    pub mark: Mark,
}

/// The relation of an event to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// The target may see it.
    Visible,
    /// Hidden: no older than `Δτ`.
    WithinDeltaTau,
    /// Hidden: the target's own request had begun.
    OwnRequest,
    /// Hidden: the target's row is shorter than the history.
    NotInRow,
    /// The target.
    Target,
    /// After the target.
    Later,
}

impl Mark {
    /// The mark as one character.
    pub fn glyph(self) -> char {
        match self {
            Self::Visible => '·',
            Self::WithinDeltaTau | Self::OwnRequest | Self::NotInRow => '▒',
            Self::Target => '◆',
            Self::Later => ' ',
        }
    }

    /// The mark in words; empty if none are needed.
    pub fn words(self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::WithinDeltaTau => "hidden: within Δτ",
            Self::OwnRequest => "hidden: own request",
            Self::NotInRow => "hidden: not in the row",
            Self::Target => "the target",
            Self::Later => "",
        }
    }
}

/// The row that owns the target.
pub(super) struct TargetRow {
    /// The row's context before its own events: item, time, session, request batch.
    pub context: Vec<(u32, DateTime<Utc>, u32, u32)>,
    /// Its place among the user's rows.
    pub row: u64,
}

impl Timeline {
    /// Marks all entries; they must include the whole history up to the target.
    pub(super) fn mark(&mut self, row: &TargetRow) {
        let target = self.target as usize;
        let Some(&Entry { ts, visible_len, .. }) = self.entries.get(target) else { return };
        let delta_tau = self.delta_tau_ms.map_or(DeltaTau::Off, DeltaTau::Margin);
        let within = |entry: &Entry| match delta_tau {
            DeltaTau::Off => false,
            DeltaTau::Margin(ms) => (ts - entry.ts).num_milliseconds() <= ms,
        };
        let in_row: HashMap<usize, usize> = self.place_row(row).into_iter().zip(0..).collect();
        for (e, entry) in self.entries.iter_mut().enumerate() {
            entry.mark = match in_row.get(&e) {
                _ if e == target => Mark::Target,
                _ if e > target => Mark::Later,
                Some(&k) if k < visible_len as usize => Mark::Visible,
                _ if within(entry) => Mark::WithinDeltaTau,
                Some(_) => Mark::OwnRequest,
                None => Mark::NotInRow,
            };
        }
    }

    /// The positions in the history of the row's positions. Among events that are equal in all lists, and so
    /// indistinguishable, takes the newest.
    fn place_row(&self, row: &TargetRow) -> Vec<usize> {
        let owned: Vec<usize> = (0..self.entries.len()).filter(|&e| self.entries[e].row == row.row).collect();
        let mut end = owned.first().copied().unwrap_or(0);
        let mut positions = Vec::new();
        for wanted in row.context.iter().rev() {
            let same = |&e: &usize| {
                let entry = &self.entries[e];
                (entry.item_index, entry.ts, entry.session, entry.request) == *wanted
            };
            // Rows of `refresh` may show events that no row of the table owns.
            match (0..end).rev().find(same) {
                Some(place) => {
                    positions.push(place);
                    end = place;
                }
                None => positions.push(usize::MAX),
            }
        }
        positions.reverse();
        positions.extend(owned);
        positions
    }

    /// Keeps `last` events: the newest, or those around the target if it is not among the newest.
    pub(super) fn keep(&mut self, last: usize) {
        let last = last.max(1);
        let newest = self.entries.len().saturating_sub(last);
        let start = newest.min((self.target as usize + 1 + last / 8).saturating_sub(last));
        self.entries.drain(..start);
        self.entries.truncate(last);
    }
}

impl Entry {
    /// The item's id, or its index if the catalogue lacks it.
    pub(super) fn item(&self) -> String {
        self.item_id.clone().unwrap_or_else(|| format!("#{}", self.item_index))
    }

    /// Its role in words.
    pub(super) fn role_name(&self) -> &'static str {
        match Role::from_u8(self.role) {
            Some(Role::Pretrain) => "pre-training",
            Some(Role::Sft) => "instruction tuning",
            Some(Role::Validation) => "validation",
            Some(Role::Test) => "test",
            Some(Role::Context) => "context",
            None => "unknown",
        }
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "user {}  {} events, {} sessions, {} rows ({} version {})",
            Shown(&self.user),
            self.events,
            self.sessions,
            self.rows,
            self.table,
            self.version
        )?;
        if let Some(instructions) = &self.instructions {
            let each: Vec<String> = instructions.iter().map(ToString::to_string).collect();
            let each = if each.is_empty() { "none".into() } else { each.join(", ") };
            writeln!(f, "instructions: {}", Shown(&each))?;
        }
        if (self.entries.len() as u64) < self.events {
            writeln!(f, "{} of the events; --last N shows more", self.entries.len())?;
        }
        let delta_tau = self.delta_tau_ms.map_or_else(|| "off".into(), duration);
        writeln!(
            f,
            "sees m/k: as a target it may see the first m of the k positions before it in its row\n\
             mask for position {}, Δτ {delta_tau}: · visible  ▒ hidden  ◆ the target; --target N chooses another\n\n\
             {:>8} mask  {:<19}  {:<12}  {:<34}  {:>7}  {:>7}  {:>5}  {:>11}  role",
            self.target, "position", "time (UTC)", "item", "title", "session", "batch", "row", "sees"
        )?;
        let mut before: Option<&Entry> = None;
        for entry in &self.entries {
            if let Some(before) = before
                && before.session != entry.session
            {
                let gap = (entry.ts - before.ts).num_milliseconds();
                writeln!(f, "{:>8}       ── {} later ──", "", duration(gap))?;
            }
            let why = match entry.mark {
                Mark::WithinDeltaTau | Mark::OwnRequest | Mark::NotInRow => entry.mark.words(),
                _ => "",
            };
            let line = format!(
                "{:>8}   {}   {}  {}  {}  {:>7}  {:>7}  {:>5}  {:>11}  {:<18}  {why}",
                entry.position,
                entry.mark.glyph(),
                entry.ts.format("%Y-%m-%d %H:%M:%S"),
                fitted(&entry.item(), 12),
                fitted(entry.title.as_deref().unwrap_or(""), 34),
                entry.session,
                entry.request,
                entry.row,
                format!("{}/{}", entry.visible_len, entry.row_position),
                entry.role_name()
            );
            writeln!(f, "{}", line.trim_end())?;
            before = Some(entry);
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A history with one event at each of the times (in seconds), in one row after what `context` left out.
    pub(in super::super) fn timeline(seconds: &[i64], visible_len: u32) -> Timeline {
        let entry = |(e, &s): (usize, &i64)| Entry {
            position: e as u64,
            ts: DateTime::from_timestamp(s, 0).unwrap(),
            item_index: 1 + e as u32,
            item_id: Some(format!("i{e}")),
            title: None,
            session: 0,
            request: e as u32,
            row: 0,
            row_position: e as u32,
            visible_len,
            role: 0,
            mark: Mark::Later,
        };
        Timeline {
            user: "u".into(),
            table: "sequences".into(),
            version: 0,
            events: seconds.len() as u64,
            rows: 1,
            sessions: 1,
            delta_tau_ms: Some(10_000),
            target: seconds.len() as u64 - 1,
            entries: seconds.iter().enumerate().map(entry).collect(),
            instructions: None,
        }
    }

    #[test]
    fn what_is_hidden_has_a_reason() {
        // Position 0 is context of the second row, position 1 is left out of it.
        let mut timeline = timeline(&[0, 5, 20, 30, 45, 50, 60], 1);
        timeline.target = 5;
        for entry in &mut timeline.entries[2..] {
            entry.row = 1;
        }
        let first = &timeline.entries[0];
        let context = vec![(first.item_index, first.ts, first.session, first.request)];
        timeline.mark(&TargetRow { context, row: 1 });
        let marks: Vec<Mark> = timeline.entries.iter().map(|entry| entry.mark).collect();
        use Mark::*;
        assert_eq!(marks, [Visible, NotInRow, OwnRequest, OwnRequest, WithinDeltaTau, Target, Later]);
        let text = timeline.to_string();
        assert!(text.contains("hidden: within Δτ") && text.contains("◆"), "{text}");
    }

    #[test]
    fn the_target_is_among_what_is_kept() {
        for (target, first) in [(99, 60), (70, 36), (3, 0)] {
            let mut timeline = timeline(&(0..100).collect::<Vec<_>>(), 0);
            timeline.target = target;
            timeline.keep(40);
            assert_eq!(timeline.entries.len(), 40);
            assert!(timeline.entries.iter().any(|entry| entry.position == target));
            assert_eq!(timeline.entries[0].position, first);
        }
    }
}
