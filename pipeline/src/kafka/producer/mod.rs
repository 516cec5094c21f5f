//! Sends messages to a topic, each once, and reports which were acknowledged.
//!
//! The producer is idempotent: librdkafka sends unacknowledged messages again, and the broker stores them once,
//! in the order of sending. A message without an answer after `kafka.patience` has failed, and so has the run: the
//! broker is away. The queue of messages to be sent takes at most [`QUEUE_KIB`].

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig,
};
use schemas::config::{ConfigError, Kafka, Span};
use terminal::Interrupt;

/// Maximum size of the queue of messages to be sent, in KiB.
const QUEUE_KIB: u32 = 64 << 10;
/// Interval between two checks for an interrupt.
const LOOK: Duration = Duration::from_millis(100);
/// Maximum time of one request for the topic's metadata.
const ASK: Duration = Duration::from_secs(1);

/// Not all messages were acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// A setting that breaks a rule. (Not transparent: the exit code is decided by finding the cause.)
    #[error("{0}")]
    Setting(#[from] ConfigError),
    /// librdkafka refuses its settings.
    #[error("cannot make a producer: kafka.properties")]
    Client(#[source] KafkaError),
    /// No broker answers, or the topic does not exist.
    #[error("topic {topic} cannot be reached at {brokers}: within {patience} (kafka.patience) {problem}")]
    Unreachable {
        /// The topic.
        topic: String,
        /// The brokers.
        brokers: String,
        /// How long was waited.
        patience: Span,
        /// The latest problem.
        problem: String,
    },
    /// Ctrl-C before anything was sent.
    #[error("stopped on request; nothing was sent")]
    Interrupted,
    /// Some messages have no acknowledgement.
    #[error("{failed} of {} messages to topic {topic} were not acknowledged ({problems}); {acknowledged} were", failed + acknowledged)]
    Failed {
        /// The topic.
        topic: String,
        /// Those that failed.
        failed: u64,
        /// Those that arrived.
        acknowledged: u64,
        /// Why, each with a number.
        problems: String,
    },
}

/// The producer has given up sending; [`Producer::finish`] returns the reason.
#[derive(Debug)]
pub struct GaveUp;

/// A producer for one topic.
pub struct Producer {
    client: BaseProducer<Deliveries>,
    topic: String,
    patience: Span,
}

/// Receives the outcome of each message.
#[derive(Debug, Default)]
struct Deliveries(Mutex<Outcome>);

#[derive(Debug, Default)]
struct Outcome {
    acknowledged: u64,
    /// Tags of acknowledged messages that were sent with one.
    tags: Vec<usize>,
    /// Problem → messages.
    failed: BTreeMap<String, u64>,
    gave_up: bool,
    /// The client's latest problem with its connections.
    trouble: Option<String>,
}

impl Deliveries {
    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, error: &KafkaError) {
        let code = error.rdkafka_error_code();
        let mut outcome = self.outcome();
        outcome.gave_up |= matches!(code, Some(RDKafkaErrorCode::MessageTimedOut | RDKafkaErrorCode::Fatal));
        let problem = code.map_or_else(|| error.to_string(), |code| code.to_string());
        *outcome.failed.entry(problem).or_default() += 1;
    }
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        let trouble = if reason.is_empty() { error.to_string() } else { reason.to_owned() };
        let mut outcome = self.outcome();
        // "All brokers down" says less than the last broker's own error, so keep that.
        if outcome.trouble.is_none() || error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            outcome.trouble = Some(trouble);
        }
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        match result {
            Ok(_) => {
                let mut outcome = self.outcome();
                outcome.acknowledged += 1;
                if tag > 0 {
                    outcome.tags.push(tag);
                }
            }
            Err((error, _)) => self.fail(error),
        }
    }
}

impl Producer {
    /// Connects to the brokers of `kafka` and waits for the topic, at most `kafka.patience`.
    ///
    /// # Errors
    ///
    /// [`SendError`] if a setting is refused, the topic cannot be reached in time, or `interrupt` was requested.
    pub fn connect(kafka: &Kafka, topic: &str, interrupt: &Interrupt) -> Result<Self, SendError> {
        let mut settings = ClientConfig::new();
        settings
            .set("compression.type", "lz4")
            // The partitioner of Java's producers, so that a key has the same partition for all producers.
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", kafka.patience.ms.to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string());
        for (key, value) in kafka.client_properties()? {
            settings.set(key, value.expose());
        }
        settings
            .set("bootstrap.servers", &kafka.brokers)
            .set("client.id", "climber-pilot")
            .set("enable.idempotence", "true")
            .set("acks", "all");
        let client = settings.create_with_context(Deliveries::default()).map_err(SendError::Client)?;
        let producer = Self { client, topic: topic.into(), patience: kafka.patience };
        producer.wait_for_topic(&kafka.brokers, interrupt)?;
        Ok(producer)
    }

