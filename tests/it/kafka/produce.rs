//! Sends messages to topics.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext};
use serde_json::Value;

use super::client;

const PATIENCE: Duration = Duration::from_secs(120);

/// (partition, offset)
pub(crate) type Position = (i32, i64);

/// A message to send.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// Target partition; `None` leaves it to the key.
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<Vec<u8>>,
    /// `None` for a tombstone.
    pub(crate) value: Option<Vec<u8>>,
}

impl Message {
    pub(crate) fn new(partition: i32, key: &str, value: impl Into<Vec<u8>>) -> Self {
        Self { partition: Some(partition), key: Some(key.into()), value: Some(value.into()) }
    }

    pub(crate) fn json(partition: i32, key: &str, value: &Value) -> Self {
        Self::new(partition, key, value.to_string())
    }

    pub(crate) fn tombstone(partition: i32, key: &str) -> Self {
        Self { value: None, ..Self::new(partition, key, "") }
    }
}

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Abort,
}

/// Position of each message of [`Producer::send`], or why it was not stored.
struct Deliveries(Mutex<Vec<Option<Result<Position, KafkaError>>>>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, index: usize) {
        let lies = |stored: &BorrowedMessage<'_>| (stored.partition(), stored.offset());
        let result = result.as_ref().map(lies).map_err(|(error, _)| error.clone());
        // Must not panic: librdkafka calls it, also while a producer is dropped during a test's panic.
        if let Some(slot) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            *slot = Some(result);
        }
    }
}

/// Sends messages; each one is stored once, also over a broker's restart. It has no thread of its own, so that every delivery is
/// reported when [`Self::send`] returns, not just dequeued.
pub(crate) struct Producer(BaseProducer<Deliveries>);

impl Producer {
    pub(crate) fn new(address: &str) -> Self {
        Self::with(address, &[])
    }

    /// Returns a producer whose messages belong to transactions called `id`: use [`Self::transaction`].
    pub(crate) fn transactional(address: &str, id: &str) -> Self {
        let producer = Self::with(address, &[("transactional.id", id)]);
        producer.0.init_transactions(PATIENCE).unwrap();
        producer
    }

    fn with(address: &str, settings: &[(&str, &str)]) -> Self {
        let mut config = client(address);
        config.set("enable.idempotence", "true").set("linger.ms", "5");
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let context = Deliveries(Mutex::default());
        Self(config.create_with_context::<_, BaseProducer<_, NoCustomPartitioner>>(context).unwrap())
    }

    /// Sends `messages` in order and waits until the broker has them all; returns their positions.
    pub(crate) fn send(&self, topic: &str, messages: &[Message]) -> Vec<Position> {
        let deliveries = self.0.context();
        *deliveries.0.lock().unwrap() = vec![None; messages.len()];
        for (index, message) in messages.iter().enumerate() {
            let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, index);
            record.partition = message.partition;
            record.key = message.key.as_deref();
            record.payload = message.value.as_deref();
            while let Err((error, back)) = self.0.send(record) {
                let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
                assert_eq!(error, full);
                record = back;
                self.0.poll(Duration::from_millis(10));
            }
        }
        self.0.flush(PATIENCE).unwrap();
        let positions = std::mem::take(&mut *deliveries.0.lock().unwrap());
        positions.into_iter().map(|position| position.unwrap().unwrap()).collect()
    }

    /// Sends `messages` in one transaction. An aborted one leaves them in the topic; readers must skip them.
    pub(crate) fn transaction(&self, topic: &str, messages: &[Message], end: End) -> Vec<Position> {
        self.0.begin_transaction().unwrap();
        let positions = self.send(topic, messages);
        match end {
            End::Commit => self.0.commit_transaction(PATIENCE).unwrap(),
            End::Abort => self.0.abort_transaction(PATIENCE).unwrap(),
        }
        positions
    }
}

/// Random numbers by xorshift64: good enough to choose what to kill.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new() -> Self {
        Self(RandomState::new().build_hasher().finish() | 1)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
