//! The report of a consumer.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// Counts of a run: messages = accepted + duplicates + dead letters + forgotten, each of them in a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Messages.
    pub messages: u64,
    /// New rows of `events`.
    pub accepted: u64,
    /// Events that were stored before, by their ids.
    pub duplicates: u64,
    /// Messages that are no events.
    pub dead_letters: u64,
    /// Messages of users who were forgotten: not stored.
    pub forgotten: u64,
    /// Dead letters by reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Events with an earlier date than one before them in their partition.
    pub late: u64,
    /// Events with an earlier time than one before them in their partition.
    pub out_of_order: u64,
    /// Commits to `events`.
    pub commits: u64,
    /// The version of `events` that the last of them made.
    pub version: Option<u64>,
}

/// Offsets of messages that the broker had deleted before they were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpiredOffsets {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The first offset that is gone.
    pub from: i64,
    /// The first offset that still exists.
    pub to: i64,
}

impl ExpiredOffsets {
    /// Number of offsets.
    pub fn offsets(&self) -> u64 {
        u64::try_from(self.to - self.from).unwrap_or_default()
    }
}

impl fmt::Display for ExpiredOffsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, from, to } = self;
        write!(
            f,
            "`{topic}` partition {partition}: offsets {from} to {} are gone: the broker deleted them before they were read",
            to - 1
        )
    }
}

/// The result of `pipeline consume`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConsumeReport {
    /// Counts of messages, rows and commits.
    #[serde(flatten)]
    pub totals: Totals,
    /// Messages that the broker had deleted before they were read.
    pub gone: Vec<ExpiredOffsets>,
    /// Whether everything that was read is committed; the next consumer reads the rest again.
    pub drained: bool,
    /// Wall time.
    pub seconds: f64,
}

impl fmt::Display for ConsumeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { messages, accepted, duplicates, dead_letters, late, commits, .. } = &self.totals;
        let rate = *messages as f64 / self.seconds.max(1e-9);
        writeln!(f, "messages      {messages:>12}  {rate:.0}/s")?;
        writeln!(f, "  accepted    {accepted:>12}  {late} of them late")?;
        writeln!(f, "  duplicates  {duplicates:>12}")?;
        writeln!(f, "  dead letters{dead_letters:>12}")?;
        for (reason, n) in &self.totals.reasons {
            writeln!(f, "    {reason:<17}{n:>5}")?;
        }
        if self.totals.forgotten > 0 {
            writeln!(f, "  forgotten   {:>12}", self.totals.forgotten)?;
        }
        for gone in &self.gone {
            writeln!(f, "{gone}")?;
        }
        match self.totals.version {
            Some(version) => write!(f, "{commits} commits; events is at version {version}")?,
            None => write!(f, "nothing to commit")?,
        }
        if !self.drained {
            write!(f, "\nnot everything that was read is committed; the next consumer reads it again")?;
        }
        Ok(())
    }
}
