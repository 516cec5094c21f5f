//! The thread that polls: it hands messages on, tells where reading of a partition begins and ends, and never waits so long
//! that the group thinks it dead.
//!
//! ```text
//!  librdkafka ─▶ poll ─▶ Chunk ──▶ bounded channel ─▶ assembler
//!                 │        full for longer than PATIENCE ─▶ partitions are paused, polling goes on
//!                 ├─ partition assigned ─▶ where are the tables? ─▶ Begin, and reading starts there
//!                 └─ partition revoked  ─▶ Flush, wait until all that was read is committed ─▶ End
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::cli::Interrupt;
use schemas::condition::nearest;
use schemas::config::{Kafka, Start};
use schemas::delta::Root;
use tokio::runtime::Handle;

use super::error::ConsumeError;
use super::metrics::Metrics;
use super::reached::{self, Stored};
use super::report::Gone;
use super::settings::{self, Secrets};

/// A chunk is handed on when it has so many messages or bytes, or this long after its first.
const CHUNK_MESSAGES: usize = 4_096;
const CHUNK_BYTES: usize = 1 << 20;
const CHUNK_AGE: Duration = Duration::from_millis(5);
/// Chunks that wait for the assembler, at most.
const CHUNKS: usize = 16;
/// How long a full channel is waited for before partitions are paused.
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(50);
/// How long what was read of revoked partitions, or at the end, may take to be committed.
const DRAIN: Duration = Duration::from_secs(60);
const ASK: Duration = Duration::from_secs(10);
/// With `--once`, between two looks at what others have read.
const LOOK: Duration = Duration::from_secs(1);

/// What the assembler is told, in order.
pub(super) enum Input {
    /// Messages of partitions that were begun.
    Messages(Chunk),
    /// A partition's messages come, from `read` on; what the tables know of it.
    Begin { partition: i32, stored: Stored, read: i64 },
    /// No more messages of it come. What was read of it and not flushed is forgotten.
    End { partition: i32 },
    /// Everything before this is to be committed, and then answered.
    Flush(SyncSender<()>),
}

/// Messages, their bytes behind each other.
#[derive(Default)]
pub(super) struct Chunk {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

struct Entry {
    partition: i32,
    offset: i64,
    sent: i64,
    start: usize,
    key: Option<usize>,
    value: Option<usize>,
}

impl Chunk {
    fn push(&mut self, message: &BorrowedMessage<'_>) {
        let (key, value) = (message.key(), message.payload());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key.unwrap_or_default());
        self.bytes.extend_from_slice(value.unwrap_or_default());
        let now = || chrono::Utc::now().timestamp_millis();
        self.entries.push(Entry {
            partition: message.partition(),
            offset: message.offset(),
            sent: message.timestamp().to_millis().filter(|&ms| ms > 0).unwrap_or_else(now),
            start,
            key: key.map(<[u8]>::len),
            value: value.map(<[u8]>::len),
        });
    }

    fn is_full(&self) -> bool {
        self.entries.len() >= CHUNK_MESSAGES || self.bytes.len() >= CHUNK_BYTES
    }

    /// The messages, each with its partition.
    pub(super) fn messages(&self) -> impl Iterator<Item = (i32, super::batch::Message<'_>)> {
        self.entries.iter().map(|entry| {
            let value = entry.start + entry.key.unwrap_or_default();
            let message = super::batch::Message {
                offset: entry.offset,
                sent: entry.sent,
                key: entry.key.map(|length| &self.bytes[entry.start..entry.start + length]),
                value: entry.value.map(|length| &self.bytes[value..value + length]),
            };
            (entry.partition, message)
        })
    }
}

/// What the store tells the poller.
#[derive(Debug, Default)]
pub(super) struct Feedback {
    /// Partitions → offsets that the table has since the last look.
    pub(super) committed: BTreeMap<i32, i64>,
    /// Partitions of which another consumer has committed something: reading has to go on where the table is now.
    pub(super) overtaken: BTreeSet<i32>,
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
    pub(super) gone: Vec<Gone>,
    /// Whether everything that was read is committed.
    pub(super) drained: bool,
}

/// The channel to the assembler.
pub(super) fn channel() -> (SyncSender<Input>, Receiver<Input>) {
    sync_channel(CHUNKS)
}

