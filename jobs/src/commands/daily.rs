use anyhow::Result;
use chrono::{Days, NaiveDate, Utc};
use clap::Args;
use schemas::cli::{CommonArgs, EXIT_DONE, Interrupt, print_json};
use schemas::config::ConfigError;
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
  jobs daily --config config/movielens.toml
  jobs daily --config config/shop.toml --date 2026-11-22
  jobs daily --config config/shop.toml --from 2026-11-01 --to 2026-11-21   days that are missing, in their order
  jobs daily --config config/shop.toml --date 2026-11-22 --force train     train again, and all that follows")]
pub(crate) struct DailyArgs {
    /// The day, such as 2026-11-22; it stands for {date} in events.paths and items.paths. Default: today, UTC.
    #[arg(long, value_name = "DATE")]
    date: Option<NaiveDate>,
    /// Name of the run and of its model. Default: the date.
    #[arg(long)]
    name: Option<String>,
    /// The first of several days; those that are finished are left alone.
    #[arg(long, value_name = "DATE", requires = "to", conflicts_with_all = ["date", "name"])]
    from: Option<NaiveDate>,
    /// The last of them.
    #[arg(long, value_name = "DATE", requires = "from")]
    to: Option<NaiveDate>,
    /// Train from scratch, whatever the rule says. Decided at the beginning of a run.
    #[arg(long)]
    full: bool,
    /// Do this step, and all that come after it, again.
    #[arg(long, value_name = "STEP", conflicts_with = "from", hide_possible_values = false)]
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
        let mut runs = Vec::new();
        let dates = self.dates()?;
        for &date in &dates {
            let name = self.name.clone().unwrap_or_else(|| date.to_string());
            let request = Request { name, date, full: self.full, force: self.force };
            let record = daily::run(&config, &request, &interrupt).await?;
            eprintln!("\n{}", summary(&record));
            runs.push(record);
        }
        let refused = runs.iter().any(|record| record.outcome() == Outcome::Refused);
        if common.json {
            match <[Record; 1]>::try_from(runs) {
                Ok([record]) if dates.len() == 1 => print_json(&record)?,
                Ok(runs) => print_json(&Runs { runs: runs.into() })?,
                Err(runs) => print_json(&Runs { runs })?,
            }
        }
        Ok(if refused { EXIT_REFUSED } else { EXIT_DONE })
    }

    fn dates(&self) -> Result<Vec<NaiveDate>, ConfigError> {
        let (Some(from), Some(to)) = (self.from, self.to) else {
            return Ok(vec![self.date.unwrap_or_else(|| Utc::now().date_naive())]);
        };
        if to < from {
            let problem = format!("{to} is before {from}");
            return Err(ConfigError::Invalid { key: "--to".into(), problem });
        }
        Ok(std::iter::successors(Some(from), |day| day.checked_add_days(Days::new(1)))
            .take_while(|&day| day <= to)
            .collect())
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
