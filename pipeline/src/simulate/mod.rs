//! `pipeline simulate`: a synthetic log of listening to music, with structure that is known.
//!
//! **The model.** What a trained model can find in such a log, and what not, is this:
//!
//! - *Users* listen log-normally much (σ = 1.1), more in the evening (UTC) and on weekends. Each has a lasting
//!   taste and a passing one, points on a ring of 24 genres; the passing one wanders by about 0.15 genres a
//!   day. 30 % change over to their second language one day.
//! - *Sessions* are up to 2 hours long and hours or days apart. 90 % of what happens in them are *requests*,
//!   3 in 10 of which change the theme (a genre and a language, by taste); 10 % are plays of the user's few
//!   favourites from the library, without a request, and so repeated.
//! - A *request* exposes 10 items: 70 % of its theme, 20 % of a neighbouring genre, 10 % of the taste at
//!   large. The user looks at 1 to 10 of them, one after the other, so that plays follow their request by the
//!   length of what was played before; off the theme more is skipped. 6 % of the plays are liked.
//! - *Items* have 1 to 3 neighbouring genres and a language. In its genre and language an item has a rank
//!   with Zipf's law (exponent 1); 40 % of the offers are recent releases instead, of an age of 10 days on
//!   average, so that releases become popular and fade.
//! - What one item is followed by depends on user, day, theme and rank only: no item calls for another.
//!
//! **The log.** A file holds what arrived on its day. Some sessions are handed in 1 to 3 days late, some
//! events stand there twice (within an hour), and some records are bad in the ways of
//! [`Reason`](schemas::tables::Reason); [`Report`] counts each kind, and `pipeline ingest` must find the same
//! numbers. The log ends with its last day: what would arrive later is not there.
//!
//! **Equal runs.** Every number is a function of the seed and of what it is for, so a day's files depend
//! neither on other days nor on threads: equal settings give equal bytes.
//!
//! **Memory.** 12 bytes an item, and for every thread what [`day`] and the writers hold: 8 bytes a session of
//! one day, a quarter of an hour of records, one buffer or row group. Nothing grows with the length of the
//! log.

mod catalogue;
mod day;
mod error;
mod lines;
mod listener;
mod output;
mod parquet;
mod random;
mod report;
mod session;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use chrono::{Datelike, NaiveDate, NaiveTime};
use schemas::cli::{Interrupt, Progress};
use schemas::config::{ConfigError, Format};
use schemas::tables::Reason;

use catalogue::Catalogue;
use day::{Days, Stopped};
use listener::{Listeners, SESSIONS_MAX};
use output::{EventFile, NewFile};
use session::{SessionId, Stage};

pub use error::SimulateError;
pub use report::{Counts, Report};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// The longest log, in days.
const DAYS_MAX: u32 = 4_096;
/// What the written configuration accepts as a record, in bytes.
const MAX_RECORD_BYTES: usize = 4_096;
/// The length of an id that is too long.
const OVER_LONG_BYTES: usize = MAX_RECORD_BYTES + 1;
/// Added to a time that is out of range: two centuries, in milliseconds.
const OUT_OF_RANGE_MS: i64 = 200 * 366 * DAY_MS;
/// Records between two reports of a thread's progress.
const RECORDS_PER_REPORT: u64 = 16_384;

/// What to simulate.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Events to expect; the log has about so many.
    pub events: u64,
    /// Users.
    pub users: u32,
    /// Items of the catalogue.
    pub items: u32,
    /// Days, each with its files.
    pub days: u32,
    /// The first day, UTC.
    pub start: NaiveDate,
    /// Decides everything random.
    pub seed: u64,
    /// Format of the files of events.
    pub format: Format,
    /// How they are packed; Parquet is packed inside.
    pub compression: Compression,
    /// Files that a day is divided into, by time.
    pub files_per_day: u32,
    /// What is wrong with the log.
    pub rates: Rates,
    /// Threads that write days side by side; 0 takes one for each core.
    pub threads: usize,
    /// Whether an earlier simulation in the directory is replaced.
    pub force: bool,
}

/// How files of events are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

/// Shares of what is wrong with a log, each from 0 to 0.5.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Of the sessions, those that are handed in days later.
    pub late: f64,
    /// Of the events, those that stand in the log twice.
    pub duplicate: f64,
    /// Of the records, those that cannot be used.
    pub bad: f64,
}