/// What callbacks and the loop share. Callbacks run inside `poll`, so never beside the loop.
struct State {
    to_assembler: SyncSender<Input>,
    chunk: Chunk,
    since: Option<Instant>,
    assigned: BTreeSet<i32>,
    /// With `--once`: the partitions that were not read to the end that they had at the start, and where that is. Those of
    /// other members of the group count too: one of them may be dead and not yet missed.
    left: BTreeMap<i32, i64>,
    gone: Vec<Gone>,
    error: Option<ConsumeError>,
    /// Whether the assembler still listens.
    closed: bool,
    /// Why the client could not do something, the last that it said.
    reason: Option<String>,
}

impl State {
    /// Everything of a partition before `offset` was read, or is in the table.
    fn read_to(&mut self, partition: i32, offset: i64) {
        if self.left.get(&partition).is_some_and(|&end| offset >= end) {
            self.left.remove(&partition);
        }
    }

    /// A partition has no more messages now: what lies between its last one and the end are marks of transactions.
    fn end_of(&mut self, partition: i32) {
        if self.assigned.contains(&partition) {
            self.left.remove(&partition);
        }
    }

    fn send(&mut self, input: Input) {
        self.closed |= self.to_assembler.send(input).is_err();
    }

    /// Hands the chunk on, waiting as long as it takes.
    fn hand_on(&mut self) {
        if !self.chunk.entries.is_empty() {
            let chunk = std::mem::take(&mut self.chunk);
            self.send(Input::Messages(chunk));
        }
        self.since = None;
    }

    /// Hands the chunk on, if there is room: otherwise `false`.
    fn try_hand_on(&mut self) -> bool {
        if self.chunk.entries.is_empty() {
            return true;
        }
        let like_this = (self.chunk.bytes.len(), self.chunk.entries.len());
        match self.to_assembler.try_send(Input::Messages(std::mem::take(&mut self.chunk))) {
            Ok(()) => {
                self.chunk.bytes.reserve(like_this.0);
                self.chunk.entries.reserve(like_this.1);
                self.since = None;
                true
            }
            Err(TrySendError::Full(Input::Messages(chunk))) => {
                self.chunk = chunk;
                false
            }
            Err(_) => {
                self.closed = true;
                true
            }
        }
    }

    /// Waits until everything that was handed on is committed; whether it is.
    fn flush(&mut self) -> bool {
        self.hand_on();
        let (answer, answered) = sync_channel(1);
        self.send(Input::Flush(answer));
        match answered.recv_timeout(DRAIN) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!(
                    "what was read is not committed after {DRAIN:?}; whoever reads the partitions next reads it again"
                );
                false
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.closed = true;
                false
            }
        }
    }
}

struct Context {
    topic: String,
    secrets: Secrets,
    poller: Arc<Poller>,
    state: Mutex<State>,
}

