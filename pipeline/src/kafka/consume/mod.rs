//! `pipeline consume`: reads a topic into `events` and `dead_letters`, each message exactly once.
//!
//! ```text
//!   poll ──────────▶ assemble ──────────▶ commits
//!   one thread:      one thread:          one task: micro-batches into shards and commits
//!   the group,       messages taken          │
//!   its rebalances   apart, micro-batches    │ committed offsets, partitions that others took over
//!     ▲──────────────────────────────────────┘
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `poll/` | the thread that polls; rebalances, retention, recreated topics (`context.rs`) |
//! | `assemble.rs`, `batch.rs` | messages into micro-batches |
//! | `commits/` | the two commits of a micro-batch: dead letters, then events; fencing of a consumer that lost its partitions |
//! | `reached.rs`, `identity.rs` | offsets in the tables' logs, and which topic of which cluster they belong to |
//! | `known_ids.rs` | ids of events that may be sent again |
//! | `settings.rs`, `metrics.rs` | librdkafka's settings; metrics over HTTP |
//!
//! **Exactly once.** The tables' own logs record the offsets: each commit carries, for every partition in it, the offset after
//! its last message ([`reached`]). Reading begins at the offset in `events`, whatever the group's offsets are, and a batch is
//! committed only if the table's offset is where the batch begins ([`commits`]). Wherever a consumer is killed, it has
//! either committed a batch or not, and the next one continues from there.
//!
//! **Counting.** In every commit, messages = accepted + duplicates + dead letters + forgotten.
//!
//! **Order.** A partition's events are stored in the order of their offsets. Late events are stored under the date of their
//! own time; the next build sorts them in.
//!
//! **Memory.** What librdkafka fetches ahead, the chunks between the threads, and three micro-batches: one that is filled,
//! one that waits and one that is written. When the store is behind, the channels fill up, and fetching is paused. The ids of
//! the dates that may still be sent again come on top ([`known_ids`]), within `--memory`.

mod assemble;
mod batch;
mod commits;
mod error;
mod identity;
mod known_ids;
mod metrics;
mod poll;
mod reached;
mod report;
mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::config::{Config, ConfigError};
use schemas::memory::MemorySize;
use schemas::tables::{DEAD_LETTERS, EVENTS};
use store::Root;
use store::boxed::LocalBoxed;
use terminal::Interrupt;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use assemble::{Assembler, FirstTimes, ForgottenWatch};
use commits::Store;
use metrics::Metrics;
use poll::{Poller, Shared};

use crate::kafka::decode::Decoder;
use crate::privacy::Forgotten;
use crate::records::Mapping;

pub use error::ConsumeError;
pub(crate) use reached::{topic_in, topics_of};
pub use report::{ConsumeReport, ExpiredOffsets, Totals};

/// Maximum time for leaving the group after a failure.
const LEAVE: Duration = Duration::from_secs(10);

/// Options of a consumer's run.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConsumeOptions {
    /// Whether to stop at the end that every partition has at the start.
    pub once: bool,
    /// The address of the metrics; `None` serves none.
    pub metrics: Option<SocketAddr>,
    /// Memory for the ids of stored events; by default that of `[memory]`.
    pub memory: Option<MemorySize>,
}

/// Reads the configured topic into the tables of `root` until interrupted, then commits the messages read so far. Must be
/// called inside a Tokio runtime with more than one thread.
///
/// # Errors
///
/// Any [`ConsumeError`]. Commits made before it stay; the next consumer reads everything else again.
pub fn run<'a>(
    config: &'a Config,
    root: &'a Root,
    options: ConsumeOptions,
    interrupt: &'a Interrupt,
) -> LocalBoxed<'a, Result<ConsumeReport, ConsumeError>> {
    Box::pin(consume(config, root, options, interrupt))
}

