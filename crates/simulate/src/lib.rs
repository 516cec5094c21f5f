//! Generates a synthetic log of listening to music with known structure: as files ([`run`]), or as messages to a
//! [`Destination`] ([`Log::send`]). Knows neither Kafka nor the pipeline that reads the log.
//!
//! **The model.** A log has the following structure, which a trained model can find, and no other:
//!
//! - *Users* have a log-normal activity (σ = 1.1), higher in the evening (UTC) and on weekends. Each has a lasting
//!   taste and a passing one, points on a ring of 24 genres; the passing one wanders by about 0.15 genres a
//!   day. 30 % switch to their second language during the log.
//! - *Sessions* are up to 2 hours long and hours or days apart. 90 % of the visits in them are *requests*,
//!   3 in 10 of which change the theme (a genre and a language, by taste); 10 % are plays of the user's few
//!   favourites from the library, without a request and therefore repeated.
//! - A *request* exposes 10 items: 70 % of its theme, 20 % of a neighbouring genre, 10 % of the taste at
//!   large. The user looks at 1 to 10 of them, one after the other, so a play follows its request by the
//!   length of the plays before it; items off the theme are skipped more often. 6 % of the plays are liked.
//! - *Items* have 1 to 3 neighbouring genres and a language. Within its genre and language, an item has a rank
//!   with Zipf's law (exponent 1); 40 % of the offers are recent releases instead, of an age of 10 days on
//!   average, so releases become popular and fade. The catalogue reaches back 720 days; a quarter of it
//!   is released from 30 days before the log on.
//! - The next item depends on user, day, theme and rank only: there is no dependence between items.
//!
//! **The log.** A file holds the records that arrived on its day. Some sessions are uploaded 1 to 3 days late, some
//! events occur twice (within an hour), and some records are bad for one of the reasons of
//! [`Reason`](schemas::tables::Reason); [`Report`] counts each kind, and `pipeline ingest` must find the same
//! numbers. The log ends with its last day: records that would arrive later are left out.
//!
//! **Equal runs.** Every number is a function of the seed and of its purpose, so a day's files depend
//! neither on other days nor on threads: equal settings give equal bytes.
//!
//! **Memory.** 12 bytes an item, and for every thread the buffers of [`day`] and the writers: 8 bytes a session of
//! one day, a quarter of an hour of records, one buffer or row group. Memory does not grow with the length of the
//! log.

mod catalogue;
mod configuration;
mod day;
mod error;
mod lines;
mod listener;
mod output;
mod parquet;
mod random;
mod report;
mod session;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod write;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use chrono::{Datelike, NaiveDate, NaiveTime};
use schemas::config::{ConfigError, Kafka};
use terminal::Interrupt;

use catalogue::SimulatedCatalogue;
use day::Days;
use listener::{Listeners, SESSIONS_MAX};
use output::LogFile;
use session::{SessionId, Stage};

pub use error::SimulateError;
pub use report::{LogCounts, Report};
pub use settings::{Compression, LogFormat, Rates, Settings, flaws};
pub use stream::{Destination, DestinationLost, Pace, Sent};

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
/// Maximum bytes of a record in the written configuration.
const MAX_RECORD_BYTES: usize = 4_096;
/// The length of an id that is too long.
const OVER_LONG_BYTES: usize = MAX_RECORD_BYTES + 1;
/// Added to a time that is out of range: two centuries, in milliseconds.
const OUT_OF_RANGE_MS: i64 = 200 * 366 * DAY_MS;

/// Midnight UTC of the day, in epoch milliseconds.
fn midnight_ms(day: NaiveDate) -> i64 {
    day.and_time(NaiveTime::MIN).and_utc().timestamp_millis()
}

/// Writes a log, its catalogue and a configuration that reads them into `directory`.
///
/// # Errors
///
/// Any [`SimulateError`]: settings that break a rule, a directory that is not empty (without `force`), a file that cannot
/// be written, or an interrupt.
pub fn run(settings: &Settings, directory: &Path, interrupt: &Interrupt) -> Result<Report, SimulateError> {
    let started = Instant::now();
    let log = Log::new(settings)?;
    output::prepare(directory, settings.force)?;

    let mut bytes = log.write_catalogue(directory)?;
    let (counts, event_bytes) = write::days(settings, directory, &log.days(), interrupt)?;
    bytes += event_bytes;
    bytes += log.write_configuration(directory, None)?;
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

/// A log with its catalogue and users; its events are computed when they are written or sent.
#[derive(Debug)]
pub struct Log<'a> {
    settings: &'a Settings,
    catalogue: SimulatedCatalogue,
    listeners: Listeners,
}

impl<'a> Log<'a> {
    /// The log of `settings`.
    ///
    /// # Errors
    ///
    /// Settings that break a rule.
    pub fn new(settings: &'a Settings) -> Result<Self, SimulateError> {
        settings.validate()?;
        let catalogue = SimulatedCatalogue::new(settings.seed, settings.items, settings.days);
        let listeners = listeners(settings, &catalogue)?;
        Ok(Self { settings, catalogue, listeners })
    }

    /// Writes the catalogue, and a configuration that reads the events from `kafka`, into `directory`; returns the
    /// configuration's path.
    ///
    /// # Errors
    ///
    /// A directory that is not empty, without `force`; a file that cannot be written.
    pub fn write_reader(&self, directory: &Path, kafka: &Kafka) -> Result<PathBuf, SimulateError> {
        output::prepare(directory, self.settings.force)?;
        self.write_catalogue(directory)?;
        self.write_configuration(directory, Some(kafka))?;
        Ok(directory.join(output::CONFIG))
    }

    /// Writes the catalogue; returns its size in bytes.
    fn write_catalogue(&self, directory: &Path) -> Result<u64, SimulateError> {
        write_whole(directory, output::ITEMS, |out| self.catalogue.write(self.settings.start, out))
    }

    /// Writes the configuration that reads the log, from a topic if one is given; returns its size in bytes.
    fn write_configuration(&self, directory: &Path, topic: Option<&Kafka>) -> Result<u64, SimulateError> {
        let text = configuration::text(self.settings, topic);
        write_whole(directory, output::CONFIG, |out| out.write_all(text.as_bytes()))
    }

    fn days(&self) -> Days<'_> {
        let Settings { seed, users, start, rates, format, .. } = *self.settings;
        let stage = Stage::new(seed, &self.catalogue, &self.listeners);
        Days::new(seed, stage, users, midnight_ms(start), rates, flaws(format))
    }
}

/// The users, with the number of sessions that gives about the wanted events, by the mean length of sampled sessions.
fn listeners(settings: &Settings, catalogue: &SimulatedCatalogue) -> Result<Listeners, ConfigError> {
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

/// Writes a whole file; returns its size in bytes.
fn write_whole(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut std::io::BufWriter<std::fs::File>) -> std::io::Result<()>,
) -> Result<u64, SimulateError> {
    let (file, out) = LogFile::create(directory.join(name))?;
    let mut out = std::io::BufWriter::new(out);
    write(&mut out).and_then(|()| out.flush()).map_err(|e| file.fail(e))?;
    file.complete()
}
