//! `climber`: runs `pipeline` and `trainer` on a schedule.
//!
//! | file | decides |
//! |---|---|
//! | `daily/` | the daily job: `work.rs` what each step does, `plan.rs` refresh or full training, `recovery.rs` what is done again |
//! | `refresh.rs` | the near-real-time refresh, once and as a loop |
//! | `gate.rs` | whether a model may be published: measurements, and the judgement on them |
//! | `publish.rs` | the next publication, and going back to an earlier one |
//! | `retention.rs` | what is deleted; `own.rs`: which models are the jobs' own |
//! | `record/` | what a run has done, on disk; read by `report/` (the page of a day), `retention.rs`, status and history |

// Prints go through `terminal::shown`.
#[macro_use(eprint, eprintln)]
extern crate terminal;

mod commands;
mod daily;
mod gate;
mod own;
mod publish;
mod record;
mod refresh;
mod report;
mod retention;
mod stop;

use std::process::ExitCode;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use report::run_json;

use clap::{Parser, Subcommand};
use commands::daily::DailyArgs;
use commands::history::HistoryArgs;
use commands::refresh::RefreshJobArgs;
use commands::rollback::RollbackArgs;
use commands::status::StatusArgs;
use terminal::{CommonArgs, report as report_error};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run the whole path from raw log to published model, as a scheduler would.
///
/// Exit codes: 0 success, 1 failure or interruption, 2 wrong usage or configuration, 4 the gate refused the new model, 5 some
/// days were skipped.
#[derive(Debug, Parser)]
#[command(name = "climber", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Daily(DailyArgs),
    Refresh(RefreshJobArgs),
    Status(StatusArgs),
    History(HistoryArgs),
    Rollback(RollbackArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // SAFETY: nothing has started a thread.
    unsafe { trainer::init_threads() };
    let result = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| {
        runtime.block_on(async {
            match &cli.command {
                Command::Daily(args) => args.run(&cli.common).await,
                Command::Refresh(args) => args.run(&cli.common).await,
                Command::Status(args) => args.run(&cli.common).await,
                Command::History(args) => args.run(&cli.common),
                Command::Rollback(args) => args.run(&cli.common),
            }
        })
    });
    match result {
        Ok(code) => code.into(),
        Err(error) => report_error("climber", error.as_ref()).into(),
    }
}
