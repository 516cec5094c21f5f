//! `[memory]`: how the jobs of one machine share its memory.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Kafka, invalid};
use crate::memory::MemorySize;

/// Batches of messages that a consumer holds at most: one fills, one waits, one is written, and what is made of it. They have
/// half of its share; the ids of stored events have the other half.
const BATCHES: u64 = 4;

/// `[memory]`: what grows with the log is bounded by these budgets, and the rest goes to temporary files; programs, models and
/// catalogues come on top. `--memory` of a command that is run by hand overrides its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// For all jobs together. Default: half of the machine's, or of the control group's limit where that is lower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<MemorySize>,
    /// The share of `climber daily`, from 0 to 1.
    pub daily: f64,
    /// The share of `climber refresh`.
    pub refresh: f64,
    /// The share of `pipeline consume`, whose batches are no larger than an eighth of it; half of it holds the ids of stored events.
    pub consume: f64,
}

impl Default for Memory {
    fn default() -> Self {
        Self { total: None, daily: 0.6, refresh: 0.2, consume: 0.2 }
    }
}

impl Memory {
    /// The budget of `climber daily`.
    pub fn of_daily(&self) -> MemorySize {
        self.share(self.daily)
    }

    /// The budget of `climber refresh`.
    pub fn of_refresh(&self) -> MemorySize {
        self.share(self.refresh)
    }

    /// `kafka`, with batches that fit into the consumer's share.
    pub fn for_consumer(&self, kafka: &Kafka) -> Kafka {
        let batch = MemorySize::bytes(self.share(self.consume).bytes / 2 / BATCHES);
        Kafka { batch_bytes: kafka.batch_bytes.min(batch), ..kafka.clone() }
    }

    /// What a consumer may hold in ids of stored events.
    pub fn ids_of_consumer(&self) -> MemorySize {
        MemorySize::bytes(self.share(self.consume).bytes / 2)
    }

    fn share(&self, share: f64) -> MemorySize {
        let total = self.total.unwrap_or_else(MemorySize::half_of_machine);
        MemorySize::bytes((total.bytes as f64 * share) as u64)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let shares = [("daily", self.daily), ("refresh", self.refresh), ("consume", self.consume)];
        for (key, share) in shares {
            if !(share > 0.0 && share <= 1.0) {
                return invalid(format!("memory.{key}"), "must be a share above 0 and at most 1");
            }
        }
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        if sum > 1.0 + 1e-9 {
            return invalid("memory", format!("the shares add up to {sum:.2}, which is more than there is"));
        }
        if self.total.is_some_and(|total| total.bytes < 16 << 20) {
            return invalid("memory.total", "must be at least 16MiB");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_jobs_of_a_machine_share_what_there_is() {
        let memory = Memory { total: Some(MemorySize::bytes(1_000 << 20)), ..Memory::default() };
        let consumer = memory.for_consumer(&Kafka::default());
        assert_eq!(memory.of_daily().bytes, 600 << 20);
        assert_eq!(memory.of_refresh().bytes, 200 << 20);
        assert_eq!(consumer.batch_bytes.bytes, 25 << 20);
        let of_consumer = BATCHES * consumer.batch_bytes.bytes + memory.ids_of_consumer().bytes;
        let together = memory.of_daily().bytes + memory.of_refresh().bytes + of_consumer;
        assert!(together <= 1_000 << 20);
        // A smaller batch stays as it is.
        let small = Kafka { batch_bytes: MemorySize::bytes(1 << 20), ..Kafka::default() };
        assert_eq!(memory.for_consumer(&small), small);
        let whole = Memory::default();
        assert!(whole.of_daily().bytes + whole.of_refresh().bytes < MemorySize::half_of_machine().bytes);
    }

    #[test]
    fn shares_are_of_one_whole() {
        assert!(Memory::default().validate().is_ok());
        for (memory, key) in [
            (Memory { daily: 0.7, ..Memory::default() }, "memory"),
            (Memory { refresh: 0.0, ..Memory::default() }, "memory.refresh"),
            (Memory { consume: f64::NAN, ..Memory::default() }, "memory.consume"),
            (Memory { total: Some(MemorySize::bytes(8)), ..Memory::default() }, "memory.total"),
        ] {
            assert!(memory.validate().unwrap_err().to_string().starts_with(key), "{memory:?}");
        }
    }
}
