//! The store without a broker: several consumers, unaware of each other, write to one root.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use proptest::prelude::*;
use schemas::tables::Reason;

use super::super::batch::{Message, MicroBatch, Part};
use super::super::reached::{self, StoredOffset};
use super::*;
use crate::records::{Event, Rejection};

const TOPIC: &str = "clicks";
/// Keeps the ids of one date at a time, so dates are dropped and read again.
const IDS_BYTES: u64 = 0;
const NOON: i64 = 1_700_049_600_000;

/// Source and position.
type Place = (String, i64);

/// The message at an offset of a partition.
#[derive(Debug, Clone, Copy)]
enum Lies {
    /// An event with an id of its own.
    Event,
    /// An event with the id of the event at an earlier offset of the partition.
    Again(i64),
    Poison,
}

/// A consumer's store, and its position in each partition.
struct Consumer {
    store: Store,
    shared: Shared,
    batch: MicroBatch,
}

impl Consumer {
    fn new(root: &Root) -> Self {
        let shared = Shared::default();
        let store = Store::new(root.clone(), TOPIC, 2, IDS_BYTES, shared.clone(), Arc::new(Metrics::new()));
        Self { store, shared, batch: MicroBatch::default() }
    }

    /// Begins a partition as the poller and the assembler do when it is assigned.
    async fn begin(&mut self, partition: i32) {
        let stored = stored(&self.store.root, partition).await;
        let from = stored.events.unwrap_or(0);
        self.batch.parts.insert(partition, Part::new(from, from, stored.events.is_none()));
        let topic = stored.topic.clone();
        self.tell(Assembled::Begin { partition, stored, from, topic }).await;
    }

    /// Begins a partition of a topic that replaces another one.
    async fn begin_anew(&mut self, partition: i32, topic: TopicIdentity) {
        let stored = stored(&self.store.root, partition).await;
        self.batch.parts.insert(partition, Part::new(0, 0, true));
        self.tell(Assembled::Begin { partition, stored, from: 0, topic: Some(topic) }).await;
    }

    async fn tell(&mut self, output: Assembled) {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        sender.try_send(output).ok().unwrap();
        drop(sender);
        self.store.run(receiver).await.unwrap();
    }

    /// Reads `count` messages of a partition that was begun.
    fn read(&mut self, partition: i32, log: &[Lies], count: usize) {
        let Some(part) = self.batch.parts.get_mut(&partition) else { return };
        for _ in 0..count {
            let offset = part.to;
            let Some(lies) = usize::try_from(offset).ok().and_then(|at| log.get(at)) else { return };
            let message = Message { offset, sent: NOON, key: Some(b"k"), value: Some(b"v") };
            let id = |offset: i64| format!("{partition}:{offset}");
            let event = |id: String| Event {
                event_id: Some(id.into()),
                user_id: "u".into(),
                item_id: "i".into(),
                // Every third event is of the day before.
                ts: NOON - if offset % 3 == 0 { 86_400_000 } else { 0 },
                request_id: None,
                request_ts: None,
                action: "click".into(),
                value: None,
            };
            match *lies {
                Lies::Event => part.event(message, &event(id(offset)), true, 2).unwrap(),
                // An event that is sent again keeps its time.
                Lies::Again(first) => {
                    let again =
                        Event { ts: NOON - if first % 3 == 0 { 86_400_000 } else { 0 }, ..event(id(first)) };
                    part.event(message, &again, true, 2).unwrap();
                }
                Lies::Poison => part.dead_letter(message, Rejection::new(Reason::MalformedJson, "poison")),
            }
        }
    }

    async fn store(&mut self) {
        let taken = self.batch.take().unwrap();
        self.tell(Assembled::Batch(taken)).await;
        self.go_back().await;
    }

    /// Returns to the table's offset in partitions that others have written, as the poller does.
    async fn go_back(&mut self) {
        let overtaken = std::mem::take(&mut self.shared.lock().overtaken);
        for partition in overtaken {
            self.begin(partition).await;
        }
    }

    /// Commits the dead letters only, as if killed between the two commits.
    async fn die_half_way(mut self) {
        let mut taken = self.batch.take().unwrap();
        let snapshot = self.store.root.snapshot(EVENTS).await.unwrap();
        self.store.events.catch_up(snapshot.as_ref()).await.unwrap();
        self.store.leave_out_overtaken(&mut taken);
        self.store.commit_dead_letters(&taken).await.unwrap();
    }
}

async fn stored(root: &Root, partition: i32) -> StoredOffset {
    reached::read(root, TOPIC, &[partition]).await.unwrap().remove(&partition).unwrap()
}

fn root() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path().to_str().unwrap()).unwrap();
    (directory, root)
}

/// Source and position of all rows of a table, sorted.
async fn places(root: &Root, table: &str) -> Vec<Place> {
    let Some(snapshot) = root.snapshot(table).await.unwrap() else { return Vec::new() };
    let mut places = Vec::new();
    for batch in snapshot.read(&["source", "position"]).await.unwrap() {
        let positions = batch.column(1).as_primitive::<Int64Type>().values();
        let sources = batch.column(0).as_string::<i32>().iter().flatten();
        places.extend(sources.map(str::to_owned).zip(positions.iter().copied()));
    }
    places.sort();
    places
}