async fn consume(
    config: &Config,
    root: &Root,
    options: ConsumeOptions,
    interrupt: &Interrupt,
) -> Result<ConsumeReport, ConsumeError> {
    let started = Instant::now();
    if config.events.explode.is_on() {
        return Err(ConsumeError::Config(ConfigError::Invalid {
            key: "events.explode".into(),
            problem: "takes records of files apart; messages of a topic hold one event each".into(),
        }));
    }
    let kafka = &config.memory.for_consumer(&config.kafka);
    let metrics = Arc::new(Metrics::new());
    let mut server = None;
    if let Some(address) = options.metrics {
        let (bound, task) = metrics::serve(metrics.clone(), address).await?;
        tracing::info!("metrics at http://{bound}/metrics");
        server = Some(task);
    }
    for table in [EVENTS, DEAD_LETTERS] {
        root.snapshot_to_write(table, false).await?;
    }
    let mut mapping = Mapping::new(&config.events);
    let version = Forgotten::version(root)?;
    mapping.forget(Forgotten::load(root, &config.forget).await?);
    let assembler = Assembler {
        kafka: kafka.clone(),
        max_record_bytes: config.events.max_record_bytes,
        dedup_days: config.consumer_dedup_days(),
        decoder: Decoder::new(kafka, &mapping.wanted, &Handle::current(), interrupt)?,
        mapping,
        first: config.events.check_times.then(|| FirstTimes::new(config.events.ts_format.clone())),
        metrics: metrics.clone(),
        who: ForgottenWatch {
            root: root.clone(),
            settings: config.forget.clone(),
            runtime: Handle::current(),
            version,
        },
    };
    let shared = Shared::default();
    let poller = Poller {
        kafka: kafka.clone(),
        root: root.clone(),
        once: options.once,
        runtime: Handle::current(),
        interrupt: interrupt.clone(),
        shared: shared.clone(),
        metrics: metrics.clone(),
    };
    let ids_bytes = options.memory.unwrap_or_else(|| config.memory.ids_of_consumer()).bytes;
    let mut store =
        Store::new(root.clone(), &kafka.topic, config.consumer_dedup_days(), ids_bytes, shared, metrics);

    let (to_assembler, from_poller) = poll::channel();
    // One batch waits while another is written.
    let (to_store, from_assembler) = tokio::sync::mpsc::channel(1);
    let polling = stage("poll", move || poller.run(to_assembler));
    let assembling = stage("assemble", move || assembler.run(from_poller, to_store));
    let stored = store.run(from_assembler).await;
    store.shared.lock().ended = true;
    // After any failure, leave the group; otherwise the group waits until this member's session times out.
    let (polled, assembled) = (ended(polling, "poller").await, ended(assembling, "assembler").await);
    // A stage ends when the next one does, so the last stage's error is reported first: it is the cause.
    stored?;
    assembled??;
    let polled = polled??;
    if let Some(server) = server {
        server.abort();
    }
    let totals = store.totals;
    let accounted = totals.accepted + totals.duplicates + totals.dead_letters + totals.forgotten;
    if totals.messages != accounted {
        return Err(ConsumeError::LostCount { messages: totals.messages, accounted });
    }
    Ok(ConsumeReport {
        totals,
        gone: polled.gone,
        drained: polled.drained,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Runs `work` on a thread called `name`; the returned receiver gets its result, or an error if it panics.
fn stage<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
    let (done, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        // Fails if another stage has failed and the receiver is dropped.
        let _ = done.send(work());
    });
    // If the thread could not start, the sender is dropped, and the receiver gets an error.
    drop(thread);
    result
}

/// Waits, at most [`LEAVE`], for the result of a stage that has nothing more to do.
async fn ended<T>(result: oneshot::Receiver<T>, name: &'static str) -> Result<T, ConsumeError> {
    let result = tokio::time::timeout(LEAVE, result).await;
    result.ok().and_then(Result::ok).ok_or(ConsumeError::Thread(name))
}
