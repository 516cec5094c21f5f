//! Sends a simulated log to a topic: the crate `simulate` generates the messages, a [`Producer`] sends them.

#[cfg(test)]
mod tests;

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::time::Instant;

use schemas::config::Kafka;
use serde::Serialize;
use simulate::{Destination, DestinationLost, Log, LogCounts, Pace, Sent, Settings, SimulateError};
use terminal::Interrupt;

use super::producer::{Producer, SendError};

/// The target topic and the pace of the log.
#[derive(Debug, Clone)]
pub struct TopicSettings {
    /// Brokers, topic and librdkafka's settings.
    pub kafka: Kafka,
    /// The pace of sending.
    pub pace: Pace,
}

/// The log could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SimulatedError {
    /// The log, or a file beside it.
    #[error(transparent)]
    Simulate(#[from] SimulateError),
    /// Not all messages were acknowledged.
    #[error(transparent)]
    Send(#[from] SendError),
}

/// One run of `pipeline simulate --topic`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopicReport {
    /// The sent records by kind, all of them acknowledged.
    #[serde(flatten)]
    pub counts: LogCounts,
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

/// Sends a log to a topic; writes its catalogue and a configuration into `directory`, if given.
///
/// # Errors
///
/// [`SimulatedError`] if the log cannot be generated or written, or not all messages are acknowledged.
pub fn send(
    settings: &Settings,
    to: &TopicSettings,
    directory: Option<&Path>,
    interrupt: &Interrupt,
) -> Result<TopicReport, SimulatedError> {
    let log = Log::new(settings)?;
    let producer = Producer::connect(&to.kafka, &to.kafka.topic, interrupt)?;
    let config = directory.map(|directory| log.write_reader(directory, &to.kafka)).transpose()?;
    let started = Instant::now();
    let Sent { counts, bytes, interrupted } = log.send(&producer, to.pace, interrupt);
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

impl Destination for Producer {
    fn send(&self, key: &[u8], value: &[u8]) -> Result<(), DestinationLost> {
        // `Producer::finish` returns the reason.
        Self::send(self, Some(key), Some(value), 0).map_err(|_| DestinationLost)
    }

    fn wait_until(&self, due: Instant) -> bool {
        Self::wait_until(self, due)
    }
}

impl Display for TopicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogCounts { records, events, late, duplicates, bad } = &self.counts;
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
