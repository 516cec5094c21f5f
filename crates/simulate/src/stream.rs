//! The log as messages, in the order in which the records arrive.
//!
//! A message is the JSON line of the record, its key the user's id (also where the record is bad), so that a user's
//! events are in one partition, in order. Played live, an event happens when it is sent: its times are shifted by
//! the same amount, nothing is late, and a duplicate repeats the id and not the time, as a client does that asks the
//! clock again.

use std::time::{Duration, Instant};

use terminal::{Interrupt, Progress};

use crate::day::{Days, LogRecord, StoppedEarly};
use crate::{DAY_MS, Log, LogCounts, Settings, lines, midnight_ms};

/// Records between two reports of the progress.
const RECORDS_PER_REPORT: u64 = 1_024;

/// Takes the messages of a log.
pub trait Destination {
    /// Takes a message; where too many wait, once there is room.
    ///
    /// # Errors
    ///
    /// [`DestinationLost`] where this and all later messages would be lost.
    fn send(&self, key: &[u8], value: &[u8]) -> Result<(), DestinationLost>;

    /// Lets time pass until `due`, but no more than a tenth of a second; whether it is there.
    fn wait_until(&self, due: Instant) -> bool;
}

/// No message gets through any more; the destination knows why.
#[derive(Debug)]
pub struct DestinationLost;

/// How fast messages are sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Messages a second; without it, as many as go through.
    pub rate: Option<f64>,
    /// Whether events happen when they are sent.
    pub now: bool,
}

/// The messages that a destination took.
#[derive(Debug)]
pub struct Sent {
    /// Their records.
    pub counts: LogCounts,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Whether an interrupt ended the log early.
    pub interrupted: bool,
}

impl Log<'_> {
    /// Sends all records to `destination`. Ends early when interrupted, or when the destination gives up.
    pub fn send(&self, destination: &impl Destination, pace: Pace, interrupt: &Interrupt) -> Sent {
        let mut sending = Sending {
            destination,
            pace,
            interrupt,
            started: Instant::now(),
            counts: LogCounts::default(),
            bytes: 0,
            key: Vec::new(),
            value: Vec::new(),
            progress: Progress::start("sending", self.settings.events, "events"),
        };
        let interrupted = match sending.all(self.settings, &self.days()) {
            Err(Halt::StoppedEarly) => true,
            Ok(()) | Err(Halt::DestinationLost) => false,
        };
        Sent { counts: sending.counts, bytes: sending.bytes, interrupted }
    }
}

/// Why nothing more is sent.
enum Halt {
    DestinationLost,
    StoppedEarly,
}

impl From<StoppedEarly> for Halt {
    fn from(_: StoppedEarly) -> Self {
        Self::StoppedEarly
    }
}

impl From<DestinationLost> for Halt {
    fn from(_: DestinationLost) -> Self {
        Self::DestinationLost
    }
}

struct Sending<'a, D> {
    destination: &'a D,
    pace: Pace,
    interrupt: &'a Interrupt,
    started: Instant,
    counts: LogCounts,
    bytes: u64,
    key: Vec<u8>,
    value: Vec<u8>,
    progress: Progress,
}

impl<D: Destination> Sending<'_, D> {
    fn all(&mut self, settings: &Settings, days: &Days<'_>) -> Result<(), Halt> {
        let interrupt = self.interrupt;
        for day in 0..settings.days {
            let midnight = midnight_ms(settings.start) + i64::from(day) * DAY_MS;
            days.records(day, || interrupt.requested(), |_, record| self.send(record, midnight))?;
        }
        Ok(())
    }

    fn send(&mut self, record: &LogRecord, midnight: i64) -> Result<(), Halt> {
        if self.interrupt.requested() {
            return Err(Halt::StoppedEarly);
        }
        if let Some(rate) = self.pace.rate {
            // By the count, so that what is lost to one message is made good by the next ones.
            let due = self.started + Duration::from_secs_f64(self.counts.records as f64 / rate);
            while !self.destination.wait_until(due) {
                if self.interrupt.requested() {
                    return Err(Halt::StoppedEarly);
                }
            }
        }
        let mut sent = *record;
        if self.pace.now {
            sent.happens_at(chrono::Utc::now().timestamp_millis());
        }
        self.key.clear();
        lines::user(&mut self.key, record.event.user);
        self.value.clear();
        lines::json(&mut self.value, &sent);
        self.value.pop_if(|end| *end == b'\n');
        self.destination.send(&self.key, &self.value)?;
        self.bytes += (self.key.len() + self.value.len()) as u64;
        // Played live, everything is in time.
        self.counts.record(record, if self.pace.now { i64::MIN } else { midnight });
        if self.counts.records.is_multiple_of(RECORDS_PER_REPORT) {
            self.progress.add(RECORDS_PER_REPORT);
        }
        Ok(())
    }
}

impl LogRecord {
    /// Shifts its times.
    fn happens_at(&mut self, now_ms: i64) {
        let later = now_ms - self.event.ts;
        self.event.ts += later;
        if let Some(request) = &mut self.event.request {
            request.ts += later;
        }
    }
}
