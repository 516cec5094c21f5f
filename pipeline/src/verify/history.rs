//! Recomputes a history, and compares the lists of a user's rows with it.
//!
//! The functions of [`schemas::history`] compute the lists from the sorted events. A row is then matched with the history:
//! its targets must be the next events without a gap, its context events before them.

use schemas::config::Conditions;
use schemas::hash::hash64;
use schemas::history::{
    DeltaTau, LogFilters, Role, Split, Window, first_held_out, held_out_roles, request_batches,
    session_ordinals, visible_lengths, with_sft_share,
};

use super::row::{Broken, Row};

pub(super) const ONCE: &str = "every event is a target exactly once, in order";
pub(super) const CONTEXT: &str = "what comes before target_from are earlier events of the user";
pub(super) const SESSION: &str = "session is the ordinal in the whole history";
pub(super) const REQUEST: &str = "request is the ordinal in the whole history";
pub(super) const VISIBLE: &str = "visible_len counts the positions of the row before v_t";
pub(super) const ROLE: &str = "role follows from the split";
pub(super) const ENOUGH: &str = "a target has the min(v_t, max_len / 2) newest events it may see in its row";
pub(super) const HELD_OUT: &str = "a user's held-out events are targets of one row";

pub(super) const SINCE: &str = "the new targets are the events committed after the version given to --since";

/// The settings that determine a history, given the events.
#[derive(Debug, Clone)]
pub(super) struct HistoryRules {
    /// The filters of the log.
    pub filters: LogFilters,
    /// `events.dedup_days`: equal ids within this many days are one event.
    pub dedup_days: u32,
    /// The seed of the `shuffled` order.
    pub shuffle: Option<u64>,
    pub session_gap_ms: i64,
    pub batch_gap_ms: i64,
    pub delta_tau: DeltaTau,
    pub max_len: usize,
    pub split: Split,
    pub sft_share: f64,
    /// `sft/<condition>`: the settings that decide which events are fit to be learned.
    pub learned: Option<Conditions>,
}

/// A user's history, and the number of its events that the rows seen so far own.
pub(super) struct ProvenHistory {
    pub ts: Vec<i64>,
    pub item: Vec<u32>,
    pub session: Vec<u32>,
    pub request: Vec<u32>,
    pub visible: Vec<u32>,
    pub roles: Vec<Role>,
    pub first_held_out: Option<usize>,
    /// For each event, whether it is fit to be learned under a condition; empty if that is not verified.
    pub fit: Vec<bool>,
    /// `refresh`: whether each event is new.
    pub new: Vec<bool>,
    next: usize,
    new_seen: usize,
}

impl ProvenHistory {
    /// The lists of events in the order of a history.
    pub(super) fn new(
        user: &str,
        ts: Vec<i64>,
        item: Vec<u32>,
        ids: &[Option<&str>],
        hashes: &[u64],
        rules: &HistoryRules,
    ) -> Self {
        let session = session_ordinals(&ts, rules.session_gap_ms);
        let requests = request_batches(&ts, ids, rules.batch_gap_ms);
        let visible = visible_lengths(&ts, &requests, rules.delta_tau);
        let mut roles = held_out_roles(&ts, hash64(user.as_bytes()), rules.split)
            .unwrap_or_else(|| vec![Role::Pretrain; ts.len()]);
        with_sft_share(&mut roles, hashes, rules.sft_share);
        let first_held_out = first_held_out(&roles, rules.split);
        Self {
            ts,
            item,
            session,
            request: requests.ordinal,
            visible,
            roles,
            first_held_out,
            fit: Vec::new(),
            new: Vec::new(),
            next: 0,
            new_seen: 0,
        }
    }

    /// The number of new events of the history, and of those that were targets so far.
    pub(super) fn new_targets(&self) -> (usize, usize) {
        (self.new.iter().filter(|&&new| new).count(), self.new_seen)
    }

    /// The number of events of the history, and of those that rows have owned so far.
    pub(super) fn owned(&self) -> (usize, usize) {
        (self.ts.len(), self.next)
    }