impl Settings {
    /// A log of about `events` events, everything else by default: 105 events a user, 100 an item (but 100 to
    /// 1,000,000 items), 30 days from 2026-01-01 on, JSON Lines.
    pub fn new(events: u64) -> Self {
        Self {
            events,
            users: u32::try_from(events / 105).unwrap_or(u32::MAX).max(1),
            items: (events / 100).clamp(100, 1_000_000) as u32,
            days: 30,
            start: NaiveDate::from_ymd_opt(2026, 1, 1).unwrap_or(NaiveDate::MIN),
            seed: 1,
            format: Format::Jsonl,
            compression: Compression::None,
            files_per_day: 1,
            rates: Rates { late: 0.01, duplicate: 0.001, bad: 0.0001 },
            threads: 0,
            force: false,
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
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

/// Midnight UTC of the day, in epoch milliseconds.
fn midnight_ms(day: NaiveDate) -> i64 {
    day.and_time(NaiveTime::MIN).and_utc().timestamp_millis()
}

/// What a record of the format can have wrong with it.
fn flaws(format: Format) -> &'static [Reason] {
    use Reason::{InvalidTime, InvalidUtf8, MalformedJson, MissingField, TimeOutOfRange, TooLong, WrongType};
    match format {
        Format::Csv => &[MissingField, InvalidTime, TimeOutOfRange, WrongType, InvalidUtf8, TooLong],
        Format::Jsonl => {
            &[MissingField, InvalidTime, TimeOutOfRange, WrongType, MalformedJson, InvalidUtf8, TooLong]
        }
        // Columns have types, and text is UTF-8.
        Format::Parquet => &[MissingField, TimeOutOfRange, WrongType, TooLong],
    }
}

/// Writes a log, its catalogue and a configuration that reads them into `directory`.
pub fn run(settings: &Settings, directory: &Path, interrupt: &Interrupt) -> Result<Report, SimulateError> {
    let started = Instant::now();
    settings.validate()?;
    let catalogue = Catalogue::new(settings.seed, settings.items, settings.days);
    let listeners = listeners(settings, &catalogue)?;
    output::prepare(directory, settings.force)?;

    let mut bytes = write_whole(directory, output::ITEMS, |out| catalogue.write(settings.start, out))?;
    let days = Days::new(
        settings.seed,
        Stage::new(settings.seed, &catalogue, &listeners),
        settings.users,
        midnight_ms(settings.start),
        settings.rates,
        flaws(settings.format),
    );
    let (counts, event_bytes) = write_days(settings, directory, &days, interrupt)?;
    bytes += event_bytes;
    let text = output::configuration(settings);
    bytes += write_whole(directory, output::CONFIG, |out| out.write_all(text.as_bytes()))?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Report {
        records_per_second: counts.records as f64 / seconds,
        counts,
        users: settings.users,
        items: settings.items,
        files: u64::from(settings.days) * u64::from(settings.files_per_day),
        bytes,
        seconds,
        config: directory.join(output::CONFIG),
    })
}

/// Users who begin as many sessions as it takes for the events, as long as sessions are.
fn listeners(settings: &Settings, catalogue: &Catalogue) -> Result<Listeners, ConfigError> {
    const SAMPLE: u32 = 4_096;
    /// The busiest users have 24 times the mean; a day has no room for more sessions than this.
    const SESSIONS_A_DAY_MAX: f64 = SESSIONS_MAX as f64 / 3.0;
    let Settings { seed, users, days, .. } = *settings;
    let weekday = settings.start.weekday().num_days_from_monday();
    let sample = Listeners::new(seed, users, days, weekday, 1.0);
    let stage = Stage::new(seed, catalogue, &sample);
    let mut events = Vec::new();
    for ordinal in 0..SAMPLE {
        let id = SessionId { user: ordinal % users, day: ordinal % days, ordinal: ordinal % SESSIONS_MAX };
        stage.play(id, 0, &mut events);
    }
    let sessions = settings.events as f64 * f64::from(SAMPLE) / events.len() as f64;
    let a_day = sessions / f64::from(users) / f64::from(days);
    if a_day > SESSIONS_A_DAY_MAX {
        let problem = format!(
            "{} events are {a_day:.0} sessions a day for each of {users} users in {days} days; at most {SESSIONS_A_DAY_MAX} \
             fit: take more --users or --days",
            settings.events
        );
        return Err(ConfigError::Invalid { key: "--events".into(), problem });
    }
    Ok(Listeners::new(seed, users, days, weekday, sessions))
}

/// Writes a whole file; its size in bytes.
fn write_whole(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut std::io::BufWriter<std::fs::File>) -> std::io::Result<()>,
) -> Result<u64, SimulateError> {
    let (file, out) = NewFile::create(directory.join(name))?;
    let mut out = std::io::BufWriter::new(out);
    write(&mut out).and_then(|()| out.flush()).map_err(|e| file.fail(e))?;
    file.complete()
}

