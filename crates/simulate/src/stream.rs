//! Sends the log as messages, in the order in which the records arrive.
//!
//! A message is the JSON line of the record; its key is the user's id (also for bad records), so a user's events
//! are in one partition, in order. When played live, an event happens at the time of sending: its times are shifted by
//! the same amount, no event is late, and a duplicate repeats the id but not the time, like a client that reads the
//! clock again.

use std::time::{Duration, Instant};

use terminal::{Interrupt, Progress};

use crate::day::{Days, LogRecord, StoppedEarly};
use crate::{DAY_MS, Log, LogCounts, Settings, lines, midnight_ms};

/// Records between two reports of the progress.
const RECORDS_PER_REPORT: u64 = 1_024;

/// Takes the messages of a log.
pub trait Destination {
    /// Takes a message; waits while its queue is full.
    ///
    /// # Errors
    ///
    /// [`DestinationLost`] if this and all later messages would be lost.
    fn send(&self, key: &[u8], value: &[u8]) -> Result<(), DestinationLost>;

    /// Waits until `due`, at most a tenth of a second; returns whether `due` is reached.
    fn wait_until(&self, due: Instant) -> bool;
}

/// The destination takes no more messages; it knows the reason.
#[derive(Debug)]
pub struct DestinationLost;

/// The pace of sending messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace {
    /// Messages a second; `None` sends as fast as possible.
    pub rate: Option<f64>,
    /// Whether events get the time at which they are sent.
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

/// The reason for the end of sending.
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
            // Computed from the count, so that later messages make up for a delay.
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
        // When played live, no event is late.
        self.counts.record(record, if self.pace.now { i64::MIN } else { midnight });
        if self.counts.records.is_multiple_of(RECORDS_PER_REPORT) {
            self.progress.add(RECORDS_PER_REPORT);
        }
        Ok(())
    }
}

impl LogRecord {
    /// Shifts the event's times so that it happens at `now_ms`.
    fn happens_at(&mut self, now_ms: i64) {
        let later = now_ms - self.event.ts;
        self.event.ts += later;
        if let Some(request) = &mut self.event.request {
            request.ts += later;
        }
    }
}