    /// Compares the user's next row with the history. With `gaps`, rows in between may be missing, and events
    /// that are not new have role 4, as in `refresh`.
    pub(super) fn check(&mut self, row: &Row<'_>, max_len: usize, gaps: bool) -> Result<(), Broken> {
        let start = self.place_targets(row, gaps)?;
        self.next = start + row.item.len() - row.target_from;
        self.new_seen +=
            self.new.get(start..self.next).map_or(0, |new| new.iter().filter(|&&new| new).count());
        // Context events that are equal in all columns of a row cannot be distinguished; the row is right if any
        // choice of them makes it right.
        let mut result = Err(Broken::new(
            CONTEXT,
            "item_index",
            row.target_from.checked_sub(1),
            "an event that the user does not have there",
            "an earlier event",
        ));
        for (exact, newest_first) in [(true, true), (true, false), (false, true)] {
            if let Some(context) = self.place_context(row, start, exact, newest_first) {
                let positions = context.into_iter().chain(start as u32..self.next as u32).collect();
                let window = Window { positions, target_from: row.target_from, short_context: false };
                result = self.compare(row, &window, max_len, gaps);
                if result.is_ok() {
                    break;
                }
            }
        }
        result
    }

    fn is_new(&self, t: usize) -> bool {
        self.new.get(t).copied().unwrap_or_default()
    }

    fn is_event(&self, t: usize, row: &Row<'_>, k: usize) -> bool {
        self.ts[t] == row.ts[k] && self.item[t] == row.item[k]
    }

    /// The event of the history at which the row's targets begin.
    fn place_targets(&self, row: &Row<'_>, gaps: bool) -> Result<usize, Broken> {
        let from = row.target_from;
        let owned = row.item.len() - from;
        let fits = |start: usize| {
            start + owned <= self.ts.len() && (0..owned).all(|i| self.is_event(start + i, row, from + i))
        };
        if gaps {
            let first = self.next.max(self.ts.partition_point(|&ts| ts < row.ts[from]));
            let starts = (first..self.ts.len()).take_while(|&t| self.ts[t] == row.ts[from]);
            let starts: Vec<usize> = starts.filter(|&start| fits(start)).collect();
            // Among events that a row cannot distinguish, choose those whose newness matches its roles.
            let as_new = |&&start: &&usize| {
                (0..owned).all(|i| self.is_new(start + i) == (row.role[from + i] != Role::Context as u8))
            };
            return starts.iter().find(as_new).or(starts.first()).copied().ok_or_else(|| {
                Broken::new(ONCE, "ts", from, self.shown(row, from), "an event that no row before owns")
            });
        }
        for i in 0..owned {
            let (t, k) = (self.next + i, from + i);
            if t >= self.ts.len() {
                let expected = format!("nothing: all {t} events of the user are owned by then");
                return Err(Broken::new(ONCE, "item_index", k, self.shown(row, k), expected));
            }
            if !self.is_event(t, row, k) {
                let column = if self.ts[t] == row.ts[k] { "item_index" } else { "ts" };
                let expected = format!("event {t} of the user, item {} at {} ms", self.item[t], self.ts[t]);
                return Err(Broken::new(ONCE, column, k, self.shown(row, k), expected));
            }
        }
        Ok(self.next)
    }

    fn shown(&self, row: &Row<'_>, k: usize) -> String {
        format!("item {} at {} ms", row.item[k], row.ts[k])
    }

    /// Possible context events before the targets, which begin at event `start`.
    fn place_context(
        &self,
        row: &Row<'_>,
        start: usize,
        exact: bool,
        newest_first: bool,
    ) -> Option<Vec<u32>> {
        let same = |t: usize, k: usize| {
            self.is_event(t, row, k)
                && (!exact || (self.session[t] == row.session[k] && self.request[t] == row.request[k]))
        };
        let mut places = Vec::with_capacity(row.target_from);
        if newest_first {
            let mut end = start;
            for k in (0..row.target_from).rev() {
                end = (0..end).rev().find(|&t| same(t, k))?;
                places.push(end as u32);
            }
            places.reverse();
        } else {
            let mut first = self.ts.partition_point(|&ts| ts < row.ts[0]);
            for k in 0..row.target_from {
                let place = (first..start).find(|&t| same(t, k))?;
                places.push(place as u32);
                first = place + 1;
            }
        }
        Some(places)
    }

