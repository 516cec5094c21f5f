//! `jobs`: runs `pipeline` and `trainer` on a schedule.

mod daily;

use std::process::ExitCode;

use anyhow::Result;
use chrono::{NaiveDate, Utc};
use clap::{Args, Parser, Subcommand};
use schemas::cli::{CommonArgs, EXIT_DONE, EXIT_FAILED, Interrupt, print_json, report};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run the whole path from raw log to evaluated model, as a scheduler would.
///
/// Exit codes: 0 done, 1 failed or interrupted, 2 wrong usage or configuration.
#[derive(Debug, Parser)]
#[command(name = "jobs", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Daily(DailyArgs),
}

/// One day's job: ingest, build sequences, train, evaluate.
///
/// Every step leaves alone what it has done before, so a failed or interrupted job is repaired by running it
/// again. The trained model is written to models/NAME; publishing it to the servers is not part of this job.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  jobs daily --config config/movielens.toml")]
struct DailyArgs {
    /// The day, such as 2026-11-22; it stands for {date} in events.paths and items.paths. Default: today, UTC.
    #[arg(long, value_name = "DATE")]
    date: Option<NaiveDate>,
    /// Name of the model. Default: the date.
    #[arg(long)]
    name: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // SAFETY: nothing has started a thread.
    unsafe { trainer::init_threads() };
    let result = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            match &cli.command {
                Command::Daily(args) => args.run(&cli.common).await,
            }
        })
    });
    match result {
        Ok(code) => code.into(),
        Err(error) => report("jobs", error.as_ref()).into(),
    }
}

impl DailyArgs {
    async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let date = self.date.unwrap_or_else(|| Utc::now().date_naive());
        let name = self.name.clone().unwrap_or_else(|| date.to_string());
        let config = daily::for_date(common.load()?, date);
        let report = daily::run(&config, date, &name, &Interrupt::on_signal()).await?;
        eprintln!(
            "\n{date}: {} in {:.1} s",
            if report.finished() { "done" } else { "interrupted" },
            report.seconds
        );
        if common.json {
            print_json(&report)?;
        }
        Ok(if report.finished() { EXIT_DONE } else { EXIT_FAILED })
    }
}
