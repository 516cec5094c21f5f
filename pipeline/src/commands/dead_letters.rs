//! `pipeline dead-letters`: sends rejected records again.

use chrono::{DateTime, NaiveDate, NaiveTime};
use clap::builder::PossibleValuesParser;
use pipeline::kafka::replay::{Filter, ReplayRequest, replay};
use schemas::tables::Reason;
use store::Root;
use terminal::{CommonArgs, Interrupt, print_json};

/// Send rejected records again, once the reason for their rejection is gone.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Replay(ReplayArgs),
}

/// Send rejected records to a topic: key and value unchanged, in the order of source and position.
///
/// A record is sent to a topic only once: the table replays lists each record sent, so the command can be repeated, also with
/// another filter, for records that failed or came since. A killed run may send up to 100000 records again that it could not
/// list. Records stay in dead_letters; one that is rejected again appears once more, with its new offset. An accepted event is
/// stored once if its producer gave it an id.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: a release sent broken JSON for a morning, and the topic's readers can now read it.
  pipeline inspect --config config/shop.toml dead_letters
  pipeline dead-letters replay --config config/shop.toml --reason malformed_json \\
      --since 2026-11-22T08:00:00Z --until 2026-11-22T12:00:00Z --source 'clicks-*' --dry-run
  and then without --dry-run"
)]
struct ReplayArgs {
    /// Records with this reason; may be repeated.
    #[arg(long = "reason", value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::code)))]
    reasons: Vec<String>,
    /// Records rejected at this time or later, such as 2026-11-22 or 2026-11-22T08:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    since: Option<i64>,
    /// Records rejected before this time.
    #[arg(long, value_name = "TIME", value_parser = time_ms)]
    until: Option<i64>,
    /// Records of sources that match this pattern; a partition is called TOPIC-NUMBER.
    #[arg(long, value_name = "PATTERN")]
    source: Option<glob::Pattern>,
    /// Include records of files, not only of topics.
    #[arg(long)]
    files: bool,
    /// Send all records, without a filter.
    #[arg(long, conflicts_with_all = ["reasons", "since", "until", "source"])]
    all: bool,
    /// Topic to send to, instead of the configuration's kafka.topic.
    #[arg(long)]
    topic: Option<String>,
    /// Brokers as comma-separated host:port, instead of the configuration's kafka.brokers.
    #[arg(long, value_name = "BROKERS")]
    brokers: Option<String>,
    /// Include records that an earlier replay sent to the topic.
    #[arg(long)]
    again: bool,
    /// Only count the records that would be sent.
    #[arg(long)]
    dry_run: bool,
}

/// Parses a date, or a time of RFC 3339, into epoch milliseconds.
fn time_ms(text: &str) -> Result<i64, String> {
    let date = text.parse::<NaiveDate>().ok().map(|date| date.and_time(NaiveTime::MIN).and_utc());
    let time = date.or_else(|| DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()));
    time.map(|time| time.timestamp_millis())
        .ok_or_else(|| "write a date such as 2026-11-22, or a time such as 2026-11-22T08:00:00Z".into())
}

pub(crate) async fn run(common: &CommonArgs, args: Args) -> anyhow::Result<()> {
    let Command::Replay(args) = args.command;
    let mut config = common.load()?;
    if let Some(brokers) = args.brokers {
        config.kafka.brokers = brokers;
    }
    if let Some(topic) = args.topic {
        config.kafka.topic = topic;
    }
    config.validate()?;
    let root = Root::new(&config.root)?;
    let request = ReplayRequest {
        filter: Filter {
            reasons: args.reasons,
            since_ms: args.since,
            until_ms: args.until,
            source: args.source,
            files: args.files,
        },
        all: args.all,
        topic: config.kafka.topic.clone(),
        dry_run: args.dry_run,
        again: args.again,
    };
    let interrupt = Interrupt::on_signal();
    let runtime = tokio::runtime::Handle::current();
    // Waiting for a broker blocks the thread.
    let work = move || runtime.block_on(replay(&config, &root, &request, &interrupt));
    let report = tokio::task::spawn_blocking(work).await??;
    eprintln!("{report}");
    if common.json {
        print_json(&report)?;
    }
    match report.problem {
        None => Ok(()),
        Some(problem) => anyhow::bail!(problem),
    }
}
