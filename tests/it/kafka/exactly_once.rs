//! Every message of a topic is in the tables exactly once, whichever process is killed meanwhile.
//!
//! Two consumers of one group read while messages are sent. Every second or so, one of them is killed (SIGKILL) at any point and
//! restarted; the broker is killed once. Afterwards every sent position is in `events` or in `dead_letters` once, except for
//! events sent again under their id, which are stored once, at their first position. Nothing else is stored, in particular no
//! message of an aborted transaction.

use std::process::Command;
use std::time::{Duration, Instant};

use super::consumer::Consumer;
use super::produce::Random;
use super::stream::{PARTITIONS, Stream};
use super::tally::{Fate, Sent};
use super::{Broker, End, Message, Position, Producer, tables};
use crate::programs::{Workspace, stderr};

/// How the group divides the partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    /// The broker waits for a killed member until its session times out.
    Classic,
    /// A member that returns under its name gets its partitions at once.
    Static,
    /// The broker assigns partitions (KIP-848).
    Broker,
}

/// A topic, and the root that its messages go to.
struct Scene {
    workspace: Workspace,
    topic: String,
    group: Group,
}

impl Scene {
    fn new(broker: &Broker, group: Group, batch_rows: u32) -> Self {
        let (workspace, topic) = (Workspace::new(), broker.create_topic("interactions", PARTITIONS));
        let protocol = if group == Group::Broker { "consumer" } else { "classic" };
        // With its own protocol, the broker decides the session.
        let session =
            "properties = { \"session.timeout.ms\" = \"2000\", \"heartbeat.interval.ms\" = \"500\" }";
        let session = if group == Group::Broker { "" } else { session };
        let config = format!(
            r#"
root = "root"

[events]
columns = {{ user_id = "user", item_id = "item", ts = "time", event_id = "id" }}
ts_format = "ms"
max_dead_letter_rate = 0.5

[kafka]
brokers = "{}"
topic = "{topic}"
group = "{topic}"
protocol = "{protocol}"
batch_rows = {batch_rows}
batch_interval = "300ms"
{session}
"#,
            broker.address()
        );
        workspace.write("config.toml", config);
        Self { workspace, topic, group }
    }

    /// Returns `pipeline consume` as the group's member `name`.
    fn command(&self, name: &str) -> Command {
        let mut command = self.workspace.command("pipeline", &["consume"]);
        if self.group == Group::Static {
            command.args(["--set", &format!("kafka.instance={name}")]);
        }
        command
    }

    fn consume_once(&self) {
        let output = self.command("once").arg("--once").output().unwrap();
        assert!(output.status.success(), "consume --once: {}", stderr(&output));
    }

    /// Returns the number of rows in `events`.
    fn stored(&self) -> usize {
        tables::events(&self.workspace.root()).len()
    }

    fn check(&self, sent: &[Sent]) {
        tables::check(&self.workspace.root(), &self.topic, sent);
    }
}

/// A running consumer, and the name that it passes on to its replacement.
struct Member<'a> {
    scene: &'a Scene,
    name: &'static str,
    consumer: Consumer,
}

impl<'a> Member<'a> {
    fn start(scene: &'a Scene, name: &'static str) -> Self {
        let log = scene.workspace.path(&format!("{name}.log"));
        Self { scene, name, consumer: Consumer::start(scene.command(name), log) }
    }

    /// Asserts that it runs: neither a killed broker nor a killed neighbour ends it.
    fn check(&mut self) {
        self.consumer.check();
    }

    /// Kills the consumer and starts another one in its place.
    fn replace(&mut self) {
        self.check();
        self.consumer.kill();
        *self = Self::start(self.scene, self.name);
    }
}

fn note(sent: &mut Vec<Sent>, positions: Vec<Position>, fates: Vec<Fate>) {
    sent.extend(positions.into_iter().zip(fates).map(|(position, fate)| Sent { position, fate }));
}

/// Sends `slices` times `slice` events while consumers are killed; then `consume --once` reads the rest.
fn kill_and_count(group: Group, slices: u64, slice: u64) {
    let Some(mut broker) = Broker::start() else { return };
    let scene = Scene::new(&broker, group, (slice * 2) as u32);
    let producer = Producer::new(&broker.address());
    let transactional = Producer::transactional(&broker.address(), &scene.topic);
    let (mut stream, mut random, mut sent, mut kills) = (Stream::new(), Random::new(), Vec::new(), 0);
    let mut consumers = [Member::start(&scene, "one"), Member::start(&scene, "two")];
    for i in 0..slices {
        let (messages, fates) = stream.take(slice);
        if i % 5 == 4 {
            let (mut aborted, _) = stream.at(1_000_000_000 + i * slice).take(20);
            aborted.push(Message::tombstone(0, "aborted"));
            transactional.transaction(&scene.topic, &aborted, End::Abort);
            note(&mut sent, transactional.transaction(&scene.topic, &messages, End::Commit), fates);
        } else {
            note(&mut sent, producer.send(&scene.topic, &messages), fates);
        }
        if i == slices / 2 {
            broker.kill();
            std::thread::sleep(Duration::from_secs(1));
            broker.restart();
        }
        std::thread::sleep(Duration::from_millis(200 + random.below(500)));
        if random.below(5) < 2 {
            consumers[random.below(2) as usize].replace();
            kills += 1;
        }
        consumers.iter_mut().for_each(Member::check);
    }
    // Unless something was stored during the kills, nothing was tested.
    let begin = Instant::now();
    while scene.stored() == 0 {
        consumers.iter_mut().for_each(Member::check);
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "nothing is stored: {}",
            consumers[0].consumer.said()
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("{kills} kills; {} of {} stored before the last one reads", scene.stored(), sent.len());
    drop(consumers);
    scene.consume_once();
    scene.check(&sent);
    // Nothing is new, and nothing is stored again.
    scene.consume_once();
    scene.check(&sent);
}

#[test]
fn two_consumers_are_killed_and_so_is_the_broker() {
    kill_and_count(Group::Classic, 50, 1_000);
}

#[test]
fn consumers_that_come_back_under_their_names_are_killed() {
    kill_and_count(Group::Static, 15, 500);
}

#[test]
fn consumers_that_the_broker_assigns_to_are_killed() {
    kill_and_count(Group::Broker, 15, 500);
}

/// Run with `cargo test --workspace -- --ignored a_million`; takes some minutes.
#[test]
#[ignore = "a million messages take minutes"]
fn a_million_messages_while_consumers_are_killed() {
    kill_and_count(Group::Classic, 250, 4_000);
}

#[test]
fn a_consumer_that_is_told_to_stop_commits_and_exits_with_0() {
    let Some(broker) = Broker::shared() else { return };
    let scene = Scene::new(broker, Group::Classic, 1_000);
    let producer = Producer::new(&broker.address());
    let (mut stream, mut sent) = (Stream::new(), Vec::new());
    let mut consumer = Member::start(&scene, "one");
    let begin = Instant::now();
    while scene.stored() == 0 {
        consumer.check();
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "nothing is stored: {}",
            consumer.consumer.said()
        );
        let (messages, fates) = stream.take(200);
        note(&mut sent, producer.send(&scene.topic, &messages), fates);
        std::thread::sleep(Duration::from_millis(100));
    }
    consumer.consumer.stop();
    scene.consume_once();
    scene.check(&sent);
}
