//! The thread that decodes messages and fills micro-batches. Memory: the micro-batch that is being filled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use schemas::config::{Forget, Kafka, TimeFormat};
use schemas::tables::{EVENTS, Reason};
use store::Root;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Sender;

use super::batch::{Message, MicroBatch, Part, TakenPart};
use super::error::ConsumeError;
use super::identity::TopicIdentity;
use super::metrics::Metrics;
use super::poll::Input;
use super::reached::StoredOffset;
use crate::kafka::decode::{Decoder, Fault};
use crate::privacy::{Forgotten, UserColumn};
use crate::records::{Forms, Mapping, Rejection, Times};

/// Instructions to the store, in order.
pub(super) enum Assembled {
    /// Parts that are committed together.
    Batch(Vec<TakenPart>),
    /// Parts of a partition follow; the first continues from the table's offset.
    Begin { partition: i32, stored: StoredOffset, from: i64, topic: Option<TopicIdentity> },
    /// No more parts of the partition follow.
    End { partition: i32 },
    /// The store answers when everything before is committed.
    Flush(SyncSender<()>),
}

/// Decodes messages until one of its channels is closed.
pub(super) struct Assembler {
    pub(super) kafka: Kafka,
    pub(super) mapping: Mapping,
    pub(super) max_record_bytes: usize,
    pub(super) dedup_days: u32,
    pub(super) decoder: Decoder,
    pub(super) metrics: Arc<Metrics>,
    pub(super) who: ForgottenWatch,
    /// Until the first micro-batch with events has been handed on.
    pub(super) first: Option<FirstTimes>,
}

/// The times of the first micro-batch. Later ones are not checked: single events with a wrong clock must not stop a
/// consumer for good.
pub(super) struct FirstTimes {
    times: Times,
    format: TimeFormat,
    /// Whether a partition is read that the tables do not know: then a single event suffices for the check.
    new: bool,
}

/// Minimum events for the check if the tables know all partitions.
const EVENTS_ASKED_ABOUT: u64 = 10;

impl FirstTimes {
    pub(super) fn new(format: TimeFormat) -> Self {
        Self { times: Times::default(), format, new: false }
    }

    fn question(&self) -> Option<String> {
        let enough = self.new || self.times.count() >= EVENTS_ASKED_ABOUT;
        enough.then(|| self.times.question(&self.format)).flatten()
    }
}

/// The list of forgotten users, read again when it has a new version.
pub(super) struct ForgottenWatch {
    pub(super) root: Root,
    pub(super) settings: Forget,
    pub(super) runtime: Handle,
    pub(super) version: Option<u64>,
}

impl Assembler {
    pub(super) fn run(
        mut self,
        input: Receiver<Input>,
        output: Sender<Assembled>,
    ) -> Result<(), ConsumeError> {
        let mut batch = MicroBatch::default();
        let interval = Duration::from_millis(u64::try_from(self.kafka.batch_interval.ms).unwrap_or_default());
        loop {
            let wait = batch.since.map_or(interval, |since| interval.saturating_sub(since.elapsed()));
            match input.recv_timeout(wait) {
                Ok(Input::Messages(chunk)) => {
                    let mut taken: BTreeMap<i32, (u64, u64)> = BTreeMap::new();
                    for (partition, message) in chunk.messages() {
                        let bytes = self.take(&mut batch, partition, message)?;
                        let (messages, sum) = taken.entry(partition).or_default();
                        (*messages, *sum) = (*messages + 1, *sum + bytes);
                    }
                    for (partition, (messages, bytes)) in taken {
                        self.metrics.taken(partition, messages, bytes);
                    }
                }
                Ok(Input::Begin { partition, stored, read, topic, anew }) => {
                    let from = stored.events.filter(|_| !anew).unwrap_or(read);
                    if let Some(first) = &mut self.first {
                        first.new |= stored.events.is_none() || anew;
                    }
                    // Commit where reading began, and in which topic, even if no message arrives.
                    let pin = stored.events != Some(read) || stored.topic != topic;
                    let generation = topic.as_ref().and_then(TopicIdentity::generation);
                    let mut part = Part::new(from, read, pin);
                    part.generation = generation;
                    batch.parts.insert(partition, part);
                    if pin {
                        batch.since.get_or_insert_with(Instant::now);
                    }
                    if output.blocking_send(Assembled::Begin { partition, stored, from, topic }).is_err() {
                        return Ok(());
                    }
                }
                Ok(Input::End { partition }) => {
                    batch.parts.remove(&partition);
                    if output.blocking_send(Assembled::End { partition }).is_err() {
                        return Ok(());
                    }
                }
                Ok(Input::Flush(answer)) => {
                    if !self.hand_on(&mut batch, &output)?
                        || output.blocking_send(Assembled::Flush(answer)).is_err()
                    {
                        return Ok(());
                    }
                }
                Err(RecvTimeoutError::Timeout) if batch.messages == 0 => self.look_who_was_forgotten()?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.hand_on(&mut batch, &output).map(|_| ()),
            }
            let old = batch.since.is_some_and(|since| since.elapsed() >= interval);
            let full = batch.messages >= self.kafka.batch_rows || batch.bytes >= self.kafka.batch_bytes.bytes;
            if old || full {
                if !self.hand_on(&mut batch, &output)? {
                    return Ok(());
                }
                self.look_who_was_forgotten()?;
            }
        }
    }