/// Reads every partition to its end with a consumer that is not disturbed.
async fn read_all(root: &Root, logs: &[Vec<Lies>]) {
    let mut last = Consumer::new(root);
    for (partition, log) in (0..).zip(logs) {
        last.begin(partition).await;
        last.read(partition, log, log.len());
    }
    last.store().await;
}

/// The final content of the tables: `events`, with each id at its first position, and `dead_letters`.
fn expected(logs: &[Vec<Lies>]) -> (Vec<Place>, Vec<Place>) {
    let (mut events, mut dead_letters) = (Vec::new(), Vec::new());
    for (partition, log) in logs.iter().enumerate() {
        for (offset, lies) in (0..).zip(log) {
            let place = (format!("{TOPIC}-{partition}"), offset);
            match lies {
                Lies::Event => events.push(place),
                Lies::Again(_) => {}
                Lies::Poison => dead_letters.push(place),
            }
        }
    }
    events.sort();
    dead_letters.sort();
    (events, dead_letters)
}

#[tokio::test]
async fn a_consumer_that_lost_its_partition_writes_nothing() {
    let (_directory, root) = root();
    let log = vec![Lies::Event; 30];
    let (mut zombie, mut owner) = (Consumer::new(&root), Consumer::new(&root));
    zombie.begin(0).await;
    owner.begin(0).await;
    zombie.read(0, &log, 10);
    owner.read(0, &log, 12);
    owner.store().await;
    zombie.store().await;
    assert_eq!(places(&root, EVENTS).await.len(), 12);
    // It has returned to the table's offset, and continues there if it gets the partition again.
    zombie.read(0, &log, 5);
    zombie.store().await;
    owner.read(0, &log, 1);
    owner.store().await;
    let offsets: Vec<i64> = places(&root, EVENTS).await.into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(offsets, (0..17).collect::<Vec<_>>());
    assert_eq!(zombie.store.totals.messages, 5);
}

#[tokio::test]
async fn parts_behind_one_that_was_refused_are_refused_too() {
    let (_directory, root) = root();
    let log = vec![Lies::Event; 30];
    let (mut zombie, mut owner) = (Consumer::new(&root), Consumer::new(&root));
    zombie.begin(0).await;
    owner.begin(0).await;
    owner.read(0, &log, 10);
    owner.store().await;
    // Two batches in flight; the second begins at the end of the first.
    zombie.read(0, &log, 10);
    let first = zombie.batch.take().unwrap();
    zombie.read(0, &log, 10);
    let second = zombie.batch.take().unwrap();
    zombie.tell(Assembled::Batch(first)).await;
    zombie.tell(Assembled::Batch(second)).await;
    assert_eq!(places(&root, EVENTS).await.len(), 10);
}

#[tokio::test]
async fn where_reading_began_is_known_though_nothing_came() {
    let (_directory, root) = root();
    let mut consumer = Consumer::new(&root);
    consumer.begin(3).await;
    consumer.store().await;
    assert_eq!(stored(&root, 3).await, StoredOffset { events: Some(0), ..StoredOffset::default() });
}

#[tokio::test]
async fn a_topic_that_is_read_anew_takes_the_place_of_the_other_one() {
    let (_directory, root) = root();
    let log = [vec![Lies::Event; 8], vec![Lies::Poison; 2]].concat();
    let first = TopicIdentity::new("cluster", "one");
    let mut consumer = Consumer::new(&root);
    consumer.begin_anew(0, first.clone()).await;
    consumer.read(0, &log, 10);
    consumer.store().await;
    let known = stored(&root, 0).await;
    assert_eq!((known.events, known.dead_letters, known.topic.as_ref()), (Some(10), Some(10), Some(&first)));
    // Shorter than the first topic, with a dead letter at the same offset.
    let second = TopicIdentity::new("cluster", "two").after(&first);
    let mut consumer = Consumer::new(&root);
    consumer.begin_anew(0, second.clone()).await;
    consumer.read(0, &[vec![Lies::Poison; 2], vec![Lies::Event; 2]].concat(), 4);
    consumer.store().await;
    let known = stored(&root, 0).await;
    assert_eq!((known.events, known.dead_letters, known.topic.as_ref()), (Some(4), Some(4), Some(&second)));
    assert_eq!(places(&root, DEAD_LETTERS).await.len(), 4);
    // The consumer continues there.
    consumer.read(0, &[Lies::Poison; 6], 2);
    consumer.store().await;
    assert_eq!(places(&root, DEAD_LETTERS).await.len(), 6);
    // The same bytes at the offsets of the first topic's dead letters.
    consumer.read(0, &[Lies::Poison; 10], 4);
    consumer.store().await;
    let offsets = |source: &str, places: Vec<Place>| -> Vec<i64> {
        places.into_iter().filter(|(of, _)| of == source).map(|(_, offset)| offset).collect()
    };
    assert_eq!(offsets("clicks-0", places(&root, DEAD_LETTERS).await), [8, 9]);
    assert_eq!(offsets("clicks-0#1", places(&root, DEAD_LETTERS).await), [0, 1, 4, 5, 6, 7, 8, 9]);
    assert_eq!(offsets("clicks-0#1", places(&root, EVENTS).await).len(), 0);
    assert_eq!(verified(&root, DEAD_LETTERS).await, None);
}