impl Context {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each partition ends now.
    fn find_ends(&self, consumer: &BaseConsumer<Self>) -> Result<(), ConsumeError> {
        let metadata = consumer
            .fetch_metadata(Some(&self.topic), ASK)
            .map_err(|source| ConsumeError::Kafka { topic: self.topic.clone(), source })?;
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            let (low, high) = self.watermarks(consumer, partition.id())?;
            if high > low {
                self.state().left.insert(partition.id(), high);
            }
        }
        Ok(())
    }

    /// Where a partition is to be read from; the assembler is told.
    fn begin(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Result<i64, ConsumeError> {
        let poller = &self.poller;
        let stored = poller.runtime.block_on(reached::read(&poller.root, &self.topic, partition))?;
        let (low, high) = self.watermarks(consumer, partition)?;
        let read = match (stored.events, poller.kafka.start) {
            (None, Start::Earliest) => low,
            (None, Start::Latest) => high,
            (Some(stored), _) if stored > high => {
                return Err(ConsumeError::Ahead { topic: self.topic.clone(), partition, stored, end: high });
            }
            (Some(stored), _) => stored.max(low),
        };
        let mut state = self.state();
        if let Some(from) = stored.events.filter(|&stored| stored < low) {
            let gone = Gone { topic: self.topic.clone(), partition, from, to: low };
            tracing::error!("{gone}");
            poller.metrics.gone(partition, gone.offsets());
            state.gone.push(gone);
        }
        // Lags are known from here on, also if nothing comes.
        poller.metrics.began(partition, read, high);
        state.assigned.insert(partition);
        state.read_to(partition, read);
        state.send(Input::Begin { partition, stored, read });
        tracing::info!(partition, from = read, "reading begins");
        Ok(read)
    }

    fn watermarks(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Result<(i64, i64), ConsumeError> {
        let fail = |source| ConsumeError::Kafka { topic: self.topic.clone(), source };
        let deadline = Instant::now() + millis(self.poller.kafka.patience.ms);
        loop {
            match consumer.fetch_watermarks(&self.topic, partition, ASK) {
                Ok(watermarks) => return Ok(watermarks),
                Err(error) if Instant::now() >= deadline => return Err(fail(error)),
                Err(error) => {
                    tracing::warn!(partition, %error, "where the partition begins and ends is not known; asking again")
                }
            }
        }
    }

    /// The partition's messages below what it has now are gone: goes on behind them.
    fn jump(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Result<(), ConsumeError> {
        // What was read before the gap belongs before it.
        let flushed = self.state().flush();
        if flushed { self.seek(consumer, partition) } else { Ok(()) }
    }

    /// Goes on reading where the table is.
    fn seek(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Result<(), ConsumeError> {
        if !self.state().assigned.contains(&partition) {
            return Ok(());
        }
        self.state().hand_on();
        let from = self.begin(consumer, partition)?;
        // Not `seek`, which a partition that has just failed does not take.
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(from))
            .and_then(|()| consumer.incremental_unassign(&list))
            .and_then(|()| consumer.incremental_assign(&list))
            .map_err(|source| ConsumeError::Kafka { topic: self.topic.clone(), source })
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let message = self.secrets.hide(message);
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::error!(facility, "{message}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(facility, "{message}"),
            _ => tracing::debug!(facility, "{message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        self.poller.metrics.statistics(&self.topic, &statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let reason = self.secrets.hide(reason);
        tracing::warn!(%error, "{reason}");
        self.state().reason = Some(reason.to_string());
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.poller.metrics.rebalanced();
        match rebalance {
            Rebalance::Assign(partitions) => {
                for mut element in partitions.elements() {
                    let begun = self.begin(consumer, element.partition());
                    let set = begun.and_then(|from| {
                        let source = |source| ConsumeError::Kafka { topic: self.topic.clone(), source };
                        element.set_offset(Offset::Offset(from)).map_err(source)
                    });
                    if let Err(error) = set {
                        self.state().error.get_or_insert(error);
                        // Not from anywhere: the error ends the program before a message of it is taken.
                        let _ = element.set_offset(Offset::End);
                    }
                }
            }
            Rebalance::Revoke(partitions) => {
                let revoked: Vec<i32> = partitions.elements().iter().map(|p| p.partition()).collect();
                let mut state = self.state();
                if revoked.iter().any(|partition| state.assigned.contains(partition)) {
                    state.flush();
                }
                for partition in revoked {
                    state.assigned.remove(&partition);
                    state.send(Input::End { partition });
                    self.poller.metrics.revoked(partition);
                    tracing::info!(partition, "reading ends");
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance"),
        }
    }
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
                chunk: Chunk::default(),
                since: None,
                assigned: BTreeSet::new(),
                left: BTreeMap::new(),
                gone: Vec::new(),
                error: None,
                closed: false,
                reason: None,
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
        loop {
            if self.interrupt.requested() {
                return Ok(());
            }
            let message = consumer.poll(if paused.is_some() { POLL } else { CHUNK_AGE });
            let mut state = context.state();
            match message {
                Some(Ok(message)) => {
                    last_message = Instant::now();
                    state.chunk.push(&message);
                    state.since.get_or_insert(last_message);
                    state.read_to(message.partition(), message.offset() + 1);
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
            let old = state.since.is_some_and(|since| since.elapsed() >= CHUNK_AGE);
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
            self.feedback(consumer)?;
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
        for partition in left.into_keys() {
            let stored = self.runtime.block_on(reached::read(&self.root, &self.kafka.topic, partition))?;
            if let Some(stored) = stored.events {
                context.state().read_to(partition, stored);
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
            // The client goes on by itself: brokers come back.
            _ => {
                tracing::warn!(%error, "Kafka's client");
                Ok(())
            }
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

    fn feedback(&self, consumer: &BaseConsumer<Context>) -> Result<(), ConsumeError> {
        let Feedback { committed, overtaken } = std::mem::take(&mut *self.shared.lock());
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
        Ok(())
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
