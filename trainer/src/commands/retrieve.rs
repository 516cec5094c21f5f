//! `trainer retrieve`: parses its arguments, calls `trainer::retrieve` and prints the result.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use schemas::config::ConfigError;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, Interrupt, print_json};
use trainer::retrieve::{self, By, Method, RetrieveOptions, RowsOutput, Users, parse_time};
use trainer::serve::Merge;

/// Retrieve the top K items for users, with and without conditions.
///
/// Histories come from table `sequences`, or with --stdin from JSON Lines, one request per line:
///
///   {"user_id": "u1", "history": [{"item_id": "42", "ts": 1716400000000}], "conditions": ["genre=Rock"], "at": "2026-01-31T12:00:00Z"}
///
/// Times are epoch milliseconds or RFC 3339. `conditions` is optional (default: --conditions or --instructions), and so is `at`,
/// the time of the request: events before `at` − Δτ are visible (default: --at, or the whole history). Requests are answered in
/// order, as they arrive. A request that cannot be answered (invalid JSON or time, or a condition that the model does not know or
/// too few items carry), or whose lists are all empty, gets one line, and the others are answered as usual:
///
///   {"line": 2, "user_id": "u2", "error": "`genre` has no value `Rok` that the model knows; the nearest: Rock"}
///
/// (`line` counts from 1, including empty lines; `user_id` is null if the line has none.) Every row of the result has user_id,
/// condition (or null), rank (from 1), item_id, score, and origin: `model`, or `popular` for users without a visible event. Rows
/// go to stdout as JSON Lines, or with --out to a file. Lists exclude items that the user has seen and inactive items.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  trainer retrieve --config config/movielens.toml --model base --k 20 --out top.parquet
  trainer retrieve --config config/movielens.toml --model sft --users users.txt --conditions genre=Comedy,genre=War
  trainer retrieve --config config/movielens.toml --model sft --instructions --merge round-robin --out top.jsonl
  trainer retrieve --config config/movielens.toml --model sft --case 1212 --conditions genre=Comedy")]
pub(crate) struct RetrieveArgs {
    /// Name of the model. Default: the published one, named in models/published.json.
    #[arg(long)]
    model: Option<String>,
    /// File of user ids, one per line; `-` or absent: all users of table `sequences`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["stdin", "case"])]
    users: Option<PathBuf>,
    /// Read users and histories from standard input, and answer them as they arrive.
    #[arg(long, conflicts_with = "case")]
    stdin: bool,
    /// Show one user as a table: the last visible items, and the top 10 without and under each condition.
    #[arg(long, value_name = "USER", conflicts_with_all = ["out", "merge"])]
    case: Option<String>,
    /// Conditions, such as genre=Rock,genre=Pop or new-release; each gives one list.
    #[arg(long, value_name = "CONDITION,…", conflicts_with = "instructions")]
    conditions: Vec<String>,
    /// Make one list per instruction of the user in table `instructions`.
    #[arg(long)]
    instructions: bool,
    /// Maximum length of a list.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    k: u32,
    /// Merge the lists of a user into one list of K distinct items; each row keeps the condition of its list.
    #[arg(long, value_enum)]
    merge: Option<Merge>,
    /// Limit each list with a condition to the items that carry it.
    #[arg(long)]
    only: bool,
    /// Time of the requests: events before it, less Δτ, are visible. Without it, all stored events are visible, and ages
    /// (new-release, …) are computed from now; with --stdin, from the arrival of each request.
    #[arg(long, value_name = "RFC 3339", value_parser = parse_time)]
    at: Option<i64>,
    /// Also retrieve items that the user has seen.
    #[arg(long)]
    keep_seen: bool,
    /// Also retrieve inactive items.
    #[arg(long)]
    keep_inactive: bool,
    /// File of item ids that are never retrieved, one per line.
    #[arg(long, value_name = "FILE")]
    deny: Option<PathBuf>,
    /// Search method: score all items, or search a graph whose recall is measured and printed.
    #[arg(long, value_enum, default_value_t = SearchArg::Exact)]
    search: SearchArg,
    /// Items that the graph finds before filters apply; more take longer and miss fewer [default: the larger of 200 and 4 K].
    #[arg(long, value_name = "N")]
    ef: Option<u32>,
    /// Write the rows to this file, .parquet or .jsonl.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SearchArg {
    Exact,
    Hnsw,
}

fn usage(key: &str, problem: &str) -> ConfigError {
    ConfigError::Invalid { key: key.into(), problem: problem.into() }
}

impl RetrieveArgs {
    fn options<'a>(&'a self, model: &'a str, interrupt: &'a Interrupt) -> RetrieveOptions<'a> {
        let k = self.k as usize;
        RetrieveOptions {
            model,
            users: match &self.users {
                _ if self.stdin => Users::Stdin,
                Some(path) if path.as_os_str() != "-" => Users::File(path),
                _ => Users::All,
            },
            by: if self.instructions { By::Instructions } else { By::Conditions(&self.conditions) },
            at: self.at,
            k,
            method: match self.search {
                SearchArg::Exact => Method::Exact,
                SearchArg::Hnsw => Method::Hnsw { ef: self.ef.map_or(200.max(4 * k), |ef| ef as usize) },
            },
            only: self.only,
            keep_seen: self.keep_seen,
            keep_inactive: self.keep_inactive,
            deny: self.deny.as_deref(),
            merge: self.merge,
            interrupt,
        }
    }

    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        if self.ef.is_some() && self.search != SearchArg::Hnsw {
            return Err(usage("--ef", "is a setting of --search hnsw").into());
        }
        let interrupt = Interrupt::on_signal();
        let model = super::or_served(&root, self.model.as_deref())?;
        let options = self.options(&model, &interrupt);
        if let Some(user) = &self.case {
            let case = retrieve::case(&config, &root, options, user).await?;
            eprint!("{case}");
            if common.json {
                print_json(&case)?;
            }
            return Ok(EXIT_DONE);
        }
        let mut output = match &self.out {
            Some(path) if !retrieve::is_writable(path) => {
                return Err(usage("--out", "the file's name must end in .parquet or .jsonl").into());
            }
            Some(path) => RowsOutput::file(path)?,
            None if common.json => {
                return Err(usage("--json", "stdout has the rows; write them to a file with --out").into());
            }
            None => RowsOutput::stdout(),
        };
        let report = retrieve::run(&config, &root, options, &mut output).await?;
        output.finish()?;
        eprint!("{report}");
        if common.json {
            print_json(&report)?;
        }
        Ok(EXIT_DONE)
    }
}
