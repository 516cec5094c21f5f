//! `trainer`: trains, evaluates and exports Climber-Pilot models on the tables written by `pipeline`.

// Output goes through `terminal::shown`.
#[macro_use(eprint, eprintln)]
extern crate terminal;

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{
    compare::CompareArgs, device::DeviceArgs, evaluate::EvaluateArgs, export::ExportArgs,
    pretrain::PretrainArgs, refresh::RefreshArgs, retrieve::RetrieveArgs, sft::SftArgs,
};
use terminal::{CommonArgs, report};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train, evaluate, serve and export Climber-Pilot models.
///
/// Exit codes: 0 done, 1 failed or interrupted, 2 wrong usage or configuration.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pretrain(PretrainArgs),
    Refresh(RefreshArgs),
    Sft(SftArgs),
    Evaluate(EvaluateArgs),
    Compare(CompareArgs),
    Retrieve(RetrieveArgs),
    Export(ExportArgs),
    Device(DeviceArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // SAFETY: no thread has been started.
    unsafe { trainer::init_threads() };
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(run(&cli)),
        Err(error) => report("trainer", &error).into(),
    }
}

async fn run(cli: &Cli) -> ExitCode {
    let result = match &cli.command {
        Command::Pretrain(args) => args.run(&cli.common).await,
        Command::Refresh(args) => args.run(&cli.common).await,
        Command::Sft(args) => args.run(&cli.common).await,
        Command::Evaluate(args) => args.run(&cli.common).await,
        Command::Compare(args) => args.run(&cli.common),
        Command::Retrieve(args) => args.run(&cli.common).await,
        Command::Export(args) => args.run(&cli.common).await,
        Command::Device(args) => args.run(&cli.common),
    };
    match result {
        Ok(code) => code.into(),
        Err(error) => report("trainer", error.as_ref()).into(),
    }
}
