//! `climber status`: what is served and what is running.

use anyhow::Result;
use chrono::{DateTime, NaiveDate, Utc};
use clap::Args;
use schemas::tables::EVENTS;
use serde::Serialize;
use store::Root;
use store::lease::{Lease, LeaseHolder};
use store::publication::{self, Publication};
use terminal::{CommonArgs, EXIT_DONE, EXIT_FAILED, print_json, with_causes};

use super::daily::summary;
use crate::gate;
use crate::record::Record;
use crate::refresh::{self, Refreshed};
use crate::retention;

/// Show what is served and how old it is, what is running, and how the last daily run ended.
///
/// The exit code is 0 if a model is served and intact, with the tables it was made from, and 1 otherwise: a health check.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  climber status --config config/shop.toml --json")]
pub(crate) struct StatusArgs {}

/// JSON output of the command.
#[derive(Debug, Serialize)]
struct Status {
    published: Option<Publication>,
    /// True if a model is published and `problem` is empty.
    intact: bool,
    /// What is wrong with the served model, its record or its tables.
    problem: Option<String>,
    /// Versions of `events` that the served model has not learned.
    versions_behind: Option<u64>,
    running: Vec<Running>,
    /// Skipped days.
    skipped: Vec<NaiveDate>,
    /// Unneeded models without a job's mark, which no job deletes.
    unmarked: Vec<String>,
    last_run: Option<Record>,
    last_refresh: Option<Refreshed>,
}

/// A running job.
#[derive(Debug, Serialize)]
struct Running {
    job: &'static str,
    #[serde(flatten)]
    owner: LeaseHolder,
}

impl StatusArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let root = Root::new(&config.root)?;
        let published = publication::newest(&root)?;
        let problem = match &published {
            Some(publication) => problem(&root, publication).or(older(&root, publication).await?),
            None => None,
        };
        let events = root.snapshot(EVENTS).await?.map(|events| events.version());
        let behind =
            published.as_ref().zip(events).map(|(p, version)| version.saturating_sub(p.learned_events));
        let locks = [("climber daily", "daily.lock"), ("climber refresh", "refresh.lock")];
        let running = locks.into_iter().filter_map(|(job, file)| {
            Some(Running { job, owner: Lease::holder(&root.path().join("jobs").join(file))? })
        });
        let runs = Record::all(&root).0;
        let status = Status {
            skipped: runs.iter().filter(|run| run.skipped.is_some()).map(|run| run.date).collect(),
            intact: published.is_some() && problem.is_none(),
            problem,
            versions_behind: behind,
            running: running.collect(),
            // An error only empties this list: problems of the served model are reported above.
            unmarked: retention::unmarked(&config, &root, &runs).unwrap_or_default(),
            last_run: runs.into_iter().next_back(),
            last_refresh: refresh::last(&root),
            published,
        };
        print(&status, Utc::now());
        if common.json {
            print_json(&status)?;
        }
        Ok(if status.intact { EXIT_DONE } else { EXIT_FAILED })
    }
}

/// Returns what is wrong with the served model or with `models/published.json`.
fn problem(root: &Root, publication: &Publication) -> Option<String> {
    let names = match publication::published(root) {
        Ok(published) if published.as_ref() == Some(publication) => None,
        Ok(_) => Some("models/published.json does not name it; the next job mends that".to_owned()),
        Err(error) => Some(format!("{}; the next job mends that", with_causes(&error))),
    };
    gate::damage(root, publication).or(names)
}

/// Returns a message if a table is older than the version that the served model was made from.
async fn older(root: &Root, publication: &Publication) -> Result<Option<String>> {
    for (table, &version) in &publication.tables {
        let newest = root.snapshot(table).await?.map(|table| table.version());
        if newest.is_none_or(|newest| newest < version) {
            let is = newest.map_or_else(|| "gone".to_owned(), |newest| format!("at version {newest}"));
            return Ok(Some(format!(
                "table `{table}` is {is}, and the model was made from version {version}: the newest entries of its log are missing"
            )));
        }
    }
    Ok(None)
}

fn print(status: &Status, now: DateTime<Utc>) {
    match &status.published {
        None => eprintln!("nothing is published; `climber daily` does that"),
        Some(Publication { number, served, kind, published_at, metrics, .. }) => {
            let hours = (now - published_at).num_minutes() as f64 / 60.0;
            let hr = metrics.get("hr@10").map_or_else(String::new, |hr| format!(", HR@10 {hr:.4}"));
            eprintln!("served: `{served}`, publication {number} by {}, {hours:.1} h ago{hr}", kind.name());
        }
    }
    if let Some(problem) = &status.problem {
        eprintln!("problem: {problem}");
    }
    if let Some(versions) = status.versions_behind {
        eprintln!("versions of `events` since it was trained: {versions}");
    }
    for date in &status.skipped {
        eprintln!("left out: {date} (`climber daily --date {date}` runs it)");
    }
    for Running { job, owner } in &status.running {
        eprintln!("running: {job}, {owner}");
    }
    if let [first, ..] = &status.unmarked[..] {
        eprintln!(
            "models that no job deletes, because they bear no mark of a job (an earlier version made them, or a person): {}; where \
             nobody needs them, remove their directories, such as models/{first}",
            status.unmarked.join(", ")
        );
    }
    if let Some(record) = &status.last_run {
        eprintln!("last run: {}", summary(record));
    }
    if let Some(refreshed) = &status.last_refresh {
        eprintln!("last refresh: {}, {refreshed}", refreshed.at.format("%F %T UTC"));
    }
}
