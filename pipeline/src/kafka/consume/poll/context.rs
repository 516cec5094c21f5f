//! librdkafka's callbacks during polling: rebalances, errors, statistics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::config::{Recreated, Start};

use super::super::error::ConsumeError;
use super::super::identity::{self, TopicIdentity};
use super::super::metrics::Metrics;
use super::super::reached::{self, StoredOffset};
use super::super::report::ExpiredOffsets;
use super::super::settings::Secrets;
use super::chunk::{Input, MessageChunk};
use super::{ASK, Poller, millis};

/// Time after which a persisting problem is logged again.
const SAY_AGAIN: Duration = Duration::from_secs(30);
/// Pause between two requests for the topic's id.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Time for which an answer about the topic's id is valid; before sending messages on after that, the brokers are asked again.
const TOPIC_KNOWN_FOR: Duration = Duration::from_secs(2);
/// Maximum time for one such answer.
const TOPIC_ASK: Duration = Duration::from_secs(2);
/// Maximum time for committing the messages read so far, when partitions are revoked or the run ends.
const DRAIN: Duration = Duration::from_secs(60);

/// State shared by the callbacks and the loop. Callbacks run inside `poll`, so never concurrently with the loop.
pub(super) struct State {
    pub(super) to_assembler: SyncSender<Input>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) chunk: MessageChunk,
    pub(super) since: Option<Instant>,
    pub(super) assigned: BTreeSet<i32>,
    /// The topic of the assigned partitions.
    pub(super) topic: Option<TopicIdentity>,
    /// When the brokers last confirmed it, by the system clock, which also runs while the machine sleeps.
    pub(super) asked: Option<SystemTime>,
    /// With `--once`: partitions that are not yet read to the end that they had at the start → that end. Partitions of
    /// other members of the group count too: one of these may have died unnoticed.
    pub(super) left: BTreeMap<i32, i64>,
    pub(super) gone: Vec<ExpiredOffsets>,
    pub(super) error: Option<ConsumeError>,
    /// Whether the assembler has closed its channel.
    pub(super) closed: bool,
    /// The latest problem that the client reported.
    pub(super) reason: Option<String>,
    /// Reported problem → when it was logged. The client repeats a problem for every broker and every attempt.
    pub(super) said: BTreeMap<String, Instant>,
}

impl State {
    /// Everything of a partition before `offset` was read, or is in the table.
    pub(super) fn read_to(&mut self, partition: i32, offset: i64) {
        if self.left.get(&partition).is_some_and(|&end| offset >= end) {
            self.left.remove(&partition);
        }
    }

    /// A partition has no more messages now: only transaction markers lie between its last message and the end.
    pub(super) fn end_of(&mut self, partition: i32) {
        if self.assigned.contains(&partition) {
            self.left.remove(&partition);
        }
    }

    /// Remembers a problem that the client reported; returns whether to log it.
    fn heard(&mut self, reason: &str) -> bool {
        self.reason = Some(reason.to_owned());
        self.said.retain(|_, at| at.elapsed() < SAY_AGAIN);
        let is_new = !self.said.contains_key(reason);
        if is_new {
            self.said.insert(reason.to_owned(), Instant::now());
        }
        is_new
    }

    /// Whether the brokers must confirm the topic before the chunk is sent on.
    fn is_topic_due(&self) -> bool {
        let known_for = self.asked.and_then(|asked| asked.elapsed().ok());
        !self.chunk.is_empty() && known_for.is_none_or(|known_for| known_for >= TOPIC_KNOWN_FOR)
    }

    fn send(&mut self, input: Input) {
        self.closed |= self.to_assembler.send(input).is_err();
    }

    /// Sends the chunk to the assembler; waits until there is room.
    fn hand_on(&mut self) {
        if !self.chunk.is_empty() {
            self.metrics.polled(self.chunk.ends());
            let chunk = std::mem::take(&mut self.chunk);
            self.send(Input::Messages(chunk));
        }
        self.since = None;
    }

