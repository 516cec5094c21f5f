//! A broker of Apache Kafka.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use tempfile::TempDir;

use super::service::{Service, available, free_ports};
use super::{client, unique};

type Admin = AdminClient<DefaultClientContext>;

/// Session settings that free a killed consumer's partitions within seconds.
const SETTINGS: [&str; 5] = [
    "group.min.session.timeout.ms=1000",
    "group.consumer.min.session.timeout.ms=1000",
    "group.consumer.session.timeout.ms=3000",
    "group.consumer.min.heartbeat.interval.ms=100",
    "group.consumer.heartbeat.interval.ms=500",
];

pub(crate) struct Broker {
    // Dropped, and so killed, before its data are removed.
    service: Service,
    port: u16,
    args: Vec<String>,
    data: TempDir,
}

impl Broker {
    /// Starts a broker for one test, to be killed; `None` without Java or Maven (see [`available`]).
    pub(crate) fn start() -> Option<Self> {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        if !*AVAILABLE.get_or_init(|| available(&[])) {
            return None;
        }
        let (port, controller_port) = free_ports();
        let mut args = vec![format!("--port={port}"), format!("--controller-port={controller_port}")];
        args.extend(SETTINGS.iter().map(|setting| format!("--set={setting}")));
        let data = tempfile::Builder::new().prefix("kafka-").tempdir().unwrap();
        let service = Service::launch("broker", data.path(), "run", &args);
        let mut broker = Self { service, port, args, data };
        broker.wait();
        Some(broker)
    }

    /// Returns the broker that tests share. It is never dropped: it ends with the process, and its data with it.
    pub(crate) fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Broker>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// Returns `host:port`, for `kafka.brokers`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Waits until every partition of every topic has a leader.
    fn wait(&mut self) {
        let consumer: BaseConsumer = client(&self.address()).create().unwrap();
        self.service.wait(|| {
            consumer.fetch_metadata(None, Duration::from_secs(1)).is_ok_and(|metadata| {
                let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
                !metadata.brokers().is_empty() && partitions.all(|partition| partition.leader() >= 0)
            })
        });
    }

    /// Kills the broker (SIGKILL).
    pub(crate) fn kill(&mut self) {
        self.service.kill();
    }

    /// Restarts the broker after [`Self::kill`], at the same address, with its data.
    pub(crate) fn restart(&mut self) {
        self.service = Service::launch("broker", self.data.path(), "run", &self.args);
        self.wait();
    }

    /// Creates a topic for this test alone, called `name` and a number.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32) -> String {
        let topic = unique(name);
        assert_eq!(self.create(&topic, partitions), Ok(topic.clone()));
        topic
    }

    fn create(&self, topic: &str, partitions: i32) -> TopicResult {
        let new = [NewTopic::new(topic, partitions, TopicReplication::Fixed(1))];
        let created = self.ask(async |admin, options| admin.create_topics(&new, options).await);
        created.into_iter().next().unwrap()
    }

    /// Deletes a topic and creates it again, empty.
    pub(crate) fn recreate_topic(&self, topic: &str, partitions: i32) {
        let deleted = self.ask(async |admin, options| admin.delete_topics(&[topic], options).await);
        assert_eq!(deleted, [Ok(topic.to_owned())]);
        let begin = Instant::now();
        while let Err(error) = self.create(topic, partitions) {
            assert!(begin.elapsed() < Duration::from_secs(60), "{topic}: {error:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Deletes a partition's messages before `offset`, as retention does.
    pub(crate) fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(topic, partition, Offset::Offset(offset)).unwrap();
        let deleted = self.ask(async |admin, options| admin.delete_records(&offsets, options).await);
        assert_eq!(deleted.elements()[0].error(), Ok(()));
    }

    fn ask<T: Send>(&self, question: impl AsyncFnOnce(&Admin, &AdminOptions) -> KafkaResult<T> + Send) -> T {
        let admin: Admin = client(&self.address()).create().unwrap();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        // On another thread: the test itself may run inside a runtime.
        std::thread::scope(|scope| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            scope.spawn(move || runtime.block_on(question(&admin, &options)).unwrap()).join().unwrap()
        })
    }

    pub(crate) fn process(&self) -> u32 {
        self.service.id()
    }
}
