//! Errors of `pipeline consume`.

use rdkafka::error::KafkaError;
use schemas::config::ConfigError;
use store::TableError;
use store::commit::CommitError;

use crate::kafka::decode::DecodeError;
use crate::privacy::ForgetError;

/// A consumer that stopped. Its commits stay; the next consumer reads everything else again.
#[derive(Debug, thiserror::Error)]
pub enum ConsumeError {
    /// The configuration. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A table's log or a shard cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The list of forgotten users cannot be read.
    #[error(transparent)]
    Forgotten(#[from] ForgetError),
    /// A table cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Columns of unequal lengths or types: a defect of this program.
    #[error("building rows of `{table}`")]
    Build {
        /// The table.
        table: &'static str,
        /// Why.
        source: arrow::error::ArrowError,
    },
    /// Messages cannot be decoded at present.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The times of the first events are implausible.
    #[error(
        "`{topic}`: of the first events after the start {problem} nothing of them was committed; set events.ts_format to \
         the topic's unit, or go on as it is with events.check_times = false"
    )]
    Times {
        /// The topic.
        topic: String,
        /// The suspicion, as a question.
        problem: String,
    },
    /// The counts of messages do not add up: a defect of this program.
    #[error(
        "{messages} messages were read, and {accounted} are accepted, duplicates, dead letters or forgotten; this is a \
         defect of the program, and the tables hold what was committed"
    )]
    LostCount {
        /// Messages.
        messages: u64,
        /// Messages with an outcome.
        accounted: u64,
    },
    /// librdkafka does not take its settings.
    #[error("Kafka's client refuses its settings: {0}")]
    Settings(String),
    /// No broker answers.
    #[error("no broker of kafka.brokers = \"{brokers}\" answered within {patience}: {problem}")]
    Away {
        /// As configured.
        brokers: String,
        /// How long they were asked.
        patience: String,
        /// The client's last word.
        problem: String,
    },
    /// There is no such topic.
    #[error("the brokers have no topic `{topic}`{hint}")]
    NoTopic {
        /// As configured.
        topic: String,
        /// The nearest that there is.
        hint: String,
    },
    /// The group assigned no partition to this consumer.
    #[error(
        "group `{group}` gave this consumer no partition of `{topic}` within {patience}; are there more consumers than partitions?"
    )]
    NoPartitions {
        /// The group.
        group: String,
        /// The topic.
        topic: String,
        /// How long it waited.
        patience: String,
    },
    /// The table's offset is beyond the end of the partition.
    #[error(
        "table `events` has stored `{topic}` partition {partition} up to offset {stored}, but the partition ends at {end}: the \
         topic was made anew, or these are other brokers; read it under another topic name, or into another root"
    )]
    Ahead {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The next offset by the table.
        stored: i64,
        /// The end by the broker.
        end: i64,
    },
    /// The topic has other ids than the one that was read before.
    #[error(
        "table `events` has stored `{topic}` partition {partition} up to offset {stored}, by the topic with {before}; the one \
         that the brokers have now has {now}, and the partition ends at {end}: the topic was made anew, or these are other \
         brokers; read it from its beginning with kafka.recreated = \"from-start\", or under another topic name, or into \
         another root"
    )]
    Recreated {
        /// The topic.
        topic: String,
        /// The partition.
        partition: i32,
        /// The next offset by the table.
        stored: i64,
        /// The ids by the table.
        before: String,
        /// The ids by the brokers.
        now: String,
        /// The end by the broker.
        end: i64,
    },
    /// Kafka's client failed for good.
    #[error("reading `{topic}` failed")]
    Kafka {
        /// The topic.
        topic: String,
        /// Why.
        source: KafkaError,
    },
    /// No progress with `--once`.
    #[error(
        "no message of `{topic}` came for {patience}, and the end that it had at the start is not reached in partitions \
         {partitions}; does another member of the group read them?"
    )]
    Stuck {
        /// The topic.
        topic: String,
        /// Those that are left.
        partitions: String,
        /// How long it waited.
        patience: String,
    },
    /// A thread of the consumer panicked or did not end in time.
    #[error("the {0} ended unexpectedly")]
    Thread(&'static str),
    /// The metrics' address cannot be used.
    #[error("--metrics {address}: {source}")]
    Metrics {
        /// As given.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}
