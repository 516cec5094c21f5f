//! The thread that polls: it hands messages on, tells where reading of a partition begins and ends, and never waits so long
//! that the group thinks it dead.
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

/// How long a full channel is waited for before partitions are paused.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(50);
/// Messages between two looks at the clock and at all else: at hundreds of thousands a second it would take longer to look
/// than to read.
const LOOK_EVERY: usize = 16;
const ASK: Duration = Duration::from_secs(10);
/// With `--once`, between two looks at what others have read.
const LOOK: Duration = Duration::from_secs(1);

/// What the store tells the poller.
#[derive(Debug, Default)]
pub(super) struct Feedback {
    /// Partitions → offsets that the table has since the last look.
    pub(super) committed: BTreeMap<i32, i64>,
    /// Partitions of which another consumer has committed something: reading has to go on where the table is now.
    pub(super) overtaken: BTreeSet<i32>,
    /// Nothing is committed any more.
    pub(super) ended: bool,
}

/// [`Feedback`], from one thread to the other.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Feedback>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Feedback> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the poller needs to know.
pub(super) struct Poller {
    pub(super) kafka: Kafka,
    pub(super) root: Root,
    pub(super) once: bool,
    pub(super) runtime: Handle,
    pub(super) interrupt: Interrupt,
    pub(super) shared: Shared,
    pub(super) metrics: Arc<Metrics>,
}

/// What it has to say at the end.
#[derive(Debug, Default)]
pub(super) struct Polled {
    pub(super) gone: Vec<ExpiredOffsets>,
    /// Whether everything that was read is committed.
    pub(super) drained: bool,
}

impl Poller {
    /// Polls until interrupted, or with `once` until the end that every partition had at first.
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
        // What the callbacks of leaving the group find is nothing.
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
                    // The client says why when it is polled, one thing a time.
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
            // The assembler or the store has failed: they say why.
            if state.closed {
                return Ok(());
            }
            let now = Instant::now();
            // Patience is for messages: until partitions are assigned, and come or go, there is nothing to wait for.
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

    /// With `--once`: what other members of the group have read to its end; waiting for the rest has an end, too.
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
                // Which of them it is, the client does not say in a form to rely on.
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
            // The client goes on by itself: brokers come back. What is wrong, the context has said.
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
        // Some may belong to others by now: they are left out of what is still ours.
        let ours = consumer.context().state().assigned.clone();
        let mut list = TopicPartitionList::new();
        for element in partitions.elements().iter().filter(|element| ours.contains(&element.partition())) {
            list.add_partition(element.topic(), element.partition());
        }
        if let Err(error) = consumer.resume(&list) {
            tracing::warn!(%error, "resuming");
        }
    }

    /// Does what the store asks for; `false` where it has ended.
    fn feedback(&self, consumer: &BaseConsumer<Context>) -> Result<bool, ConsumeError> {
        let Feedback { committed, overtaken, ended } = std::mem::take(&mut *self.shared.lock());
        if !committed.is_empty() {
            let mut offsets = TopicPartitionList::new();
            for (partition, offset) in committed {
                // Cannot fail for an offset.
                let _ = offsets.add_partition_offset(&self.kafka.topic, partition, Offset::Offset(offset));
            }
            // Only for those who watch the group: nothing reads it here.
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
