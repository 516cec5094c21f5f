//! `pipeline simulate`.

use std::path::PathBuf;

use chrono::NaiveDate;
use clap::ValueEnum;
use pipeline::simulate::{self, Compression, Rates, Settings};
use schemas::cli::{CommonArgs, Interrupt, print_json};

/// Write a synthetic log of listening to music, of any size, with a catalogue and a configuration.
///
/// Equal arguments give equal bytes. Counts every kind of event that it writes, so that `pipeline ingest` can
/// be checked against it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory to write to: events/, items.jsonl and simulated.toml.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
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
    #[arg(long, value_enum, default_value_t = FormatArg::Jsonl)]
    format: FormatArg,
    /// How they are packed; Parquet is packed inside.
    #[arg(long, value_enum, default_value_t = CompressArg::None)]
    compress: CompressArg,
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

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    Jsonl,
    Csv,
    Parquet,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressArg {
    None,
    Gzip,
    Zstd,
}

impl Args {
    fn settings(&self) -> Settings {
        use schemas::config::Format;
        let defaults = Settings::new(self.events);
        Settings {
            users: self.users.unwrap_or(defaults.users),
            items: self.items.unwrap_or(defaults.items),
            days: self.days,
            start: self.start,
            seed: self.seed,
            format: match self.format {
                FormatArg::Jsonl => Format::Jsonl,
                FormatArg::Csv => Format::Csv,
                FormatArg::Parquet => Format::Parquet,
            },
            compression: match self.compress {
                CompressArg::None => Compression::None,
                CompressArg::Gzip => Compression::Gzip,
                CompressArg::Zstd => Compression::Zstd,
            },
            files_per_day: self.files_per_day,
            rates: Rates { late: self.late_rate, duplicate: self.duplicate_rate, bad: self.bad_rate },
            threads: self.threads,
            force: self.force,
            ..defaults
        }
    }
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let settings = args.settings();
    let interrupt = Interrupt::on_signal();
    let report =
        tokio::task::spawn_blocking(move || simulate::run(&settings, &args.out, &interrupt)).await??;
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    Ok(())
}
