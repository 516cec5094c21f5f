//! The `pipeline` program: raw interaction logs to tables, and a look into them.

// Output is printed through `terminal::shown`.
#[macro_use(eprintln)]
extern crate terminal;

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use terminal::{CommonArgs, EXIT_DONE, report};

/// Raw interaction logs to Delta tables: events, items, sequences, instruction examples.
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
    Init(commands::init::Args),
    Ingest(commands::ingest::Args),
    BuildSequences(commands::build_sequences::Args),
    BuildSft(commands::build_sft::Args),
    Consume(commands::consume::Args),
    Compact(commands::compact::Args),
    DeadLetters(commands::dead_letters::Args),
    Forget(commands::forget::Args),
    Inspect(commands::inspect::Args),
    Instructions(commands::instructions::Args),
    Simulate(commands::simulate::Args),
    Vacuum(commands::vacuum::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { common, command } = Cli::parse();
    let result = match command {
        Command::Init(args) => commands::init::run(&common, args).await,
        Command::Ingest(args) => commands::ingest::run(&common, args).await,
        Command::BuildSequences(args) => commands::build_sequences::run(&common, args).await,
        Command::BuildSft(args) => commands::build_sft::run(&common, args).await,
        Command::Consume(args) => commands::consume::run(&common, args).await,
        Command::Compact(args) => commands::compact::run(&common, args).await,
        Command::DeadLetters(args) => commands::dead_letters::run(&common, args).await,
        Command::Forget(args) => commands::forget::run(&common, args).await,
        Command::Inspect(args) => commands::inspect::run(&common, args).await,
        Command::Instructions(args) => commands::instructions::run(&common, args).await,
        Command::Simulate(args) => commands::simulate::run(&common, args).await,
        Command::Vacuum(args) => commands::vacuum::run(&common, args).await,
    };
    ExitCode::from(match result {
        Ok(()) => EXIT_DONE,
        Err(error) => report("pipeline", error.as_ref()),
    })
}
