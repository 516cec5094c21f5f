//! `pipeline consume`: reads a Kafka topic into tables.

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::ValueEnum;
use pipeline::kafka::consume::{self, ConsumeOptions};
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use schemas::memory::MemorySize;
use store::Root;
use terminal::{CommonArgs, Interrupt, LogOutput, print_json};

/// Read a Kafka topic into the tables events and dead_letters, each message exactly once.
///
/// The tables themselves hold the offsets to continue from: a consumer killed at any moment and restarted loses nothing and
/// stores nothing twice. Consumers of one group share the partitions. Ctrl-C or SIGTERM commits what was read and leaves the
/// group.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline consume --config c.toml --set kafka.brokers=localhost:9092 --set kafka.topic=clicks
  pipeline consume --config c.toml --once                # up to now, for a scheduler
  pipeline consume --config c.toml --metrics 9464        # http://127.0.0.1:9464/metrics

[kafka] in the configuration names the topic, the format of its messages (json, avro, protobuf), when a commit
is due (batch_rows, batch_bytes, batch_interval), and librdkafka's own settings (properties); secrets there are
env:NAME or file:PATH. [events] says which field of a message is what.")]
pub(crate) struct Args {
    /// Stop at the end that each partition has when its reading begins.
    #[arg(long)]
    once: bool,
    /// Serve Prometheus metrics at this address, such as 0.0.0.0:9464; a port alone is reachable from this machine only.
    #[arg(long, value_name = "ADDR", value_parser = address)]
    metrics: Option<SocketAddr>,
    /// Memory for the ids of stored events within events.dedup_days (some 36 bytes each); with less than they need, dates are
    /// read again and again. Default: half of the share in [memory].
    #[arg(long, value_name = "SIZE")]
    memory: Option<MemorySize>,
    /// Form of the run's messages on stderr.
    #[arg(long, value_enum, default_value_t = Log::Text)]
    log: Log,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    text.parse().map_err(|_| "write HOST:PORT with a numeric host, or PORT".into())
}

/// Starts logging: this program's messages from `INFO` on, its libraries' from `WARN` on.
fn start_log(form: Log) {
    let ours = Targets::new().with_default(Level::WARN).with_target("pipeline", Level::INFO);
    let output = match form {
        Log::Text => LogOutput::Text,
        Log::Json => LogOutput::Json,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(move || output);
    let registry = tracing_subscriber::registry().with(ours);
    match form {
        Log::Text => {
            let ansi = std::io::stderr().is_terminal();
            registry.with(layer.with_target(false).with_ansi(ansi)).init();
        }
        Log::Json => registry.with(layer.json().flatten_event(true)).init(),
    }
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let config = common.load()?;
    let root = Root::new(&config.root)?;
    start_log(args.log);
    let options = ConsumeOptions { once: args.once, metrics: args.metrics, memory: args.memory };
    let report = consume::run(&config, &root, options, &Interrupt::on_signal()).await?;
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
