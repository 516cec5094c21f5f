//! The thread that polls. It sends messages to the assembler, announces where reading of a partition begins and ends, and
//! polls often enough to stay a member of the group.
//!
//! ```text
//!  librdkafka ─▶ poll ─▶ Chunk ──▶ bounded channel ─▶ assembler
//!                 │        full for longer than PATIENCE ─▶ partitions are paused, polling goes on
//!                 ├─ partition assigned ─▶ where are the tables? ─▶ Begin, and reading starts there
//!                 └─ partition revoked  ─▶ Flush, wait until all that was read is committed ─▶ End
//! ```

mod chunk;
mod context;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::condition::nearest;
use schemas::config::Kafka;
use store::Root;
use terminal::Interrupt;
use tokio::runtime::Handle;

use super::error::ConsumeError;
use super::metrics::Metrics;
use super::reached;
use super::report::ExpiredOffsets;
use super::settings::{self, Secrets};
use chunk::{CHUNK_AGE, MessageChunk};
use context::{Context, State};

pub(super) use chunk::{Input, channel};

/// How long the channel may be full before partitions are paused.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(50);
/// Messages between two checks of the clock and of all other state: at hundreds of thousands of messages a second, checking
/// each time would take longer than reading.
const LOOK_EVERY: usize = 16;
const ASK: Duration = Duration::from_secs(10);
/// With `--once`: interval between two checks of the other members' progress.
const LOOK: Duration = Duration::from_secs(1);

/// Messages from the store to the poller.
#[derive(Debug, Default)]
pub(super) struct Feedback {
    /// Partition → offset committed since the previous check.
    pub(super) committed: BTreeMap<i32, i64>,
    /// Partitions of which another consumer has committed messages: reading must continue at the table's offset.
    pub(super) overtaken: BTreeSet<i32>,
    /// Whether the store has ended: no more commits follow.
    pub(super) ended: bool,
}

/// [`Feedback`], shared between the store and the poller.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Feedback>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Feedback> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings and shared state of the poller.
pub(super) struct Poller {
    pub(super) kafka: Kafka,
    pub(super) root: Root,
    pub(super) once: bool,
    pub(super) runtime: Handle,
    pub(super) interrupt: Interrupt,
    pub(super) shared: Shared,
    pub(super) metrics: Arc<Metrics>,
}

/// The poller's result.
#[derive(Debug, Default)]
pub(super) struct Polled {
    pub(super) gone: Vec<ExpiredOffsets>,
    /// Whether everything that was read is committed.
    pub(super) drained: bool,
}

impl Poller {
    /// Polls until interrupted, or with `once` until the end that every partition had at the start.
    pub(super) fn run(self, to_assembler: SyncSender<Input>) -> Result<Polled, ConsumeError> {
        let poller = Arc::new(self);
        let secrets = Secrets::of(&poller.kafka)?;
        let context = Context {
            topic: poller.kafka.topic.clone(),
            secrets: secrets.clone(),
            state: Mutex::new(State {
                to_assembler,
                metrics: poller.metrics.clone(),
                chunk: MessageChunk::default(),
                since: None,
                assigned: BTreeSet::new(),
                topic: None,
                asked: None,
                left: BTreeMap::new(),
                gone: Vec::new(),
                error: None,
                closed: false,
                reason: None,
                said: BTreeMap::new(),
            }),
            poller: poller.clone(),
        };
        let config = settings::consumer(&poller.kafka)?;
        let refused = |error| ConsumeError::Settings(secrets.hide(&refusal(&error)).into_owned());
        let consumer: BaseConsumer<Context> = config.create_with_context(context).map_err(refused)?;
        if !poller.find_topic(&consumer)? {
            return Ok(Polled { drained: true, ..Polled::default() });
        }
        if poller.once {
            consumer.context().find_ends(&consumer)?;
        }
        let kafka = |source| ConsumeError::Kafka { topic: poller.kafka.topic.clone(), source };
        consumer.subscribe(&[&poller.kafka.topic]).map_err(kafka)?;
        let result = poller.poll(&consumer);
        consumer.context().is_another_topic(&consumer);
        let mut state = consumer.context().state();
        let drained = result.is_ok() && state.flush();
        // Leaving the group calls back with the assigned partitions; there is nothing left to flush for them.
        state.assigned.clear();
        let gone = std::mem::take(&mut state.gone);
        drop(state);
        // Leaves the group.
        drop(consumer);
        result.map(|()| Polled { gone, drained })
    }