/// The violation that `inspect --verify` finds in a table.
async fn verified(root: &Root, table: &str) -> Option<String> {
    let mut config = schemas::config::Config::default();
    config.kafka.topic = TOPIC.into();
    let found = crate::verify::verify(&config, root, Some(table)).await;
    found.unwrap().doubt()
}

#[tokio::test]
async fn an_id_is_looked_for_within_its_days_only() {
    let (_directory, root) = root();
    let mut consumer = Consumer::new(&root);
    consumer.begin(0).await;
    let event = |ts| Event {
        event_id: Some("once".into()),
        user_id: "u".into(),
        item_id: "i".into(),
        ts,
        request_id: None,
        request_ts: None,
        action: "click".into(),
        value: None,
    };
    let day = 86_400_000;
    let part = consumer.batch.parts.get_mut(&0).unwrap();
    for (offset, sent) in [(0, NOON), (1, NOON + 2 * day), (2, NOON + 3 * day)] {
        let message = Message { offset, sent, key: None, value: Some(b"v") };
        part.event(message, &event(NOON), true, 2).unwrap();
    }
    consumer.store().await;
    // The third copy came too late to be noticed here; builds count it once.
    let offsets: Vec<i64> = places(&root, EVENTS).await.into_iter().map(|(_, offset)| offset).collect();
    assert_eq!(offsets, [0, 2]);
    assert_eq!((consumer.store.totals.accepted, consumer.store.totals.duplicates), (2, 1));
    assert_eq!(verified(&root, EVENTS).await, None);
}

/// A step of two consumers of two partitions.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A consumer gets a partition; the other one does not notice that it has lost it.
    Begin(usize, i32),
    Read(usize, i32, usize),
    Store(usize),
    /// A consumer is killed between the two commits; a new one takes its place.
    DieHalfWay(usize),
    Die(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..2usize, 0..2i32).prop_map(|(c, p)| Step::Begin(c, p)),
        4 => (0..2usize, 0..2i32, 1..8usize).prop_map(|(c, p, n)| Step::Read(c, p, n)),
        3 => (0..2usize).prop_map(Step::Store),
        1 => (0..2usize).prop_map(Step::DieHalfWay),
        1 => (0..2usize).prop_map(Step::Die),
    ]
}

fn log() -> impl Strategy<Value = Vec<Lies>> {
    prop::collection::vec((0..6u8, any::<prop::sample::Index>()), 0..40).prop_map(|drawn| {
        let mut log: Vec<Lies> = Vec::new();
        for (kind, earlier) in drawn {
            let events: Vec<i64> = (0..)
                .zip(&log)
                .filter(|(_, lies)| matches!(lies, Lies::Event))
                .map(|(offset, _)| offset)
                .collect();
            log.push(match kind {
                0 => Lies::Poison,
                1 if !events.is_empty() => Lies::Again(*earlier.get(&events)),
                _ => Lies::Event,
            });
        }
        log
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// After any steps of two consumers, each message is in the tables once.
    #[test]
    fn each_message_is_stored_once(logs in prop::collection::vec(log(), 2), steps in prop::collection::vec(step(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (events, dead_letters, totals) = runtime.block_on(async {
            let (_directory, root) = root();
            let mut consumers = [Consumer::new(&root), Consumer::new(&root)];
            let mut totals = BTreeMap::<&str, u64>::new();
            for step in steps {
                match step {
                    Step::Begin(c, partition) => consumers[c].begin(partition).await,
                    Step::Read(c, partition, count) => consumers[c].read(partition, &logs[partition as usize], count),
                    Step::Store(c) => consumers[c].store().await,
                    Step::DieHalfWay(c) => std::mem::replace(&mut consumers[c], Consumer::new(&root)).die_half_way().await,
                    Step::Die(c) => consumers[c] = Consumer::new(&root),
                }
            }
            for consumer in &consumers {
                let Totals { messages, accepted, duplicates, dead_letters, .. } = consumer.store.totals;
                *totals.entry("messages").or_default() += messages;
                *totals.entry("fates").or_default() += accepted + duplicates + dead_letters;
            }
            read_all(&root, &logs).await;
            (places(&root, EVENTS).await, places(&root, DEAD_LETTERS).await, totals)
        });
        let (all_events, all_dead_letters) = expected(&logs);
        prop_assert_eq!(events, all_events);
        prop_assert_eq!(dead_letters, all_dead_letters);
        prop_assert_eq!(totals["messages"], totals["fates"]);
    }
}
