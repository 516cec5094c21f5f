use std::collections::BTreeSet;

use anyhow::Result;
use chrono::{Days, NaiveDate, Utc};
use clap::Args;
use schemas::cli::{CommonArgs, EXIT_DONE, EXIT_FAILED, Interrupt, print_json, with_causes};
use schemas::config::{Config, ConfigError};
use schemas::delta::Root;
use serde::Serialize;

use super::EXIT_REFUSED;
use crate::daily::{self, Outcome, Record, Request, Step};

/// One day's job: from the log to a published model, in steps.
///
/// ingest, compact, sequences, sft-sets, instructions, prequential, train, sft, evaluate, gate, publish, retention, report. Each
/// step is written down when it is done (jobs/daily/NAME/run.json): a run that failed or was stopped goes on at the step that
/// it was in, and a second run of a finished day does nothing. The model is refreshed with what is new, or trained from scratch:
/// the first time, when [model], [pretrain] or [sequences] have changed, and every daily.full_every_days days.
///
/// It is published only if it passes the gate ([gate] in the configuration): otherwise what is served stays, and the exit code
/// is 4. models/published.json names what is served, jobs/daily/NAME/report.html shows the day.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  climber daily --config config/movielens.toml
  climber daily --config config/shop.toml --date 2026-11-22
  climber daily --config config/shop.toml --to yesterday                      every night: all days that are missing
  climber daily --config config/shop.toml --from 2026-11-01 --to 2026-11-21   days that are missing, in their order
  climber daily --config config/shop.toml --date 2026-11-22 --force train     train again, and all that follows")]
pub(crate) struct DailyArgs {
    /// The day, such as 2026-11-22, or today, or yesterday (UTC); it stands for {date} in events.paths and items.paths. Default:
    /// yesterday where a path has {date}, since the log of today is not complete, and else today.
    #[arg(long, value_name = "DATE", value_parser = day, conflicts_with_all = ["from", "to"])]
    date: Option<NaiveDate>,
    /// Name of the run and of its model. Default: the date.
    #[arg(long, conflicts_with_all = ["from", "to"])]
    name: Option<String>,
    /// The first of several days; those that are finished are left alone.
    #[arg(long, value_name = "DATE", value_parser = day, requires = "to")]
    from: Option<NaiveDate>,
    /// The last of several days. Without --from, they begin with the first that is not finished: for schedules, since no day is
    /// left out when a run has failed or the machine was off.
    #[arg(long, value_name = "DATE", value_parser = day)]
    to: Option<NaiveDate>,
    /// Train from scratch, whatever the rule says. Decided at the beginning of a run.
    #[arg(long)]
    full: bool,
    /// Do this step, and all that come after it, again.
    #[arg(long, value_name = "STEP", conflicts_with_all = ["from", "to"])]
    force: Option<Step>,
}

/// Several days.
#[derive(Debug, Serialize)]
struct Runs {
    runs: Vec<Record>,
}

impl DailyArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        let interrupt = Interrupt::on_signal();
        let (mut runs, mut failed) = (Vec::new(), false);
        let root = Root::new(&config.root)?;
        let dates = self.dates(&config, &root)?;
        if dates.is_empty() {
            eprintln!("every day up to then is finished");
        }
        for &date in &dates {
            let name = self.name.clone().unwrap_or_else(|| date.to_string());
            let request = Request { name, date, full: self.full, force: self.force };
            match daily::run(&config, &request, &interrupt).await {
                Ok(record) => {
                    eprintln!("\n{}", summary(&record));
                    runs.push(record);
                }
                // A day whose log will never come must not keep the later ones from their turn for ever.
                Err(error) if later_is_finished(&root, date) && !interrupt.requested() => {
                    eprintln!(
                        "climber: {}; later days are finished, so the next ones go on",
                        with_causes(error.as_ref())
                    );
                    failed = true;
                }
                Err(error) => return Err(error),
            }
        }
        let refused = runs.iter().any(|record| record.outcome() == Outcome::Refused);
        if common.json {
            match &runs[..] {
                [record] if self.to.is_none() => print_json(record)?,
                _ => print_json(&Runs { runs })?,
            }
        }
        Ok(match (failed, refused) {
            (true, _) => EXIT_FAILED,
            (false, true) => EXIT_REFUSED,
            (false, false) => EXIT_DONE,
        })
    }

    fn dates(&self, config: &Config, root: &Root) -> Result<Vec<NaiveDate>, ConfigError> {
        let Some(to) = self.to else {
            let dated = config.events.paths.iter().any(|path| path.contains("{date}"));
            let default = if dated { today() - Days::new(1) } else { today() };
            return Ok(vec![self.date.unwrap_or(default)]);
        };
        let from = match self.from {
            Some(from) if to < from => {
                let problem = format!("{to} is before {from}");
                return Err(ConfigError::Invalid { key: "--to".into(), problem });
            }
            Some(from) => from,
            None => next(&Record::all(root).0).unwrap_or(to),
        };
        Ok(std::iter::successors(Some(from), |day| day.checked_add_days(Days::new(1)))
            .take_while(|&day| day <= to)
            .collect())
    }
}

/// The first day without a finished run, from the first day that was ever begun.
fn next(records: &[Record]) -> Option<NaiveDate> {
    let days = || records.iter().filter(|record| record.name == record.date.to_string());
    let finished: BTreeSet<NaiveDate> =
        days().filter(|record| record.outcome() != Outcome::Unfinished).map(|record| record.date).collect();
    let first = days().map(|record| record.date).min()?;
    std::iter::successors(Some(first), |day| day.checked_add_days(Days::new(1)))
        .find(|day| !finished.contains(day))
}

/// Whether a day after `date` is finished.
fn later_is_finished(root: &Root, date: NaiveDate) -> bool {
    let (records, _) = Record::all(root);
    records.iter().any(|record| record.date > date && record.outcome() != Outcome::Unfinished)
}

fn today() -> NaiveDate {
    Utc::now().date_naive()
}

/// A date, or a word for one.
fn day(text: &str) -> Result<NaiveDate, String> {
    match text {
        "today" => Ok(today()),
        "yesterday" => Ok(today() - Days::new(1)),
        _ => text.parse().map_err(|_| "write a date such as 2026-11-22, or today, or yesterday".to_owned()),
    }
}

/// How a run ended, in a line.
pub(super) fn summary(record: &Record) -> String {
    let what = match record.outcome() {
        Outcome::Published => {
            let number =
                record.steps.publish.as_ref().and_then(|done| done.output.number).unwrap_or_default();
            format!("published `{}` as publication {number}", record.served().unwrap_or_default())
        }
        Outcome::Refused => {
            let objections =
                record.steps.gate.as_ref().map(|gate| gate.output.objections()).unwrap_or_default();
            format!("not published, what is served stays: {objections}")
        }
        Outcome::NothingNew => "nothing new, what is served stays".into(),
        Outcome::Unfinished => match &record.failure {
            Some(failure) => format!("failed in step {}: {}", failure.step, failure.error),
            None => {
                let next = Step::ALL.into_iter().find(|&step| !record.steps.is_done(step));
                format!("unfinished, before step {}", next.map_or("?", Step::name))
            }
        },
    };
    format!("{}: {what} ({:.1} s)", record.name, record.seconds())
}