    /// Compares the lists of the row with those of the matched events.
    fn compare(&self, row: &Row<'_>, window: &Window, max_len: usize, gaps: bool) -> Result<(), Broken> {
        let held_out_row = self.first_held_out.is_some_and(|first| first < self.next);
        for (k, &t) in window.positions.iter().enumerate() {
            let t = t as usize;
            let seen = window.visible_len(self.visible[t]);
            let lists = [
                (SESSION, "session", row.session[k], self.session[t]),
                (REQUEST, "request", row.request[k], self.request[t]),
                (VISIBLE, "visible_len", row.visible[k], seen),
            ];
            if let Some((claim, column, found, expected)) = lists.into_iter().find(|l| l.2 != l.3) {
                return Err(Broken::new(claim, column, k, found, expected));
            }
            if k < row.target_from {
                continue;
            }
            let is_old = gaps && !self.is_new(t);
            let role = if is_old { Role::Context } else { self.roles[t] } as u8;
            if row.role[k] != role {
                let as_context = gaps && row.role[k] == Role::Context as u8;
                let claim = if is_old || as_context { SINCE } else { ROLE };
                return Err(Broken::new(claim, "role", k, row.role[k], role));
            }
            let needed = self.visible[t].saturating_sub(max_len as u32 / 2)..self.visible[t];
            let present = seen - window.visible_len(needed.start);
            // Held-out events must share a row, which may then be too short for the context of all.
            let excused = held_out_row && row.item.len() == max_len;
            if (present as usize) < needed.len() && !excused {
                let found = format!("{present} of them");
                return Err(Broken::new(ENOUGH, "item_index", k, found, format!("{}", needed.len())));
            }
        }
        match self.first_held_out {
            Some(first) if !gaps && first < self.next && self.next < self.ts.len() => {
                let k = (first + row.item.len()).saturating_sub(self.next);
                let expected = format!("in the row that owns the newest of {} events", self.ts.len());
                Err(Broken::new(HELD_OUT, "role", k, "held out in an earlier row", expected))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two equal events, one soon after, and one of another session.
    fn history() -> ProvenHistory {
        let rules = HistoryRules {
            filters: LogFilters::default(),
            dedup_days: 0,
            shuffle: None,
            session_gap_ms: 50,
            batch_gap_ms: 0,
            delta_tau: DeltaTau::Margin(0),
            max_len: 4,
            split: Split::LeaveOneOut,
            sft_share: 0.0,
            learned: None,
        };
        let ids = [None; 4];
        ProvenHistory::new("u", vec![0, 0, 10, 100], vec![7, 7, 8, 9], &ids, &[0; 4], &rules)
    }

    const WHOLE: Row<'static> = Row {
        user: "u",
        item: &[7, 7, 8, 9],
        ts: &[0, 0, 10, 100],
        session: &[0, 0, 0, 1],
        request: &[0, 0, 1, 2],
        visible: &[0, 0, 2, 3],
        role: &[0, 0, 2, 3],
        target_from: 0,
    };

    #[test]
    fn a_whole_history_is_right_once() {
        let mut history = history();
        assert_eq!(history.check(&WHOLE, 4, false), Ok(()));
        assert_eq!(history.owned(), (4, 4));
        assert_eq!(history.check(&WHOLE, 4, false).unwrap_err().claim, ONCE);
    }

    #[test]
    fn equal_events_are_told_apart_by_nothing() {
        // Only one of the two equal events is context; either is right.
        let row = Row {
            item: &[7, 8, 9],
            ts: &[0, 10, 100],
            session: &[0, 0, 1],
            request: &[0, 1, 2],
            visible: &[0, 1, 2],
            role: &[4, 2, 3],
            target_from: 1,
            ..WHOLE
        };
        let mut history = history();
        history.next = 2;
        assert_eq!(history.check(&row, 2, false), Ok(()));
        // At this length, both must be context.
        history.next = 2;
        assert_eq!(history.check(&row, 4, false).unwrap_err().claim, ENOUGH);
    }

    #[test]
    fn gaps_are_for_refresh() {
        let newest = Row {
            item: &[8, 9],
            ts: &[10, 100],
            session: &[0, 1],
            request: &[1, 2],
            visible: &[0, 1],
            role: &[4, 3],
            target_from: 1,
            ..WHOLE
        };
        assert_eq!(history().check(&newest, 2, false).unwrap_err().claim, ONCE);
        let with_new = |new: [bool; 4]| ProvenHistory { new: new.to_vec(), ..history() };
        let mut history = with_new([false, false, false, true]);
        assert_eq!(history.check(&newest, 2, true), Ok(()));
        assert_eq!(history.new_targets(), (1, 1));
        assert_eq!(with_new([false; 4]).check(&newest, 2, true).unwrap_err().claim, SINCE);
        let old = Row { role: &[4, 4], ..newest };
        assert_eq!(with_new([false, false, false, true]).check(&old, 2, true).unwrap_err().claim, SINCE);
        let wrong = Row { session: &[0, 0], ..newest };
        assert_eq!(with_new([false, false, false, true]).check(&wrong, 2, true).unwrap_err().claim, SESSION);
        // Only one of two equal events is new.
        let one = Row {
            item: &[7],
            ts: &[0],
            session: &[0],
            request: &[0],
            visible: &[0],
            role: &[0],
            target_from: 0,
            ..WHOLE
        };
        assert_eq!(with_new([false, true, false, false]).check(&one, 4, true), Ok(()));
    }
}
