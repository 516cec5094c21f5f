//! Converts times and dates, as in the column `event_date`.

use schemas::tables::EVENT_DATE;
use store::Shard;

/// Milliseconds of a day.
const MS_PER_DAY: i64 = 86_400_000;

/// The UTC date of a time in epoch milliseconds, in days since 1970.
pub(crate) fn date_of(ts: i64) -> i32 {
    ts.div_euclid(MS_PER_DAY) as i32
}

/// The date of a shard's events, in days since 1970; `None` if it may hold several dates.
pub(crate) fn shard_date(shard: &Shard) -> Option<i32> {
    date_days(shard.partition.get(EVENT_DATE).and_then(Option::as_deref)?)
}

/// Formats days since 1970 as `2026-11-22`.
pub(crate) fn date_text(days: i32) -> String {
    chrono::NaiveDate::from_epoch_days(days).map_or_else(|| days.to_string(), |date| date.to_string())
}

/// Parses `2026-11-22` to days since 1970.
pub(crate) fn date_days(text: &str) -> Option<i32> {
    let date: chrono::NaiveDate = text.parse().ok()?;
    i32::try_from(date.signed_duration_since(chrono::DateTime::UNIX_EPOCH.date_naive()).num_days()).ok()
}

/// The dates within `days` days of `date`, `date` included.
pub(crate) fn dates_around(date: i32, days: u32) -> std::ops::RangeInclusive<i32> {
    let days = i32::try_from(days).unwrap_or(i32::MAX);
    date.saturating_sub(days)..=date.saturating_add(days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_text_that_it_is_written_as() {
        for days in [-719_162, -1, 0, 18_263, 47_482] {
            assert_eq!(date_days(&date_text(days)), Some(days));
        }
        assert_eq!(date_text(18_263), "2020-01-02");
        assert_eq!(date_days("yesterday"), None);
    }

    #[test]
    fn windows_end_where_numbers_do() {
        assert_eq!(dates_around(5, 2), 3..=7);
        assert_eq!(dates_around(5, 0), 5..=5);
        assert_eq!(dates_around(i32::MAX, u32::MAX), 0..=i32::MAX);
    }
}
