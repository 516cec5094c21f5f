//! The log as messages of a topic, in the order in which the records arrive.
//!
//! A message is the JSON line of the record, its key the user's id (also where the record is bad), so that a user's
//! events are in one partition, in order. Played live, an event happens when it is sent: its times are shifted by
//! the same amount, nothing is late, and a duplicate repeats the id and not the time, as a client does that asks the
//! clock again.

use std::fmt::{self, Display};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use schemas::config::Kafka;
use serde::Serialize;
use terminal::{Interrupt, Progress};

use super::day::{Days, Record, Stopped};
use super::{
    Catalogue, Counts, DAY_MS, Settings, SimulateError, Stage, configuration, lines, listeners, midnight_ms,
    output, settings, write_whole,
};
use crate::producer::{GaveUp, Producer, SendError};

/// Records between two reports of the progress.
const RECORDS_PER_REPORT: u64 = 1_024;

/// Where the log goes, and how fast.
#[derive(Debug, Clone)]
pub struct TopicSettings {
    /// Brokers, topic and librdkafka's settings.
    pub kafka: Kafka,
    /// Messages a second; without it, as many as go through.
    pub rate: Option<f64>,
    /// Whether events happen when they are sent.
    pub now: bool,
}

/// One run of `pipeline simulate --topic`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopicReport {
    /// What was sent, all of it acknowledged.
    #[serde(flatten)]
    pub counts: Counts,
    /// Users of the log; the least active may have no event.
    pub users: u32,
    /// Items of the catalogue.
    pub items: u32,
    /// The topic.
    pub topic: String,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Wall time, until the last acknowledgement.
    pub seconds: f64,
    /// Records sent in a second.
    pub records_per_second: f64,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
    /// The configuration that reads the topic, if a directory was given.
    pub config: Option<PathBuf>,
}

/// Sends a log to a topic; writes its catalogue and a configuration into `directory`, if there is one.
pub fn run_to_topic(
    settings: &Settings,
    to: &TopicSettings,
    directory: Option<&Path>,
    interrupt: &Interrupt,
) -> Result<TopicReport, SimulateError> {
    settings.validate()?;
    let catalogue = Catalogue::new(settings.seed, settings.items, settings.days);
    let listeners = listeners(settings, &catalogue)?;
    let producer = Producer::connect(&to.kafka, &to.kafka.topic, interrupt)?;
    let mut config = None;
    if let Some(directory) = directory {
        output::prepare(directory, settings.force)?;
        write_whole(directory, output::ITEMS, |out| catalogue.write(settings.start, out))?;
        let text = configuration::text(settings, Some(&to.kafka));
        write_whole(directory, output::CONFIG, |out| out.write_all(text.as_bytes()))?;
        config = Some(directory.join(output::CONFIG));
    }
    let days = Days::new(
        settings.seed,
        Stage::new(settings.seed, &catalogue, &listeners),
        settings.users,
        midnight_ms(settings.start),
        settings.rates,
        settings::flaws(settings.format),
    );
    let started = Instant::now();
    let mut sending = Sending {
        to,
        producer: &producer,
        interrupt,
        started,
        counts: Counts::default(),
        bytes: 0,
        key: Vec::new(),
        value: Vec::new(),
        progress: Progress::start("sending", settings.events, "events"),
    };
    let interrupted = match sending.all(settings, &days) {
        Err(Halt::Stopped) => true,
        // Why, the producer knows.
        Ok(()) | Err(Halt::GaveUp) => false,
    };
    let Sending { counts, bytes, .. } = sending;
    producer.finish()?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(TopicReport {
        records_per_second: counts.records as f64 / seconds,
        counts,
        users: settings.users,
        items: settings.items,
        topic: to.kafka.topic.clone(),
        bytes,
        seconds,
        interrupted,
        config,
    })
}

/// Why nothing more is sent.
enum Halt {
    GaveUp,
    Stopped,
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl From<GaveUp> for Halt {
    fn from(_: GaveUp) -> Self {
        Self::GaveUp
    }
}

impl From<SendError> for SimulateError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Setting(error) => Self::Setting(error),
            error => Self::Send(error),
        }
    }
}

struct Sending<'a> {
    to: &'a TopicSettings,
    producer: &'a Producer,
    interrupt: &'a Interrupt,
    started: Instant,
    counts: Counts,
    bytes: u64,
    key: Vec<u8>,
    value: Vec<u8>,
    progress: Progress,
}

impl Sending<'_> {
    fn all(&mut self, settings: &Settings, days: &Days<'_>) -> Result<(), Halt> {
        let interrupt = self.interrupt;
        for day in 0..settings.days {
            let midnight = midnight_ms(settings.start) + i64::from(day) * DAY_MS;
            days.records(day, || interrupt.requested(), |_, record| self.send(record, midnight))?;
        }
        Ok(())
    }

    fn send(&mut self, record: &Record, midnight: i64) -> Result<(), Halt> {
        if self.interrupt.requested() {
            return Err(Halt::Stopped);
        }
        if let Some(rate) = self.to.rate {
            // By the count, so that what is lost to one message is made good by the next ones.
            let due = self.started + Duration::from_secs_f64(self.counts.records as f64 / rate);
            while !self.producer.wait_until(due) {
                if self.interrupt.requested() {
                    return Err(Halt::Stopped);
                }
            }
        }
        let mut sent = *record;
        if self.to.now {
            sent.happens_at(chrono::Utc::now().timestamp_millis());
        }
        self.key.clear();
        lines::user(&mut self.key, record.event.user);
        self.value.clear();
        lines::json(&mut self.value, &sent);
        self.value.pop_if(|end| *end == b'\n');
        self.producer.send(Some(&self.key), Some(&self.value), 0)?;
        self.bytes += (self.key.len() + self.value.len()) as u64;
        // Played live, everything is in time.
        self.counts.record(record, if self.to.now { i64::MIN } else { midnight });
        if self.counts.records.is_multiple_of(RECORDS_PER_REPORT) {
            self.progress.add(RECORDS_PER_REPORT);
        }
        Ok(())
    }
}

impl Record {
    /// Shifts its times.
    fn happens_at(&mut self, now_ms: i64) {
        let later = now_ms - self.event.ts;
        self.event.ts += later;
        if let Some(request) = &mut self.event.request {
            request.ts += later;
        }
    }
}

impl Display for TopicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { records, events, late, duplicates, bad } = &self.counts;
        if self.interrupted {
            writeln!(f, "stopped on request; what was sent:")?;
        }
        let megabytes = self.bytes as f64 / 1e6;
        writeln!(f, "records      {records:>14}   acknowledged by topic {}, {megabytes:.1} MB", self.topic)?;
        writeln!(f, "events       {events:>14}   {late} of them late")?;
        writeln!(f, "duplicates   {duplicates:>14}")?;
        writeln!(f, "bad records  {:>14}", bad.values().sum::<u64>())?;
        for (reason, n) in bad {
            writeln!(f, "  {reason:<18} {n:>6}")?;
        }
        writeln!(f, "users {}, items {}", self.users, self.items)?;
        write!(f, "{:.1} s, {:.0} records/s", self.seconds, self.records_per_second)?;
        if let Some(config) = &self.config {
            write!(f, "\n\nnext:\n  pipeline consume --config {}", config.display())?;
        }
        Ok(())
    }
}