    /// Sends the micro-batch to the store; returns `false` if the receiver is closed.
    fn hand_on(&mut self, batch: &mut MicroBatch, output: &Sender<Assembled>) -> Result<bool, ConsumeError> {
        if let Some(problem) = self.first.as_ref().and_then(FirstTimes::question) {
            return Err(ConsumeError::Times { topic: self.kafka.topic.clone(), problem });
        }
        self.first.take_if(|first| first.times.count() > 0);
        let taken = batch.take().map_err(|source| ConsumeError::Build { table: EVENTS, source })?;
        Ok(taken.is_empty() || output.blocking_send(Assembled::Batch(taken)).is_ok())
    }

    /// Reads the list again if it has another version; called once a micro-batch.
    fn look_who_was_forgotten(&mut self) -> Result<(), ConsumeError> {
        let ForgottenWatch { root, settings, runtime, version } = &mut self.who;
        let newest = Forgotten::version(root)?;
        if newest != *version {
            self.mapping.forget(runtime.block_on(Forgotten::load(root, settings))?);
            *version = newest;
        }
        Ok(())
    }

    fn take(
        &mut self,
        batch: &mut MicroBatch,
        partition: i32,
        message: Message<'_>,
    ) -> Result<u64, ConsumeError> {
        let bytes = (message.key.map_or(0, <[u8]>::len) + message.value.map_or(0, <[u8]>::len)) as u64;
        // The partition has ended in the meantime.
        let Some(part) = batch.parts.get_mut(&partition) else { return Ok(bytes) };
        match self.event(part, partition, message)? {
            Ok(()) => {}
            Err(Rejection { reason: Reason::Forgotten, .. }) => part.forgotten(message),
            Err(rejection) => part.dead_letter(message, rejection),
        }
        batch.messages += 1;
        batch.bytes += bytes;
        batch.since.get_or_insert_with(Instant::now);
        Ok(bytes)
    }

    /// Adds the message's event, or says why it has none.
    fn event(
        &mut self,
        part: &mut Part,
        partition: i32,
        message: Message<'_>,
    ) -> Result<Result<(), Rejection>, ConsumeError> {
        let Some(value) = message.value else {
            if self.mapping.is_forgotten(UserColumn::Unknown, message.key, &[]) {
                return Ok(Err(Rejection::new(Reason::Forgotten, "")));
            }
            return Ok(Err(Rejection::new(Reason::Tombstone, "the message has no value")));
        };
        if value.len() > self.max_record_bytes {
            if self.mapping.is_forgotten(UserColumn::Unknown, message.key, value) {
                return Ok(Err(Rejection::new(Reason::Forgotten, "")));
            }
            let text = format!("the message has {} bytes, more than events.max_record_bytes", value.len());
            return Ok(Err(Rejection::new(Reason::TooLong, text)));
        }
        let fields = match self.decoder.decode(value) {
            Ok(fields) => fields,
            Err(Fault::Rejected(_)) if self.mapping.is_forgotten(UserColumn::Unknown, message.key, value) => {
                return Ok(Err(Rejection::new(Reason::Forgotten, "")));
            }
            Err(Fault::Rejected(rejection)) => return Ok(Err(rejection)),
            Err(Fault::Stop(error)) => return Err(error.into()),
        };
        let mut event = match self.mapping.event(&fields, &mut Forms::default()) {
            Ok(event) => event,
            Err(rejection) => {
                let value = if self.mapping.user_unreadable(&fields) { value } else { &[] };
                let forgotten = rejection.reason != Reason::Forgotten
                    && self.mapping.is_forgotten(UserColumn::Unknown, message.key, value);
                return Ok(Err(if forgotten { Rejection::new(Reason::Forgotten, "") } else { rejection }));
            }
        };
        if let Some(first) = &mut self.first {
            first.times.add(&[event.ts]);
        }
        let given = event.event_id.is_some();
        if !given {
            let topic = &self.kafka.topic;
            let id = match part.generation {
                None => format!("{topic}-{partition}-{}", message.offset),
                // An earlier topic of this name had the same offset.
                Some(generation) => format!("{topic}-{partition}-{}-{generation}", message.offset),
            };
            event.event_id = Some(id.into());
        }
        part.event(message, &event, given, self.dedup_days)
            .map_err(|source| ConsumeError::Build { table: EVENTS, source })?;
        Ok(Ok(()))
    }
}
