//! The sliding window, and the difference of two of its positions.

use chrono::{DateTime, NaiveDate};
use schemas::tables::EVENT_DATE;
use store::Shard;

const MS_PER_DAY: i64 = 86_400_000;

/// The times `from < ts ≤ to`, in epoch milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CountWindow {
    pub from: i64,
    pub to: i64,
}

impl CountWindow {
    /// All times.
    pub(crate) const ALL: Self = Self { from: i64::MIN / 2, to: i64::MAX / 2 };

    /// The `length_ms` milliseconds that end with `as_of`.
    pub(crate) fn ending(as_of: i64, length_ms: i64) -> Self {
        Self { from: as_of.saturating_sub(length_ms), to: as_of }
    }

    pub(crate) fn contains(self, ts: i64) -> bool {
        self.from < ts && ts <= self.to
    }

    /// The two strips in which this window and one of equal length differ: between their beginnings, and between their
    /// ends. For windows that do not overlap, the strips cover both windows and the gap between them.
    pub(crate) fn strips(self, other: Self) -> [Self; 2] {
        let between = |a: i64, b: i64| Self { from: a.min(b), to: a.max(b) };
        [between(self.from, other.from), between(self.to, other.to)]
    }

    /// The window, extended by `days` days before and after it.
    pub(crate) fn widened(self, days: u32) -> Self {
        let margin = i64::from(days) * MS_PER_DAY;
        Self { from: self.from.saturating_sub(margin), to: self.to.saturating_add(margin) }
    }

    pub(crate) fn is_empty(self) -> bool {
        self.from >= self.to
    }

    /// Whether a shard of `events` may have events of the window; a shard without a date may.
    pub(crate) fn touches(self, shard: &Shard) -> bool {
        let date = shard.partition.get(EVENT_DATE).and_then(Option::as_deref);
        let Some(date) = date.and_then(|date| date.parse::<NaiveDate>().ok()) else { return true };
        let day = |ts| DateTime::from_timestamp_millis(ts).map(|time| time.date_naive());
        !self.is_empty()
            && day(self.from.saturating_add(1)).is_none_or(|first| first <= date)
            && day(self.to).is_none_or(|last| date <= last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    #[test]
    fn the_window_is_open_where_it_begins() {
        let window = CountWindow::ending(100, 10);
        assert!(!window.contains(90) && window.contains(91) && window.contains(100) && !window.contains(101));
        assert!(CountWindow::ending(5, 0).is_empty());
    }

    #[test]
    fn strips_hold_what_is_in_one_window_only() {
        for (a, b) in [(100, 103), (103, 100), (100, 100), (100, 150)] {
            let (one, other) = (CountWindow::ending(a, 10), CountWindow::ending(b, 10));
            let strips = one.strips(other);
            for ts in 80..160 {
                let differs = one.contains(ts) != other.contains(ts);
                assert!(!differs || strips.iter().any(|strip| strip.contains(ts)), "{a} {b} {ts}");
            }
        }
    }

    #[test]
    fn shards_are_pruned_by_their_date() {
        let shard = |date: Option<&str>| Shard {
            path: String::new(),
            bytes: 0,
            rows: None,
            partition: [(EVENT_DATE.to_owned(), date.map(Into::into))].into(),
        };
        // From the second day's first millisecond to the third day's.
        let window = CountWindow { from: DAY - 1, to: 2 * DAY };
        let touched = |date| window.touches(&shard(Some(date)));
        assert!(!touched("1970-01-01") && touched("1970-01-02") && touched("1970-01-03"));
        assert!(!touched("1970-01-04") && window.touches(&shard(None)));
        assert!(!CountWindow { from: DAY, to: DAY }.touches(&shard(Some("1970-01-02"))));
    }
}
