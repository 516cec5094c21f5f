//! The `pipeline` program: raw interaction logs to tables.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use schemas::cli::{self, CommonArgs};

/// Raw interaction logs to Delta tables: events, items, sequences.
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
    Ingest(commands::ingest::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { common, command } = Cli::parse();
    let result = match command {
        Command::Ingest(args) => commands::ingest::run(&common, args).await,
    };
    ExitCode::from(match result {
        Ok(()) => cli::EXIT_DONE,
        Err(error) => cli::report("pipeline", error.as_ref()),
    })
}
