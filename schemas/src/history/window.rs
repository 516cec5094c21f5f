//! Cuts a history into rows of at most `max_len` positions.
//!
//! Exactly one row *owns* each position as a target, and there the target sees at least the `min(v_t, max_len / 2)` most recent
//! of its visible positions. The positions before the owned ones are context. Rows are cut from the newest event backwards:
//!
//! ```text
//!  positions  0 ························································ n
//!                       context        owned
//!                    ├──────────────┼──────────┤                row i       (ends where row i+1 owns)
//!                                   ├─ context ─┼──── owned ───┤ last row  (ends at the newest event)
//!                    s              a           b
//! ```
//!
//! Under a time-aware mask the newest visible position of a target can lie far before it: a burst of hidden events would fill the
//! row. Such a row leaves out `[max v_t, a)`, the events that none of its targets may see. Each target's visible events remain a
//! prefix of the row.
//!
//! Held-out positions must share the last row. If they lie on both sides of a burst, that row keeps the guaranteed context of
//! each and leaves out what is between.

use std::ops::Range;

/// One row: the positions of the history that it contains, and which of them it owns as targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Positions of the history, ascending.
    pub positions: Vec<u32>,
    /// Index into `positions` of the first owned one; all later ones are owned too.
    pub target_from: usize,
    /// Whether an owned target sees less than the guaranteed context, because the held-out positions that share this row need
    /// more context than `max_len` allows.
    pub short_context: bool,
}

impl Window {
    /// Returns true if events between the first and the last position are missing from the row.
    #[inline]
    pub fn leaves_out(&self) -> bool {
        match (self.positions.first(), self.positions.last()) {
            (Some(first), Some(last)) => (last - first) as usize + 1 > self.positions.len(),
            _ => false,
        }
    }

    /// Returns the positions as contiguous ranges of the history.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        let runs = self.positions.chunk_by(|one, next| one + 1 == *next);
        runs.map(|run| run[0] as usize..run[0] as usize + run.len())
    }

    /// Returns the visible length of a target within the row: the number of the row's positions before `visible_in_history`, its
    /// `v_t` in the whole history.
    #[inline]
    pub fn visible_len(&self, visible_in_history: u32) -> u32 {
        if let (Some(&first), false) = (self.positions.first(), self.leaves_out()) {
            return visible_in_history.saturating_sub(first).min(self.positions.len() as u32);
        }
        self.positions.partition_point(|&p| p < visible_in_history) as u32
    }
}

/// Error for a history that cannot be cut into rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The held-out positions do not fit into one row with their context.
    #[error("{held_out} held-out positions do not fit into half a row of max_len {max_len}; set sequences.max_len to at least {}", held_out * 2)]
    HeldOutTooLong {
        /// Number of positions from the first held-out one to the end of the history.
        held_out: usize,
        /// Configured row length.
        max_len: usize,
    },
}

/// Cuts a history into rows, oldest first.
///
/// `visible` holds `v_t` of every position of the whole history ([`super::visible_lengths`]). The last row owns all positions
/// from `first_held_out` on.
///
/// # Errors
///
/// [`WindowError::HeldOutTooLong`] if more than `max_len / 2` positions are held out.
pub fn windows(
    visible: &[u32],
    max_len: usize,
    first_held_out: Option<usize>,
) -> Result<Vec<Window>, WindowError> {
    let n = visible.len();
    let held_out = first_held_out.map_or(0, |first| n - first);
    if held_out > max_len / 2 {
        return Err(WindowError::HeldOutTooLong { held_out, max_len });
    }
    let mut rows = Vec::new();
    let mut end = n;
    while end > 0 {
        let must_own = first_held_out.filter(|_| end == n).unwrap_or(end - 1);
        let window = last_row(&visible[..end], max_len, must_own);
        end -= window.positions.len() - window.target_from;
        rows.push(window);
    }
    rows.reverse();
    Ok(rows)
}

