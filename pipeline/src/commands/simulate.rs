//! `pipeline simulate`.

use std::path::PathBuf;

use chrono::NaiveDate;
use pipeline::kafka::simulated::{self, TopicSettings};
use simulate::{Compression, LogFormat, Pace, Rates, Settings};
use terminal::{CommonArgs, Interrupt, print_json};

/// Write a synthetic log of listening to music, of any size, with a catalogue and a configuration, or send it to a topic.
///
/// Equal arguments give equal bytes. Counts every kind of event that it writes, so that `pipeline ingest` can
/// be checked against it.
///
/// With --topic, the events become JSON messages in the order in which they arrive, with the user's id as key. The producer
/// is idempotent and waits for every acknowledgement; Ctrl-C ends the log there. librdkafka's settings are kafka.properties
/// of --config.
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
    /// Brokers, host:port with commas between, instead of the configuration's kafka.brokers.
    #[arg(long, value_name = "BROKERS", requires = "topic")]
    brokers: Option<String>,
    /// Messages a second, evenly; without it, as many as go through.
    #[arg(long, value_name = "N", requires = "topic", value_parser = rate)]
    rate: Option<f64>,
    /// Let events happen when they are sent: ts is the present, request_ts as long before as it was.
    #[arg(long, requires = "topic")]
    now: bool,
    /// Events; the log has about so many.
    #[arg(long, value_name = "N")]
    events: u64,
    /// Users [default: one for 105 events].
    #[arg(long, value_name = "N")]
    users: Option<u32>,
    /// Items [default: one for 100 events, but 100 to 1000000].
    #[arg(long, value_name = "N")]
    items: Option<u32>,
    /// Days.
    #[arg(long, value_name = "N", default_value_t = 30)]
    days: u32,
    /// The first day.
    #[arg(long, value_name = "DATE", default_value = "2026-01-01")]
    start: NaiveDate,
    /// Decides everything random.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Format of the files of events.
    #[arg(long, value_enum, default_value_t = LogFormat::Jsonl)]
    format: LogFormat,
    /// How they are packed; Parquet is packed inside.
    #[arg(long, value_enum, default_value_t = Compression::None)]
    compress: Compression,
    /// Files that a day is divided into, by time.
    #[arg(long, value_name = "N", default_value_t = 1)]
    files_per_day: u32,
    /// Share of the sessions that stand in the file of a later day.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    late_rate: f64,
    /// Share of the events that stand in the log twice.
    #[arg(long, value_name = "SHARE", default_value_t = 0.001)]
    duplicate_rate: f64,
    /// Share of the records that cannot be used.
    #[arg(long, value_name = "SHARE", default_value_t = 0.0001)]
    bad_rate: f64,
    /// Days to write side by side; 0 takes one for each core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Replace an earlier simulation in the directory; other files stay, and so do tables that were made of it.
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
        // It says who may read the files.
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
