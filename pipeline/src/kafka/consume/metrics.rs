//! Prometheus metrics over HTTP (`--metrics ADDR`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use rdkafka::statistics::Statistics;
use schemas::tables::Reason;
use tokio::net::TcpListener;

use super::error::ConsumeError;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Partition {
    partition: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// Counters of a running consumer.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    messages: Family<Partition, Counter>,
    bytes: Family<Partition, Counter>,
    accepted: Counter,
    duplicates: Counter,
    forgotten: Counter,
    dead_letters: Family<ByReason, Counter>,
    gone: Family<Partition, Counter>,
    commits: Counter,
    conflicts: Counter,
    commit_seconds: Histogram,
    visible_seconds: Histogram,
    last_commit: Seconds,
    rebalances: Counter,
    pauses: Counter,
    known_ids: Gauge,
    /// Partition → messages between the last one taken and the end; `committed_lag`: between the table's offset and the end.
    lag: Family<Partition, Gauge>,
    committed_lag: Family<Partition, Gauge>,
    end: Family<Partition, Gauge>,
    offset: Family<Partition, Gauge>,
    /// Partitions whose lags are reported → the offset after the last polled message.
    polled: Mutex<BTreeMap<i32, i64>>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("climber_pilot_consumer");
        let messages = Family::default();
        registry.register("messages", "Messages taken from the topic", messages.clone());
        let bytes = Family::default();
        registry.register_with_unit("read", "Bytes of keys and values", Unit::Bytes, bytes.clone());
        let accepted = Counter::default();
        registry.register("accepted_events", "New rows of `events`, committed", accepted.clone());
        let forgotten = Counter::default();
        registry.register(
            "forgotten_messages",
            "Messages of users who were forgotten, not stored",
            forgotten.clone(),
        );
        let duplicates = Counter::default();
        registry.register(
            "duplicate_events",
            "Events that were stored before, by their ids",
            duplicates.clone(),
        );
        let dead_letters = Family::default();
        registry.register("dead_letters", "Messages that are no events, committed", dead_letters.clone());
        let gone = Family::default();
        registry.register(
            "gone_offsets",
            "Offsets that the broker deleted before they were read",
            gone.clone(),
        );
        let commits = Counter::default();
        registry.register("commits", "Commits to `events`", commits.clone());
        let conflicts = Counter::default();
        registry.register("conflicts", "Commits that another writer preceded", conflicts.clone());
        let commit_seconds = Histogram::new(exponential_buckets(0.005, 2.0, 14));
        registry.register_with_unit(
            "commit",
            "From a full micro-batch to its commit",
            Unit::Seconds,
            commit_seconds.clone(),
        );
        let visible_seconds = Histogram::new(exponential_buckets(0.01, 2.0, 18));
        registry.register_with_unit(
            "visible",
            "From the sending of a micro-batch's oldest message to its commit",
            Unit::Seconds,
            visible_seconds.clone(),
        );
        let last_commit = Seconds::default();
        registry.register_with_unit(
            "last_commit_timestamp",
            "When the last commit was made",
            Unit::Seconds,
            last_commit.clone(),
        );
        let rebalances = Counter::default();
        registry.register("rebalances", "Assignments and revocations of partitions", rebalances.clone());
        let pauses = Counter::default();
        registry.register(
            "pauses",
            "Times that fetching was paused because the tables were behind",
            pauses.clone(),
        );
        let known_ids = Gauge::default();
        registry.register("known_ids", "Ids of stored events that are kept in memory", known_ids.clone());
        let lag = Family::default();
        registry.register(
            "lag_messages",
            "Messages behind the end of the partition, by what was taken",
            lag.clone(),
        );
        let committed_lag = Family::default();
        registry.register("committed_lag_messages", "The same, by what the table has", committed_lag.clone());
        let (end, offset) = (Family::default(), Family::default());
        registry.register("end_offset", "The end of the partition, by the broker", end.clone());
        registry.register("committed_offset", "The next offset, by the table", offset.clone());
        Self {
            registry,
            messages,
            bytes,
            accepted,
            duplicates,
            forgotten,
            dead_letters,
            gone,
            commits,
            conflicts,
            commit_seconds,
            visible_seconds,
            last_commit,
            rebalances,
            pauses,
            known_ids,
            lag,
            committed_lag,
            end,
            offset,
            polled: Mutex::default(),
        }
    }

    /// The messages of partitions before these offsets were polled.
    pub(super) fn polled(&self, ends: &[(i32, i64)]) {
        let mut partitions = self.partitions();
        for (partition, next) in ends {
            if let Some(polled) = partitions.get_mut(partition) {
                *polled = *next;
            }
        }
    }

    /// Counts decoded messages of a partition.
    pub(super) fn taken(&self, partition: i32, messages: u64, bytes: u64) {
        self.messages.get_or_create(&Partition { partition }).inc_by(messages);
        self.bytes.get_or_create(&Partition { partition }).inc_by(bytes);
    }

    /// Counts messages of forgotten users.
    pub(super) fn forgotten(&self, messages: u64) {
        self.forgotten.inc_by(messages);
    }

    pub(super) fn rejected(&self, reason: Reason) {
        self.dead_letters.get_or_create(&ByReason { reason: reason.code() }).inc();
    }

    pub(super) fn gone(&self, partition: i32, offsets: u64) {
        self.gone.get_or_create(&Partition { partition }).inc_by(offsets);
    }

    pub(super) fn conflicted(&self) {
        self.conflicts.inc();
    }

    pub(super) fn rebalanced(&self) {
        self.rebalances.inc();
    }

    pub(super) fn paused(&self) {
        self.pauses.inc();
    }

    /// Reading of a partition begins at `offset`; the table has everything before it.
    pub(super) fn began(&self, partition: i32, offset: i64, end: i64) {
        let label = Partition { partition };
        self.end.get_or_create(&label).set(end);
        self.lag.get_or_create(&label).set((end - offset).max(0));
        self.partitions().insert(partition, offset);
        self.committed(partition, offset);
    }

    /// The table has everything of a partition before `offset`.
    pub(super) fn committed(&self, partition: i32, offset: i64) {
        let label = Partition { partition };
        self.offset.get_or_create(&label).set(offset);
        let end = self.end.get_or_create(&label).get();
        self.committed_lag.get_or_create(&label).set((end - offset).max(0));
    }

    /// Removes the lags of a partition that another consumer reads now.
    pub(super) fn revoked(&self, partition: i32) {
        self.partitions().remove(&partition);
        let label = Partition { partition };
        for family in [&self.lag, &self.committed_lag, &self.end, &self.offset] {
            family.remove(&label);
        }
    }

    /// A micro-batch is committed; its oldest message was sent `behind` milliseconds ago.
    pub(super) fn stored(
        &self,
        accepted: u64,
        duplicates: u64,
        took: Duration,
        behind: Option<i64>,
        known_ids: usize,
    ) {
        self.accepted.inc_by(accepted);
        self.duplicates.inc_by(duplicates);
        self.commits.inc();
        self.commit_seconds.observe(took.as_secs_f64());
        if let Some(behind) = behind {
            self.visible_seconds.observe(behind.max(0) as f64 / 1e3);
        }
        self.last_commit.set(chrono::Utc::now().timestamp_millis() as f64 / 1e3);
        self.known_ids.set(i64::try_from(known_ids).unwrap_or(i64::MAX));
    }

    /// Takes over librdkafka's statistics of the partitions.
    pub(super) fn statistics(&self, topic: &str, statistics: &Statistics) {
        let Some(topic) = statistics.topics.get(topic) else { return };
        let ours = self.partitions().clone();
        for partition in topic.partitions.values().filter(|partition| partition.hi_offset >= 0) {
            let Some(&taken) = ours.get(&partition.partition) else { continue };
            let label = Partition { partition: partition.partition };
            // Messages of an open transaction cannot be read yet.
            let end = if partition.ls_offset >= 0 { partition.ls_offset } else { partition.hi_offset };
            self.end.get_or_create(&label).set(end);
            let offset = self.offset.get_or_create(&label).get();
            // After the last message there may be records that no consumer gets: transaction markers and aborted messages.
            let all_taken = partition.next_offset >= end && partition.fetchq_cnt == 0;
            let lag = if all_taken { 0 } else { (end - taken).max(0) };
            self.lag.get_or_create(&label).set(lag);
            let all_stored = all_taken && offset >= taken;
            let committed_lag = if all_stored { 0 } else { (end - offset).max(0) };
            self.committed_lag.get_or_create(&label).set(committed_lag);
        }
    }

    fn partitions(&self) -> MutexGuard<'_, BTreeMap<i32, i64>> {
        self.polled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics in Prometheus' text format.
    fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            let _ = writeln!(text, "# {error}");
        }
        text
    }
}

/// Answers `GET /metrics` at `address` until the returned handle is dropped; also returns the address with the actual port.
pub(super) async fn serve(
    metrics: Arc<Metrics>,
    address: SocketAddr,
) -> Result<(SocketAddr, tokio::task::JoinHandle<()>), ConsumeError> {
    let fail = |source| ConsumeError::Metrics { address, source };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let bound = listener.local_addr().map_err(fail)?;
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| {
                    let answer = answer(&metrics, &request);
                    async move { answer }
                });
                // Ignore scrapers that disconnect.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    Ok((bound, task))
}

fn answer(
    metrics: &Metrics,
    request: &Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    let (status, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, metrics.text()),
        _ => (StatusCode::NOT_FOUND, "GET /metrics\n".into()),
    };
    Response::builder()
        .status(status)
        .header("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(Full::new(text.into()))
}
