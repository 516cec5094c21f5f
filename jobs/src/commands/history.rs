//! `climber history`: lists publications and daily runs.

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use store::Root;
use store::publication::{self, Publication};
use terminal::{CommonArgs, EXIT_DONE, EXIT_FAILED, print_json, with_causes};
use trainer::checkpoint;

use super::daily::summary;
use crate::record::Record;

/// List publications and daily runs, newest first.
///
/// The exit code is 1 if a record cannot be read; the others are still listed.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  climber history --config config/shop.toml --limit 30")]
pub(crate) struct HistoryArgs {
    /// Maximum of each.
    #[arg(long, value_name = "N", default_value_t = 15)]
    limit: usize,
}

/// JSON output, newest first.
#[derive(Debug, Serialize)]
struct History {
    publications: Vec<Publication>,
    runs: Vec<Record>,
    /// Messages about unreadable records.
    problems: Vec<String>,
}

impl HistoryArgs {
    pub(crate) fn run(&self, common: &CommonArgs) -> Result<u8> {
        let root = Root::new(&common.load()?.root)?;
        ensure!(root.path().is_dir(), "there is no root at {}", root.path().display());
        let (mut runs, mut problems) = Record::all(&root);
        runs.reverse();
        runs.truncate(self.limit);
        let (publications, damaged) = publication::recent(&root, self.limit)?;
        problems.extend(damaged.iter().map(|error| with_causes(error)));
        let history = History { publications, runs, problems };
        print(&root, &history);
        if common.json {
            print_json(&history)?;
        }
        Ok(if history.problems.is_empty() { EXIT_DONE } else { EXIT_FAILED })
    }
}

fn print(root: &Root, history: &History) {
    if history.publications.is_empty() {
        eprintln!("nothing was ever published; `climber daily` does");
    } else {
        let width = history.publications.iter().map(|p| p.served.len()).max().unwrap_or(0).max(6);
        eprintln!("{:>6}  {:<20}  {:<9} {:<width$}   HR@10", "number", "published (UTC)", "by", "serves");
    }
    let width = history.publications.iter().map(|p| p.served.len()).max().unwrap_or(0).max(6);
    for (i, publication) in history.publications.iter().enumerate() {
        let Publication { number, published_at, kind, served, metrics, restores, .. } = publication;
        let hr = metrics.get("hr@10").map_or_else(|| "     –".into(), |hr| format!("{hr:.4}"));
        let mut note = String::new();
        if i == 0 {
            note.push_str("  served now");
        }
        if let Some(restores) = restores {
            note.push_str(&format!("  brings {restores} back"));
        }
        if checkpoint::find(&root.model_path(served)).is_none() {
            note.push_str("  model deleted");
        }
        let (at, by) = (published_at.format("%F %T"), kind.name());
        eprintln!("{number:>6}  {at:<20}  {by:<9} {served:<width$}  {hr}{note}");
    }
    if !history.runs.is_empty() {
        eprintln!("\ndaily runs");
    }
    for record in &history.runs {
        eprintln!("  {}", summary(record));
    }
    for problem in &history.problems {
        eprintln!("  not listed: {problem}");
    }
}