    /// Sends the chunk to the assembler if there is room; otherwise returns `false`.
    pub(super) fn try_hand_on(&mut self) -> bool {
        if self.chunk.is_empty() {
            return true;
        }
        self.metrics.polled(self.chunk.ends());
        let size = self.chunk.size();
        match self.to_assembler.try_send(Input::Messages(std::mem::take(&mut self.chunk))) {
            Ok(()) => {
                self.chunk.reserve(size);
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

    /// Sends the chunk and waits until everything sent is committed; returns whether it is.
    pub(super) fn flush(&mut self) -> bool {
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

/// Facts about partitions before they are read.
struct Known {
    stored: BTreeMap<i32, StoredOffset>,
    /// The topic's ids, as the brokers report them.
    topic: Option<TopicIdentity>,
}

/// Implements librdkafka's callbacks.
pub(super) struct Context {
    pub(super) topic: String,
    pub(super) secrets: Secrets,
    pub(super) poller: Arc<Poller>,
    pub(super) state: Mutex<State>,
}

impl Context {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the current end of each partition.
    pub(super) fn find_ends(&self, consumer: &BaseConsumer<Self>) -> Result<(), ConsumeError> {
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

    /// Reads the offsets and topic of partitions to be read, from the tables and the brokers.
    fn known(&self, consumer: &BaseConsumer<Self>, partitions: &[i32]) -> Result<Known, ConsumeError> {
        let poller = &self.poller;
        let stored = poller.runtime.block_on(reached::read(&poller.root, &self.topic, partitions))?;
        if partitions.is_empty() {
            return Ok(Known { stored, topic: None });
        }
        let before: Vec<&TopicIdentity> =
            stored.values().filter_map(|stored| stored.topic.as_ref()).collect();
        let topic = self.ask_topic(consumer, &before, ASK);
        Ok(Known { stored, topic })
    }

    /// Asks the brokers for the topic's ids, each request within `each`; asks again, within `kafka.patience`, as long as the
    /// answer says less than those `before`.
    fn ask_topic(
        &self,
        consumer: &BaseConsumer<Self>,
        before: &[&TopicIdentity],
        each: Duration,
    ) -> Option<TopicIdentity> {
        let deadline = Instant::now() + millis(self.poller.kafka.patience.ms);
        loop {
            let topic = identity::ask(consumer.client().native_ptr(), &self.topic, each);
            // Brokers that have reported the topic's id once will report it again.
            let is_vague =
                |before: &&TopicIdentity| topic.as_ref().is_none_or(|topic| topic.says_less_than(before));
            if !before.iter().any(is_vague) {
                return topic;
            }
            if Instant::now() >= deadline || self.poller.interrupt.requested() {
                tracing::warn!("whether `{}` is the topic that was read before is not known", self.topic);
                return topic;
            }
            tracing::warn!("which topic `{}` is, the brokers do not say; asking again", self.topic);
            std::thread::sleep(ASK_AGAIN);
        }
    }

    /// The topic that a partition is read from, and whether it replaces another one.
    fn identify(
        &self,
        partition: i32,
        Known { topic, .. }: &Known,
        stored: &StoredOffset,
        end: i64,
    ) -> Result<(Option<TopicIdentity>, bool), ConsumeError> {
        let (Some(now), Some(before)) = (topic, &stored.topic) else {
            return Ok((topic.clone().or_else(|| stored.topic.clone()), false));
        };
        if now.is(before) {
            return Ok((Some(now.known_as(before)), false));
        }
        match self.poller.kafka.recreated {
            Recreated::Refuse => Err(ConsumeError::Recreated {
                topic: self.topic.clone(),
                partition,
                stored: stored.events.unwrap_or_default(),
                before: before.to_string(),
                now: now.to_string(),
                end,
            }),
            Recreated::FromStart => {
                tracing::warn!(
                    partition,
                    "`{}` with {before} was read before; the one with {now} is read from its beginning",
                    self.topic
                );
                Ok((Some(now.after(before)), true))
            }
        }
    }

    /// Determines the offset from which a partition is read, and announces the partition to the assembler.
    fn begin(
        &self,
        consumer: &BaseConsumer<Self>,
        partition: i32,
        known: &Known,
    ) -> Result<i64, ConsumeError> {
        let poller = &self.poller;
        let stored = known.stored.get(&partition).cloned().unwrap_or_default();
        let (low, high) = self.watermarks(consumer, partition)?;
        let (topic, anew) = self.identify(partition, known, &stored, high)?;
        let read = match (stored.events.filter(|_| !anew), poller.kafka.start) {
            _ if anew => low,
            (None, Start::Earliest) => low,
            (None, Start::Latest) => high,
            (Some(stored), _) if stored > high => {
                return Err(ConsumeError::Ahead { topic: self.topic.clone(), partition, stored, end: high });
            }
            (Some(stored), _) => stored.max(low),
        };
        let mut state = self.state();
        if let Some(from) = stored.events.filter(|&stored| stored < low && !anew) {
            let gone = ExpiredOffsets { topic: self.topic.clone(), partition, from, to: low };
            tracing::error!("{gone}");
            poller.metrics.gone(partition, gone.offsets());
            state.gone.push(gone);
        }
        // Lags are known from here on, even if no message arrives.
        poller.metrics.began(partition, read, high);
        state.assigned.insert(partition);
        (state.topic, state.asked) = (topic.clone(), Some(SystemTime::now()));
        state.read_to(partition, read);
        state.send(Input::Begin { partition, stored, read, topic, anew });
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

    /// Whether another topic has replaced the one being read; if so, drops the current chunk.
    ///
    /// A client that is suspended or cut off while a topic is deleted and created again continues in the new topic at the old
    /// offset, without an error. (A connected client gets an error when the topic is deleted.) If the brokers do not answer
    /// within `kafka.patience`, the topic counts as the same, as at the beginning.
    pub(super) fn is_another_topic(&self, consumer: &BaseConsumer<Self>) -> bool {
        let before = {
            let state = self.state();
            state.topic.clone().filter(|_| state.is_topic_due())
        };
        let Some(before) = before else { return false };
        let Some(now) = self.ask_topic(consumer, &[&before], TOPIC_ASK) else { return false };
        let mut state = self.state();
        let is_another = !now.is(&before);
        state.asked = (!is_another).then(SystemTime::now);
        if is_another {
            state.chunk = MessageChunk::default();
            state.since = None;
        }
        is_another
    }

    /// If another topic has replaced the one being read: begins anew in it, or refuses it, by `kafka.recreated`.
    pub(super) fn follow_topic(&self, consumer: &BaseConsumer<Self>) -> Result<(), ConsumeError> {
        if !self.is_another_topic(consumer) {
            return Ok(());
        }
        self.state().flush();
        let assigned = self.state().assigned.clone();
        assigned.into_iter().try_for_each(|partition| self.seek(consumer, partition))?;
        if self.poller.once {
            self.state().left.clear();
            self.find_ends(consumer)?;
        }
        Ok(())
    }

    /// Continues after messages that the broker has deleted.
    pub(super) fn jump(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Result<(), ConsumeError> {
        // Commit the messages before the gap first. Those not committed in time are read again, if the broker still has them.
        self.state().flush();
        self.seek(consumer, partition)
    }

    /// Continues reading at the table's offset.
    pub(super) fn seek(&self, consumer: &BaseConsumer<Self>, partition: i32) -> Result<(), ConsumeError> {
        if !self.state().assigned.contains(&partition) {
            return Ok(());
        }
        self.state().hand_on();
        let known = self.known(consumer, &[partition])?;
        let from = self.begin(consumer, partition, &known)?;
        // Not librdkafka's `seek`, which fails for a partition that has just reported an error.
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
        if facility == "FAIL" {
            // `error` also gets this message, and logs it once.
            tracing::debug!(facility, "{message}");
            return;
        }
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
        // Not a problem: `poll` also returns it to the loop.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        let reason = self.secrets.hide(reason);
        if self.state().heard(&reason) {
            tracing::warn!(%error, "{reason}");
        }
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.poller.metrics.rebalanced();
        match rebalance {
            Rebalance::Assign(partitions) => {
                let numbers: Vec<i32> = partitions.elements().iter().map(|p| p.partition()).collect();
                let known = self.known(consumer, &numbers);
                for mut element in partitions.elements() {
                    let begun = match &known {
                        Ok(known) => self.begin(consumer, element.partition(), known).map(Some),
                        Err(_) => Ok(None),
                    };
                    let set = begun.and_then(|from| {
                        let source = |source| ConsumeError::Kafka { topic: self.topic.clone(), source };
                        // Without a known offset, set any: the error ends the program before a message is taken.
                        element.set_offset(from.map_or(Offset::End, Offset::Offset)).map_err(source)
                    });
                    if let Err(error) = set {
                        self.state().error.get_or_insert(error);
                        let _ = element.set_offset(Offset::End);
                    }
                }
                if let Err(error) = known {
                    self.state().error.get_or_insert(error);
                }
            }
            Rebalance::Revoke(partitions) => {
                let revoked: Vec<i32> = partitions.elements().iter().map(|p| p.partition()).collect();
                // Drop messages of another topic; the next consumer of the partition identifies it.
                self.is_another_topic(consumer);
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