    fn wait_for_topic(&self, brokers: &str, interrupt: &Interrupt) -> Result<(), SendError> {
        let deadline = Instant::now() + duration(self.patience);
        loop {
            let asked = Instant::now();
            let left = deadline.saturating_duration_since(asked).min(ASK);
            let problem = match self.client.client().fetch_metadata(Some(&self.topic), left) {
                Ok(metadata) => match metadata.topics().first() {
                    Some(topic) if topic.error().is_none() && !topic.partitions().is_empty() => return Ok(()),
                    _ => "the brokers did not have it, and did not create it".to_owned(),
                },
                Err(error) => {
                    self.client.poll(Duration::ZERO);
                    let trouble = self.client.context().outcome().trouble.clone();
                    format!("no broker answered ({})", trouble.unwrap_or_else(|| error.to_string()))
                }
            };
            if interrupt.requested() {
                return Err(SendError::Interrupted);
            }
            if Instant::now() >= deadline {
                let (topic, patience) = (self.topic.clone(), self.patience);
                return Err(SendError::Unreachable { topic, brokers: brokers.into(), patience, problem });
            }
            self.client.poll(LOOK.saturating_sub(asked.elapsed()));
        }
    }

    /// Queues a message; waits while the queue is full. [`Self::take_acknowledged`] returns a `tag` other than 0 after
    /// the message was acknowledged.
    ///
    /// # Errors
    ///
    /// [`GaveUp`] if a message has failed for good.
    pub fn send(&self, key: Option<&[u8]>, value: Option<&[u8]>, tag: usize) -> Result<(), GaveUp> {
        loop {
            let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, tag);
            (record.key, record.payload) = (key, value);
            let full = match self.client.send(record) {
                Ok(()) => false,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => true,
                Err((error, _)) => {
                    self.client.context().fail(&error);
                    false
                }
            };
            self.client.poll(if full { LOOK } else { Duration::ZERO });
            if self.client.context().outcome().gave_up {
                return Err(GaveUp);
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Waits until `due`, at most a tenth of a second; returns whether `due` is reached.
    pub fn wait_until(&self, due: Instant) -> bool {
        let left = due.saturating_duration_since(Instant::now());
        if left > Duration::ZERO {
            self.client.poll(left.min(LOOK));
        }
        left <= LOOK
    }

    /// Waits until every message is acknowledged or has failed.
    pub fn flush(&self) {
        if self.client.context().outcome().gave_up {
            self.client.purge(PurgeConfig::default().queue().inflight());
        }
        let wait = duration(self.patience) + Duration::from_secs(5);
        let (mut left, mut since) = (self.client.in_flight_count(), Instant::now());
        while self.client.flush(LOOK).is_err() {
            let now_left = self.client.in_flight_count();
            if now_left != left {
                (left, since) = (now_left, Instant::now());
            } else if since.elapsed() > wait {
                // Messages time out by themselves, unless a setting disables that.
                self.client.purge(PurgeConfig::default().queue().inflight());
                let _ = self.client.flush(wait);
                return;
            }
        }
    }

    /// The tags of messages that were acknowledged since the previous call.
    pub fn take_acknowledged(&self) -> Vec<usize> {
        std::mem::take(&mut self.client.context().outcome().tags)
    }

    /// Flushes, and returns the number of acknowledged messages.
    ///
    /// # Errors
    ///
    /// [`SendError::Failed`] if a message was not acknowledged.
    pub fn finish(&self) -> Result<u64, SendError> {
        self.flush();
        let outcome = self.client.context().outcome();
        if outcome.failed.is_empty() {
            return Ok(outcome.acknowledged);
        }
        let mut problems: Vec<_> = outcome.failed.iter().map(|(why, n)| format!("{n}: {why}")).collect();
        problems.extend(outcome.trouble.clone());
        Err(SendError::Failed {
            topic: self.topic.clone(),
            failed: outcome.failed.values().sum(),
            acknowledged: outcome.acknowledged,
            problems: problems.join("; "),
        })
    }
}

fn duration(span: Span) -> Duration {
    Duration::from_millis(span.ms.unsigned_abs())
}
