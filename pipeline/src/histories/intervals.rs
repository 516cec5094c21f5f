//! Measures the request intervals of a log, from which `Δτ` is chosen (§3.2.2).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use schemas::history::{request_intervals, session_ordinals};
use serde::Serialize;

use super::columns::{HISTORY_SCHEMA, HistoryColumns};
use crate::engine::{Pass, PassSpec};

/// Minimum number of intervals that `delta_tau = "auto"` needs.
pub const INTERVALS_MIN: u64 = 1_000;

/// The exact distribution of the request intervals. A session ends after minutes of silence, so nearly all intervals are
/// short: each millisecond below [`SHORT`] has a counter (16 MiB, allocated with the first interval); longer intervals have
/// a counter for each length that occurs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Intervals {
    short: Vec<u64>,
    long: BTreeMap<i64, u64>,
}

/// Intervals below this many milliseconds, some 35 minutes, are short.
const SHORT: usize = 1 << 21;

impl Intervals {
    fn count(&mut self, new: &mut Vec<i64>) {
        if new.is_empty() {
            return;
        }
        self.short.resize(SHORT, 0);
        for interval in new.drain(..) {
            match usize::try_from(interval).ok().and_then(|ms| self.short.get_mut(ms)) {
                Some(count) => *count += 1,
                None => *self.long.entry(interval).or_default() += 1,
            }
        }
    }

    /// Count, mean and quantiles; `None` without intervals.
    pub(super) fn summary(&self) -> Option<RequestIntervals> {
        let short = (0..).zip(&self.short).filter(|(_, n)| **n > 0).map(|(ms, &n)| (ms, n));
        let intervals: Vec<(i64, u64)> = short.chain(self.long.iter().map(|(&ms, &n)| (ms, n))).collect();
        let count: u64 = intervals.iter().map(|(_, n)| n).sum();
        // The smallest interval that at least this share of the intervals does not exceed.
        let quantile = |share: f64| {
            let rank = ((share * count as f64).ceil() as u64).max(1);
            let mut below = 0;
            intervals.iter().find(|(_, n)| {
                below += n;
                below >= rank
            })
        };
        let sum: i128 = intervals.iter().map(|&(ms, n)| i128::from(ms) * i128::from(n)).sum();
        Some(RequestIntervals {
            count,
            mean_ms: sum as f64 / count as f64,
            median_ms: quantile(0.5)?.0,
            p90_ms: quantile(0.9)?.0,
        })
    }
}

/// The intervals of one pass, added to the shared distribution in batches of [`NEW_MAX`].
#[derive(Debug)]
pub(super) struct Measured {
    new: Vec<i64>,
    all: Arc<Mutex<Intervals>>,
}

/// Intervals that a pass collects before it adds them to the shared distribution.
const NEW_MAX: usize = 1 << 16;

impl Measured {
    pub(super) fn new(all: Arc<Mutex<Intervals>>) -> Self {
        Self { new: Vec::new(), all }
    }

    /// Adds the intervals of one user's history.
    pub(super) fn add_history(&mut self, session: &[u32], request_ts: &[Option<i64>]) {
        request_intervals(session, request_ts, &mut self.new);
        if self.new.len() >= NEW_MAX {
            self.hand_over();
        }
    }

    /// Adds the remaining intervals to the shared distribution.
    pub(super) fn hand_over(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).count(&mut self.new);
    }
}

/// The gaps between consecutive requests of one user inside a session.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RequestIntervals {
    /// Number of intervals.
    pub count: u64,
    /// Mean in milliseconds; rounded, it is the `Δτ` of `delta_tau = "auto"`.
    pub mean_ms: f64,
    /// Median in milliseconds.
    pub median_ms: i64,
    /// 90th percentile in milliseconds.
    pub p90_ms: i64,
}

impl RequestIntervals {
    /// `Δτ` in milliseconds: the rounded mean.
    pub fn delta_tau_ms(&self) -> i64 {
        self.mean_ms.round() as i64
    }
}

impl fmt::Display for RequestIntervals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} measured, mean {}, median {}, p90 {}",
            self.count,
            duration(self.delta_tau_ms()),
            duration(self.median_ms),
            duration(self.p90_ms)
        )
    }
}

/// A duration for people: `14m 59s`, `1.250s`.
fn duration(ms: i64) -> String {
    match ms {
        ..60_000 => format!("{}.{:03}s", ms / 1_000, ms % 1_000),
        60_000..3_600_000 => format!("{}m {}s", ms / 60_000, ms / 1_000 % 60),
        _ => format!("{}h {}m", ms / 3_600_000, ms / 60_000 % 60),
    }
}

/// The pass that measures intervals and returns no rows: `delta_tau = "auto"` needs them before the first row is built.
#[derive(Debug)]
pub(super) struct Measure {
    pub session_gap_ms: i64,
    pub total: Arc<Mutex<Intervals>>,
}

impl PassSpec for Measure {
    fn name(&self) -> &'static str {
        "RequestIntervals"
    }

    fn schema(&self) -> SchemaRef {
        HISTORY_SCHEMA.clone()
    }

    fn start(&self) -> Box<dyn Pass> {
        Box::new(MeasurePass {
            session_gap_ms: self.session_gap_ms,
            measured: Measured::new(Arc::clone(&self.total)),
            user: String::new(),
            ts: Vec::new(),
            request_ts: Vec::new(),
        })
    }
}

struct MeasurePass {
    session_gap_ms: i64,
    measured: Measured,
    user: String,
    ts: Vec<i64>,
    request_ts: Vec<Option<i64>>,
}

impl MeasurePass {
    fn close_user(&mut self) {
        self.measured.add_history(&session_ordinals(&self.ts, self.session_gap_ms), &self.request_ts);
        self.ts.clear();
        self.request_ts.clear();
    }
}

impl Pass for MeasurePass {
    fn push(&mut self, batch: &RecordBatch) -> Result<Vec<RecordBatch>> {
        let columns = HistoryColumns::of(batch)?;
        for (user, rows) in columns.users() {
            if user != self.user {
                self.close_user();
                self.user = user.to_owned();
            }
            self.ts.extend_from_slice(columns.ts(rows.clone()));
            self.request_ts.extend(columns.request_ts(rows));
        }
        Ok(Vec::new())
    }

    fn finish(&mut self) -> Result<Vec<RecordBatch>> {
        self.close_user();
        self.measured.hand_over();
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_exact() {
        let all = Arc::new(Mutex::new(Intervals::default()));
        let mut passes = [Measured::new(Arc::clone(&all)), Measured::new(Arc::clone(&all))];
        passes.iter_mut().for_each(Measured::hand_over);
        assert_eq!(all.lock().unwrap().summary(), None);
        passes[0].add_history(&[0; 6], &[0, 1_000, 2_000, 4_000, 100_000, 3_100_000].map(Some));
        passes[1].add_history(&[0, 0, 1, 1], &[Some(5), None, Some(7), Some(1_007)]);
        passes.iter_mut().for_each(Measured::hand_over);
        let summary = all.lock().unwrap().summary().unwrap();
        let mean_ms = 3_101_000.0 / 6.0;
        let expected = RequestIntervals { count: 6, mean_ms, median_ms: 1_000, p90_ms: 3_000_000 };
        assert_eq!(summary, expected);
        assert_eq!(summary.to_string(), "6 measured, mean 8m 36s, median 1.000s, p90 50m 0s");
    }
}
