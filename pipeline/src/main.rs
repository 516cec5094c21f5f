//! Raw interaction logs to Delta tables, and a look into them.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use schemas::cli::{CommonArgs, EXIT_DONE, report};

use commands::{build_sequences, inspect};

/// Raw interaction logs to Delta tables, and a look into them.
#[derive(Debug, Parser)]
#[command(name = "pipeline", version)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the table `sequences` from `events` and `items`.
    BuildSequences(build_sequences::Args),
    /// Show what the tables hold, or draw one user's history.
    Inspect(inspect::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Command::BuildSequences(args) => build_sequences::run(&cli.common, args).await,
        Command::Inspect(args) => inspect::run(&cli.common, args).await,
    };
    ExitCode::from(match done {
        Ok(()) => EXIT_DONE,
        Err(error) => report("pipeline", error.as_ref()),
    })
}