/// Writes the files of all days, as many days at a time as there are threads.
fn write_days(
    settings: &Settings,
    directory: &Path,
    days: &Days<'_>,
    interrupt: &Interrupt,
) -> Result<(Counts, u64), SimulateError> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if settings.threads == 0 { cores() } else { settings.threads };
    let threads = threads.min(settings.days as usize);
    let (next, failed, files) = (AtomicU32::new(0), AtomicBool::new(false), AtomicU64::new(0));
    let stopped = || interrupt.requested() || failed.load(Ordering::Relaxed);
    let (report, reports) = mpsc::channel();
    let work = |report: mpsc::Sender<u64>| {
        let mut total = (Counts::default(), 0);
        loop {
            let day = next.fetch_add(1, Ordering::Relaxed);
            if day >= settings.days {
                return Ok(total);
            }
            let job = DayJob { settings, directory, day, files: &files, report: &report };
            match job.write(days, stopped) {
                Ok((counts, bytes)) => {
                    total.0.add(&counts);
                    total.1 += bytes;
                }
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let mut progress = Progress::start("simulating", settings.events, "events");
    let results: Vec<Result<(Counts, u64), Halt>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let report = report.clone();
                scope.spawn(|| work(report))
            })
            .collect();
        drop(report);
        reports.iter().for_each(|records| progress.add(records));
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    });

    let mut total = (Counts::default(), 0);
    let mut halted = false;
    for result in results {
        match result {
            Ok((counts, bytes)) => {
                total.0.add(&counts);
                total.1 += bytes;
            }
            // Why the others stopped.
            Err(Halt::Failed(error)) => return Err(error),
            Err(Halt::Stopped) => halted = true,
        }
    }
    if halted {
        let of = u64::from(settings.days) * u64::from(settings.files_per_day);
        return Err(SimulateError::Interrupted { files: files.into_inner(), of });
    }
    Ok(total)
}

/// Why a thread ended early.
enum Halt {
    Failed(SimulateError),
    Stopped,
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<SimulateError> for Halt {
    fn from(error: SimulateError) -> Self {
        Self::Failed(error)
    }
}

/// The files of one day.
struct DayJob<'a> {
    settings: &'a Settings,
    directory: &'a Path,
    day: u32,
    /// Complete files of all days.
    files: &'a AtomicU64,
    report: &'a mpsc::Sender<u64>,
}

impl DayJob<'_> {
    fn write(&self, days: &Days<'_>, stopped: impl Fn() -> bool) -> Result<(Counts, u64), Halt> {
        let files = i64::from(self.settings.files_per_day);
        let midnight = midnight_ms(self.settings.start) + i64::from(self.day) * DAY_MS;
        let mut counts = Counts::default();
        let (mut bytes, mut at) = (0, 0);
        let mut file = self.create(at)?;
        days.records(self.day, stopped, |arrival, record| -> Result<(), Halt> {
            while at < arrival * files / DAY_MS {
                at += 1;
                bytes += self.finish(std::mem::replace(&mut file, self.create(at)?))?;
            }
            file.write(record)?;
            counts.record(record, midnight);
            if counts.records.is_multiple_of(RECORDS_PER_REPORT) {
                // Nobody listens once another thread has failed.
                let _ = self.report.send(RECORDS_PER_REPORT);
            }
            Ok(())
        })?;
        while at + 1 < files {
            at += 1;
            bytes += self.finish(std::mem::replace(&mut file, self.create(at)?))?;
        }
        bytes += self.finish(file)?;
        let _ = self.report.send(counts.records % RECORDS_PER_REPORT);
        Ok((counts, bytes))
    }

    /// Begins the file at position `at` of the day's files; they sort by name.
    fn create(&self, at: i64) -> Result<EventFile, SimulateError> {
        let Settings { start, format, compression, files_per_day, .. } = *self.settings;
        let date = start + chrono::Days::new(self.day.into());
        let mut name = date.to_string();
        if files_per_day > 1 {
            let width = files_per_day.to_string().len();
            name.push_str(&format!("-{:0width$}", at + 1));
        }
        name.push_str(output::extension(format, compression));
        EventFile::create(self.directory.join(output::EVENTS).join(name), format, compression)
    }

    fn finish(&self, file: EventFile) -> Result<u64, SimulateError> {
        let bytes = file.finish()?;
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(bytes)
    }
}
