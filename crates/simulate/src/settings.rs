//! The settings of a simulation.

use chrono::{Datelike, NaiveDate};
use clap::ValueEnum;
use schemas::config::ConfigError;
use schemas::tables::Reason;

/// The longest log, in days.
pub(crate) const DAYS_MAX: u32 = 4_096;

/// The settings of a simulated log.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Expected number of events; the log has about as many.
    pub events: u64,
    /// Users.
    pub users: u32,
    /// Items of the catalogue.
    pub items: u32,
    /// Days, each with its files.
    pub days: u32,
    /// The first day, UTC.
    pub start: NaiveDate,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Format of the files of events.
    pub format: LogFormat,
    /// Compression of these files; Parquet files are compressed inside.
    pub compression: Compression,
    /// Files that a day is divided into, by time.
    pub files_per_day: u32,
    /// Shares of late sessions, duplicates and bad records.
    pub rates: Rates,
    /// Threads that write days side by side; 0 takes one for each core.
    pub threads: usize,
    /// Whether an earlier simulation in the directory is replaced.
    pub force: bool,
}

/// Formats of files of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header.
    Csv,
    /// Parquet.
    Parquet,
}

/// Compression of files of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// No compression.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Shares of late, duplicate and bad records, each from 0 to 0.5.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Share of the sessions that are uploaded days later.
    pub late: f64,
    /// Share of the events that occur in the log twice.
    pub duplicate: f64,
    /// Share of the records that cannot be used.
    pub bad: f64,
}

impl Settings {
    /// Settings of a log of about `events` events, with defaults for everything else: 105 events a user, 100 an item (within
    /// 100 to 1,000,000 items), 30 days from 2026-01-01 on, JSON Lines.
    pub fn new(events: u64) -> Self {
        Self {
            events,
            users: u32::try_from(events / 105).unwrap_or(u32::MAX).max(1),
            items: (events / 100).clamp(100, 1_000_000) as u32,
            days: 30,
            start: NaiveDate::from_ymd_opt(2026, 1, 1).unwrap_or(NaiveDate::MIN),
            seed: 1,
            format: LogFormat::Jsonl,
            compression: Compression::None,
            files_per_day: 1,
            rates: Rates { late: 0.01, duplicate: 0.001, bad: 0.0001 },
            threads: 0,
            force: false,
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, problem: String| Err(ConfigError::Invalid { key: key.into(), problem });
        for (key, value) in [
            ("--events", self.events),
            ("--users", self.users.into()),
            ("--items", self.items.into()),
            ("--days", self.days.into()),
            ("--files-per-day", self.files_per_day.into()),
        ] {
            if value == 0 {
                return invalid(key, "must be at least 1".into());
            }
        }
        if self.days > DAYS_MAX {
            return invalid("--days", format!("must be at most {DAYS_MAX}"));
        }
        if self.files_per_day > 1_440 {
            return invalid("--files-per-day", "must be at most 1440, one a minute".into());
        }
        let end = self.start.checked_add_days(chrono::Days::new(self.days.into()));
        if self.start.year() < 1_973 || end.is_none_or(|end| end.year() > 2_099) {
            return invalid("--start", "the log must lie between 1973 and 2099".into());
        }
        let Rates { late, duplicate, bad } = self.rates;
        for (key, rate) in [("--late-rate", late), ("--duplicate-rate", duplicate), ("--bad-rate", bad)] {
            if !(0.0..=0.5).contains(&rate) {
                return invalid(key, "must lie between 0 and 0.5".into());
            }
        }
        Ok(())
    }
}

/// The reasons for which records of a log in this format can be bad.
pub fn flaws(format: LogFormat) -> &'static [Reason] {
    use Reason::{InvalidTime, InvalidUtf8, MalformedJson, MissingField, TimeOutOfRange, TooLong, WrongType};
    match format {
        LogFormat::Csv => &[MissingField, InvalidTime, TimeOutOfRange, WrongType, InvalidUtf8, TooLong],
        LogFormat::Jsonl => {
            &[MissingField, InvalidTime, TimeOutOfRange, WrongType, MalformedJson, InvalidUtf8, TooLong]
        }
        // Columns have types, and text is UTF-8.
        LogFormat::Parquet => &[MissingField, TimeOutOfRange, WrongType, TooLong],
    }
}
