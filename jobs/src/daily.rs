//! The scheduled daily job: log → tables → model → results, one typed step after another.
//!
//! Each step is idempotent: a file that was read adds nothing, a table that describes its inputs is left as it
//! is, a model that was trained on them too, and an interrupted training resumes. So a run that failed is
//! repaired by running it again, and a second run of a finished day changes nothing.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use chrono::NaiveDate;
use pipeline::ingest::{self, IngestReport};
use pipeline::sequences::{self, BuildReport};
use schemas::cli::Interrupt;
use schemas::config::Config;
use schemas::delta::Root;
use serde::Serialize;
use trainer::evaluate::{self, Report, Split};
use trainer::training::{Options, Outcome, Status, pretrain};

/// What a day came to.
#[derive(Debug, Serialize)]
pub(crate) struct DailyReport {
    /// The day.
    pub(crate) date: NaiveDate,
    /// Log and catalogue to `events`, `items`, `dead_letters`.
    pub(crate) ingest: IngestReport,
    /// `events` to `sequences`.
    pub(crate) sequences: BuildReport,
    /// `sequences` to `models/<name>`.
    pub(crate) training: Outcome,
    /// The model and the baselines on the held-out targets; absent after an interruption.
    pub(crate) evaluation: Option<Report>,
    /// Wall time.
    pub(crate) seconds: f64,
}

impl DailyReport {
    /// Whether every step was finished.
    pub(crate) fn finished(&self) -> bool {
        self.training.status != Status::Interrupted
    }
}

/// `{date}` in a path is the day: `logs/{date}/*.jsonl.gz`.
pub(crate) fn for_date(mut config: Config, date: NaiveDate) -> Config {
    for path in config.events.paths.iter_mut().chain(&mut config.items.paths) {
        *path = path.replace("{date}", &date.to_string());
    }
    config
}

/// Runs all steps for `date`; the model is called `name`.
pub(crate) async fn run(
    config: &Config,
    date: NaiveDate,
    name: &str,
    interrupt: &Interrupt,
) -> Result<DailyReport> {
    let started = Instant::now();
    let root = Root::new(&config.root)?;
    let heading = |number: usize, step: &str| eprintln!("\n[{number}/4] {step}");

    heading(1, "ingest: log and catalogue to tables");
    let ingest = ingest::run(config, &root, interrupt).await.context("ingest")?;
    eprintln!("{ingest}");

    heading(2, "build-sequences: events to windows of histories");
    // A build that is dropped leaves the table as it was.
    let sequences = tokio::select! {
        report = sequences::build(config, &root) => report.context("build-sequences")?,
        () = interrupt.wait() => bail!("stopped during build-sequences; the same command repeats it"),
    };
    eprintln!("{sequences}");

    heading(3, &format!("pretrain: model `{name}`, mask {}", config.model.mask.name()));
    let options = Options { name, fresh: false, interrupt, stop_after: None };
    let training = pretrain::run(config, &root, options).await.context("pretrain")?;
    eprintln!("{training}");

    let evaluation = if training.status == Status::Interrupted {
        None
    } else {
        heading(4, "evaluate: full ranking of the held-out targets");
        // Production holds no test targets out: there the guard's validation targets are all there is.
        let mut report =
            evaluate::run(config, &root, name, Split::Test, (&[], false)).await.context("evaluate")?;
        if report.results.is_empty() {
            report = evaluate::run(config, &root, name, Split::Validation, (&[], false))
                .await
                .context("evaluate")?;
        }
        eprint!("{report}");
        Some(report)
    };
    Ok(DailyReport {
        date,
        ingest,
        sequences,
        training,
        evaluation,
        seconds: started.elapsed().as_secs_f64(),
    })
}