    /// Waits for the brokers and asks them for the topic. `false`: interrupted.
    fn find_topic(&self, consumer: &BaseConsumer<Context>) -> Result<bool, ConsumeError> {
        let Kafka { topic, brokers, patience, .. } = &self.kafka;
        let deadline = Instant::now() + millis(patience.ms);
        let mut told = false;
        loop {
            if self.interrupt.requested() {
                return Ok(false);
            }
            let problem = match consumer.fetch_metadata(Some(topic), Duration::from_secs(2)) {
                Ok(metadata) => match metadata.topics().first().and_then(|found| found.error()) {
                    None if metadata.topics().first().is_some_and(|found| !found.partitions().is_empty()) => {
                        return Ok(true);
                    }
                    Some(error)
                        if RDKafkaErrorCode::from(error) == RDKafkaErrorCode::UnknownTopicOrPartition =>
                    {
                        return Err(ConsumeError::NoTopic {
                            topic: topic.clone(),
                            hint: self.nearest_topic(consumer),
                        });
                    }
                    Some(error) => RDKafkaErrorCode::from(error).to_string(),
                    None => "the topic has no partition yet".into(),
                },
                Err(error) => {
                    // Polling makes the client report its problems, one at a time.
                    let mut reasons = (0..20).filter_map(|_| {
                        consumer.poll(Duration::from_millis(10));
                        consumer.context().state().reason.take()
                    });
                    reasons.next().unwrap_or_else(|| error.to_string())
                }
            };
            if Instant::now() >= deadline {
                let (brokers, patience) = (brokers.clone(), patience.to_string());
                return Err(ConsumeError::Away { brokers, patience, problem });
            }
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(%problem, "waiting for {brokers}, at most {patience}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn nearest_topic(&self, consumer: &BaseConsumer<Context>) -> String {
        let Ok(metadata) = consumer.fetch_metadata(None, ASK) else { return String::new() };
        let names = metadata.topics().iter().map(|topic| topic.name()).filter(|name| !name.starts_with("__"));
        match nearest(&self.kafka.topic, names).as_slice() {
            [] => "; they have none at all".into(),
            names => format!("; the nearest that they have: `{}`. Set kafka.topic", names.join("`, `")),
        }
    }

    fn poll(&self, consumer: &BaseConsumer<Context>) -> Result<(), ConsumeError> {
        let context = consumer.context();
        let started = Instant::now();
        let (mut paused, mut full_since, mut last_message, mut looked) =
            (None, None::<Instant>, started, started);
        let mut assigned = 0;
        loop {
            if self.interrupt.requested() {
                return Ok(());
            }
            let message = consumer.poll(if paused.is_some() { POLL } else { CHUNK_AGE });
            let mut state = context.state();
            match message {
                Some(Ok(message)) => {
                    state.chunk.push(&message);
                    state.since.get_or_insert_with(Instant::now);
                    state.read_to(message.partition(), message.offset() + 1);
                    let finished = self.once && state.left.is_empty();
                    let look = finished
                        || paused.is_some()
                        || state.chunk.is_full()
                        || state.chunk.len().is_multiple_of(LOOK_EVERY);
                    if !look {
                        continue;
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    state.end_of(partition);
                }
                Some(Err(error)) => {
                    drop(state);
                    self.failed(consumer, error)?;
                    state = context.state();
                }
                None => {}
            }
            if let Some(error) = state.error.take() {
                return Err(error);
            }
            // The assembler or the store has failed and returns the error.
            if state.closed {
                return Ok(());
            }
            let now = Instant::now();
            // Patience counts from the latest message or change of the assigned partitions.
            if !state.chunk.is_empty() || state.assigned.len() != assigned {
                last_message = now;
                assigned = state.assigned.len();
            }
            drop(state);
            context.follow_topic(consumer)?;
            let mut state = context.state();
            let old = state.since.is_some_and(|since| now - since >= CHUNK_AGE);
            if (old || state.chunk.is_full() || paused.is_some()) && !state.try_hand_on() {
                let since = *full_since.get_or_insert_with(Instant::now);
                if since.elapsed() < PATIENCE {
                    drop(state);
                    std::thread::sleep(Duration::from_millis(1));
                } else if paused.is_none() {
                    drop(state);
                    paused = self.pause(consumer);
                }
                continue;
            }
            full_since = None;
            let finished = self.once && state.left.is_empty();
            drop(state);
            if finished {
                return Ok(());
            }
            if let Some(partitions) = paused.take() {
                self.resume(consumer, &partitions);
            }
            if self.once && looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.look_for_others(consumer, last_message)?;
            }
            if !self.feedback(consumer)? {
                return Ok(());
            }
        }
    }

    /// With `--once`: removes the partitions that other members of the group have read to the end; fails if the rest makes no
    /// progress within `kafka.patience`.
    fn look_for_others(&self, consumer: &BaseConsumer<Context>, last: Instant) -> Result<(), ConsumeError> {
        let context = consumer.context();
        let (mut left, unassigned) = {
            let state = context.state();
            (state.left.clone(), state.assigned.is_empty())
        };
        left.retain(|partition, _| !context.state().assigned.contains(partition));
        let partitions: Vec<i32> = left.into_keys().collect();
        let stored = self.runtime.block_on(reached::read(&self.root, &self.kafka.topic, &partitions))?;
        for partition in partitions {
            let offset = stored.get(&partition).and_then(|stored| stored.events);
            if let Some(offset) = offset {
                context.state().read_to(partition, offset);
            }
        }
        if last.elapsed() <= millis(self.kafka.patience.ms) || context.state().left.is_empty() {
            return Ok(());
        }
        let (topic, patience) = (self.kafka.topic.clone(), self.kafka.patience.to_string());
        if unassigned {
            return Err(ConsumeError::NoPartitions { group: self.kafka.group.clone(), topic, patience });
        }
        let left: Vec<String> = context.state().left.keys().map(ToString::to_string).collect();
        Err(ConsumeError::Stuck { topic, patience, partitions: left.join(", ") })
    }

    fn failed(&self, consumer: &BaseConsumer<Context>, error: KafkaError) -> Result<(), ConsumeError> {
        let code = error.rdkafka_error_code();
        match code {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                let context = consumer.context();
                let partitions: Vec<i32> = context.state().assigned.iter().copied().collect();
                // The client does not reliably report which partition it is, so check all.
                partitions.into_iter().try_for_each(|partition| context.jump(consumer, partition))
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                let hint = "; it was there before: was it deleted?".into();
                Err(ConsumeError::NoTopic { topic: self.kafka.topic.clone(), hint })
            }
            Some(
                RDKafkaErrorCode::Fatal
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::FencedInstanceId
                | RDKafkaErrorCode::UnsupportedVersion,
            ) => Err(ConsumeError::Kafka { topic: self.kafka.topic.clone(), source: error }),
            // The client recovers by itself when brokers come back. The context has logged the problem.
            _ => Ok(()),
        }
    }

    /// Stops fetching, so that polling can go on while the assembler is behind.
    fn pause(&self, consumer: &BaseConsumer<Context>) -> Option<TopicPartitionList> {
        let partitions = consumer.assignment().ok()?;
        consumer.pause(&partitions).ok()?;
        self.metrics.paused();
        tracing::debug!("paused: the tables are written more slowly than messages come");
        Some(partitions)
    }

    fn resume(&self, consumer: &BaseConsumer<Context>, partitions: &TopicPartitionList) {
        // Some partitions may belong to other consumers by now; resume only those still assigned.
        let ours = consumer.context().state().assigned.clone();
        let mut list = TopicPartitionList::new();
        for element in partitions.elements().iter().filter(|element| ours.contains(&element.partition())) {
            list.add_partition(element.topic(), element.partition());
        }
        if let Err(error) = consumer.resume(&list) {
            tracing::warn!(%error, "resuming");
        }
    }

    /// Applies the store's feedback; returns `false` if the store has ended.
    fn feedback(&self, consumer: &BaseConsumer<Context>) -> Result<bool, ConsumeError> {
        let Feedback { committed, overtaken, ended } = std::mem::take(&mut *self.shared.lock());
        if !committed.is_empty() {
            let mut offsets = TopicPartitionList::new();
            for (partition, offset) in committed {
                // Cannot fail for an explicit offset.
                let _ = offsets.add_partition_offset(&self.kafka.topic, partition, Offset::Offset(offset));
            }
            // Only for tools that monitor the group; this program does not read the group's offsets.
            if let Err(error) = consumer.commit(&offsets, CommitMode::Async) {
                tracing::debug!(%error, "offsets were not committed to the group");
            }
        }
        for partition in overtaken {
            consumer.context().seek(consumer, partition)?;
        }
        Ok(!ended)
    }
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

/// Why the client refuses its settings.
fn refusal(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(_, description, key, _) => {
            format!("{description} (kafka.properties.\"{key}\")")
        }
        error => error.to_string(),
    }
}