/// Returns the row that owns the newest positions of `visible`, at least those from `must_own` on.
fn last_row(visible: &[u32], max_len: usize, must_own: usize) -> Window {
    let end = visible.len();
    let half = max_len / 2;
    let range = |from: u32, to: usize| from..to as u32;

    // Owning one more position can only move the start back, so both searches stop at the first misfit.
    let mut whole = None; // (start, a): the longest owned part of a row without a hole
    let mut holed = None; // (start, newest visible, a): the same for a row with one
    let (mut start, mut newest_visible) = (u32::MAX, 0);
    for a in (0..end).rev() {
        start = start.min(visible[a].saturating_sub(half as u32));
        newest_visible = newest_visible.max(visible[a]);
        let context_end = newest_visible.min(a as u32);
        if end - (start.min(a as u32) as usize) <= max_len {
            whole = Some((start.min(a as u32), a));
        }
        if (context_end - start.min(context_end)) as usize + (end - a) > max_len {
            break;
        }
        holed = Some((start.min(context_end), context_end, a));
    }

    // Prefer a row without a hole if it owns at least a quarter of `max_len`.
    if let Some((start, a)) = whole
        && a <= must_own
        && (a == 0 || end - a >= max_len / 4)
    {
        return Window {
            positions: range(start, end).collect(),
            target_from: a - start as usize,
            short_context: false,
        };
    }
    if let Some((start, context_end, a)) = holed
        && a <= must_own
    {
        let mut positions: Vec<u32> = range(start, context_end as usize).collect();
        let target_from = positions.len();
        positions.extend(range(a as u32, end));
        return Window { positions, target_from, short_context: false };
    }

    // Held-out positions on both sides of a burst: keep the context that each needs, newest first.
    let mut context: Vec<u32> = visible[must_own..]
        .iter()
        .flat_map(|&v| v.saturating_sub(half as u32)..v.min(must_own as u32))
        .collect();
    context.sort_unstable();
    context.dedup();
    let surplus = (context.len() + end - must_own).saturating_sub(max_len);
    context.drain(..surplus);
    let target_from = context.len();
    let mut positions = context;
    positions.extend(range(must_own as u32, end));
    Window { positions, target_from, short_context: surplus > 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_history_is_one_row() {
        let rows = windows(&[0, 1, 2, 3], 4, Some(2)).unwrap();
        assert_eq!(rows, [Window { positions: vec![0, 1, 2, 3], target_from: 0, short_context: false }]);
        assert_eq!(windows(&[], 4, None).unwrap(), []);
    }

    #[test]
    fn long_histories_overlap_by_half() {
        let visible: Vec<u32> = (0..10).collect();
        let rows = windows(&visible, 4, None).unwrap();
        let spans: Vec<_> = rows.iter().map(|r| (r.positions[0], r.target_from, r.positions.len())).collect();
        assert_eq!(spans, [(0, 0, 4), (2, 2, 4), (4, 2, 4), (6, 2, 4)]);
    }

    #[test]
    fn a_burst_of_hidden_events_is_left_out() {
        // Three old events, then 20 at one instant, each of which sees only the three.
        let visible: Vec<u32> = (0..23).map(|t| if t < 3 { t } else { 3 }).collect();
        let rows = windows(&visible, 8, Some(21)).unwrap();
        let last = rows.last().unwrap();
        assert!(last.leaves_out());
        assert_eq!(last.positions[..3], [0, 1, 2]);
        assert_eq!(last.positions.last(), Some(&22));
    }

    #[test]
    fn too_many_held_out_positions_are_an_error() {
        let visible: Vec<u32> = (0..10).collect();
        assert_eq!(
            windows(&visible, 4, Some(7)),
            Err(WindowError::HeldOutTooLong { held_out: 3, max_len: 4 })
        );
    }

    /// Visible lengths as logs produce them: sorted times, a margin, and interleaved requests.
    fn histories() -> impl Strategy<Value = Vec<u32>> {
        (
            prop::collection::vec((0i64..40, 0u8..6), 1..200),
            prop_oneof![Just(None), (0i64..200).prop_map(Some)],
            any::<bool>(),
        )
            .prop_map(|(steps, margin, logged)| {
                let mut now = 0;
                let mut ts = Vec::new();
                let mut ids = Vec::new();
                for (i, (step, request)) in steps.into_iter().enumerate() {
                    // Bursts: most steps are short.
                    now += if step < 30 { step / 10 } else { step * 10 };
                    ts.push(now);
                    ids.push(logged.then(|| format!("{}", i as u8 / 12 * 6 + request)));
                }
                let requests = super::super::request_batches(&ts, &ids, 1);
                let delta_tau = margin.map_or(super::super::DeltaTau::Off, super::super::DeltaTau::Margin);
                super::super::visible_lengths(&ts, &requests, delta_tau)
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn rows_keep_their_promises(visible in histories(), max_len in 4usize..40, held_out in 0usize..6) {
            let n = visible.len();
            let first = (held_out > 0 && held_out <= n).then(|| n - held_out);
            prop_assume!(first.is_none_or(|f| n - f <= max_len / 2));
            let rows = windows(&visible, max_len, first).unwrap();
            let owned: Vec<u32> = rows.iter().flat_map(|r| r.positions[r.target_from..].to_vec()).collect();
            prop_assert_eq!(owned, (0..n as u32).collect::<Vec<_>>(), "every position is owned once");
            for (i, row) in rows.iter().enumerate() {
                prop_assert!(row.positions.len() <= max_len);
                prop_assert!(row.positions.is_sorted_by(|a, b| a < b));
                if row.short_context {
                    prop_assert!(i + 1 == rows.len() && first.is_some());
                    continue;
                }
                let newest = row.positions[row.target_from..].iter().map(|&t| visible[t as usize]).max();
                for (k, &t) in row.positions.iter().enumerate().skip(row.target_from) {
                    let v = visible[t as usize];
                    for needed in v.saturating_sub(max_len as u32 / 2)..v {
                        prop_assert!(row.positions.binary_search(&needed).is_ok());
                    }
                    prop_assert!(row.visible_len(v) as usize <= k);
                }
                if row.leaves_out() && first.is_none() {
                    let first_owned = row.positions[row.target_from];
                    for missing in row.positions[0]..first_owned {
                        if row.positions.binary_search(&missing).is_err() {
                            prop_assert!(Some(missing) >= newest, "only what no target sees is left out");
                        }
                    }
                }
            }
            if let Some(first) = first {
                prop_assert!(rows.last().unwrap().positions[rows.last().unwrap().target_from] as usize <= first);
            }
        }
    }
}
