//! `pipeline simulate`: writes a synthetic log, or sends it to a topic.

use std::path::PathBuf;

use chrono::NaiveDate;
use pipeline::kafka::simulated::{self, TopicSettings};
use simulate::{Compression, LogFormat, Pace, Rates, Settings};
use terminal::{CommonArgs, Interrupt, print_json};

/// Write a synthetic log of listening to music, of any size, with a catalogue and a configuration, or send it to a topic.
///
/// Equal arguments give equal bytes. The report counts every kind of event written, so that `pipeline ingest` can be checked
/// against it.
///
/// With --topic, the events become JSON messages in order of arrival, with the user's id as key. The producer is idempotent and
/// waits for every acknowledgement; Ctrl-C ends the log. kafka.properties of --config are librdkafka's settings.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  pipeline simulate --out runs/simulated --events 1000000
  pipeline simulate --topic clicks --brokers localhost:9092 --events 1000000 --out runs/topic
  pipeline simulate --topic clicks --events 100000 --rate 500 --now      live, some 500 events a second")]
pub(crate) struct Args {
    /// Directory to write to: events/, items.jsonl and simulated.toml; with --topic, no events.
    #[arg(long, value_name = "DIR", required_unless_present = "topic")]
    out: Option<PathBuf>,
    /// Send the events to this topic, which the brokers must have or create, instead of writing files.
    #[arg(long, conflicts_with_all = ["format", "compress", "files_per_day", "threads"])]
    topic: Option<String>,
    /// Brokers as comma-separated host:port, instead of the configuration's kafka.brokers.
    #[arg(long, value_name = "BROKERS", requires = "topic")]
    brokers: Option<String>,
    /// Messages per second, evenly spaced [default: as fast as possible].
    #[arg(long, value_name = "N", requires = "topic", value_parser = rate)]
    rate: Option<f64>,
    /// Date events by the time of sending: ts is the present, request_ts precedes it as in the log.
    #[arg(long, requires = "topic")]
    now: bool,
    /// Approximate number of events.
    #[arg(long, value_name = "N")]
    events: u64,
    /// Number of users [default: one per 105 events].
    #[arg(long, value_name = "N")]
    users: Option<u32>,
    /// Number of items [default: one per 100 events, but 100 to 1000000].
    #[arg(long, value_name = "N")]
    items: Option<u32>,
    /// Number of days.
    #[arg(long, value_name = "N", default_value_t = 30)]
    days: u32,
    /// First day.
    #[arg(long, value_name = "DATE", default_value = "2026-01-01")]
    start: NaiveDate,
    /// Seed of all random choices.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Format of the event files.
    #[arg(long, value_enum, default_value_t = LogFormat::Jsonl)]
    format: LogFormat,
    /// Compression of the event files; Parquet compresses inside.
    #[arg(long, value_enum, default_value_t = Compression::None)]
    compress: Compression,
    /// Files per day, divided by time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    files_per_day: u32,
    /// Share of the sessions that are in the file of a later day.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    late_rate: f64,
    /// Share of the events that occur twice in the log.
    #[arg(long, value_name = "SHARE", default_value_t = 0.001)]
    duplicate_rate: f64,
    /// Share of unusable records.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0001)]
    bad_rate: f64,
    /// Days written in parallel; 0 for one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Replace an earlier simulation in the directory; other files stay, also tables built from it.
    #[arg(long)]
    force: bool,
}

impl Args {
    fn settings(&self) -> Settings {
        let defaults = Settings::new(self.events);
        Settings {
            users: self.users.unwrap_or(defaults.users),
            items: self.items.unwrap_or(defaults.items),
            days: self.days,
            start: self.start,
            seed: self.seed,
            format: self.format,
            compression: self.compress,
            files_per_day: self.files_per_day,
            rates: Rates { late: self.late_rate, duplicate: self.duplicate_rate, bad: self.bad_rate },
            threads: self.threads,
            force: self.force,
            ..defaults
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "must be a number of messages from 0.001 to 1000000000".into())
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let settings = args.settings();
    let interrupt = Interrupt::on_signal();
    if let Some(topic) = args.topic {
        let mut config = common.load()?;
        config.kafka.topic = topic;
        if let Some(brokers) = args.brokers {
            config.kafka.brokers = brokers;
        }
        config.validate()?;
        let pace = Pace { rate: args.rate, now: args.now };
        let to = TopicSettings { kafka: config.kafka, pace };
        let work = move || simulated::send(&settings, &to, args.out.as_deref(), &interrupt);
        return show(common, &tokio::task::spawn_blocking(work).await??);
    }
    if common.config.is_some() || !common.set.is_empty() {
        // The configuration says who may read the files.
        common.load()?;
    }
    let out = args.out.unwrap_or_default();
    show(common, &tokio::task::spawn_blocking(move || ::simulate::run(&settings, &out, &interrupt)).await??)
}

fn show(common: &CommonArgs, report: &(impl std::fmt::Display + serde::Serialize)) -> anyhow::Result<()> {
    eprintln!("{report}");
    if common.json {
        print_json(report)?;
    }
    Ok(())
}
