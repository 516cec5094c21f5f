//! `[memory]`: how the jobs of one machine share its memory.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Kafka, invalid};
use crate::memory::MemorySize;

/// Most batches of messages that a consumer holds: one filling, one waiting, one being written, and its output. They get half of
/// its share; the ids of stored events get the other half.
const BATCHES: u64 = 4;

/// `[memory]`: budgets for everything that grows with the log; the rest goes to temporary files. Programs, models and catalogues
/// come on top. `--memory` of a command run by hand overrides its budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Budget of all jobs together. Default: half of the machine's memory, or of the control group's limit if lower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<MemorySize>,
    /// Share of `climber daily`, in `(0, 1]`.
    pub daily: f64,
    /// Share of `climber refresh`, in `(0, 1]`.
    pub refresh: f64,
    /// Share of `pipeline consume`, in `(0, 1]`: half holds the ids of stored events, and a batch takes at most an eighth.
    pub consume: f64,
}

impl Default for Memory {
    fn default() -> Self {
        Self { total: None, daily: 0.6, refresh: 0.2, consume: 0.2 }
    }
}

impl Memory {
    /// Returns the budget of `climber daily`.
    pub fn of_daily(&self) -> MemorySize {
        self.share(self.daily)
    }

    /// Returns the budget of `climber refresh`.
    pub fn of_refresh(&self) -> MemorySize {
        self.share(self.refresh)
    }

    /// Returns `kafka` with `batch_bytes` limited to the consumer's share.
    pub fn for_consumer(&self, kafka: &Kafka) -> Kafka {
        let batch = MemorySize::bytes(self.share(self.consume).bytes / 2 / BATCHES);
        Kafka { batch_bytes: kafka.batch_bytes.min(batch), ..kafka.clone() }
    }

    /// Returns the consumer's budget for ids of stored events.
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
        // A smaller batch is kept.
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
