//! `climber daily`: runs the daily job for one day or several, and skips days that keep failing.

use std::collections::BTreeSet;

use anyhow::Result;
use chrono::{DateTime, Days, NaiveDate, Utc};
use clap::Args;
use schemas::config::{Config, ConfigError, Daily};
use serde::Serialize;
use store::Root;
use terminal::{CommonArgs, EXIT_DONE, Interrupt, print_json, with_causes};
use trainer::kinds;

use super::{EXIT_REFUSED, EXIT_SKIPPED};
use crate::daily::{self, DayRequest};
use crate::record::{DayOutcome, DayStep, Kills, Record};

/// Run one day's job in steps, from the log to a published model.
///
/// Steps: ingest, compact, sequences, sft-sets, instructions, prequential, train, sft, evaluate, gate, publish, retention,
/// report. Each finished step is recorded in jobs/daily/NAME/run.json: a failed or stopped run resumes at the step it was in, and
/// a second run of a finished day does nothing. The model is refreshed with new events, or trained from scratch: the first time,
/// after a change of [model], [pretrain] or [sequences], every daily.full_every_days days, and once the log has grown by the
/// factor daily.full_growth.
///
/// The model is published only if it passes the gate ([gate] in the configuration); otherwise the served model stays and the exit
/// code is 4. models/published.json names the served model, and jobs/daily/NAME/report.html shows the day.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  climber daily --config config/movielens.toml
  climber daily --config config/shop.toml --date 2026-11-22
  climber daily --config config/shop.toml --to yesterday                      every night: all days that are missing
  climber daily --config config/shop.toml --from 2026-11-01 --to 2026-11-21   days that are missing, in their order
  climber daily --config config/shop.toml --to yesterday --skip 2026-11-07    but for a day whose log will never come
  climber daily --config config/shop.toml --date 2026-11-22 --force train     train again, and all that follows
  climber daily --config config/shop.toml --name s2 --set seed=2              an experiment, which is not published")]
pub(crate) struct DailyArgs {
    /// Day to process: a date such as 2026-11-22, today or yesterday (UTC). Replaces {date} in events.paths and items.paths.
    /// Default: yesterday where a path contains {date}, since today's log is incomplete; otherwise today.
    #[arg(long, value_name = "DATE", value_parser = day, conflicts_with_all = ["from", "to"])]
    date: Option<NaiveDate>,
    /// Name of the run and its model. Default: the date. A run with another name is an experiment: it trains from scratch, and
    /// its model is kept but not published.
    #[arg(long, conflicts_with_all = ["from", "to"])]
    name: Option<String>,
    /// Publish the model of a named run, like that of a day.
    #[arg(long, requires = "name")]
    publish: bool,
    /// First of several days; finished days are not run again.
    #[arg(long, value_name = "DATE", value_parser = day, requires = "to")]
    from: Option<NaiveDate>,
    /// Last of several days. Without --from, the first is the earliest unfinished day, so that a schedule makes up for failed
    /// runs and downtime. A failing day is skipped after daily.skip_after_tries failed tries, or at once if a later day is
    /// finished; a killed day after daily.skip_after_kills kills in one step. The exit code is then 5.
    #[arg(long, value_name = "DATE", value_parser = day)]
    to: Option<NaiveDate>,
    /// Skip this day unless it is finished; may be repeated. --date runs it anyway.
    #[arg(long, value_name = "DATE", value_parser = day, requires = "to")]
    skip: Vec<NaiveDate>,
    /// Train from scratch, whatever the rule says. Ignored once the run has trained its base.
    #[arg(long)]
    full: bool,
    /// Repeat this step and all later steps.
    #[arg(long, value_name = "STEP", conflicts_with_all = ["from", "to"])]
    force: Option<DayStep>,
}

/// JSON output for several days.
#[derive(Debug, Serialize)]
struct Runs {
    runs: Vec<Record>,
    /// Days that this command skipped.
    skipped: Vec<SkippedDate>,
}

#[derive(Debug, Serialize)]
struct SkippedDate {
    date: NaiveDate,
    reason: String,
}

impl DailyArgs {
    pub(crate) async fn run(&self, common: &CommonArgs) -> Result<u8> {
        let config = common.load()?;
        kinds::find(&config.model.architecture)?;
        let interrupt = Interrupt::on_signal();
        let root = Root::new(&config.root)?;
        let dates = self.dates(&config, &root)?;
        if dates.is_empty() {
            eprintln!("every day up to then is finished");
        }
        if let (Some(name), [date]) = (&self.name, &dates[..])
            && name.parse::<NaiveDate>().is_ok_and(|day| day != *date)
        {
            let problem =
                format!("`{name}` is the run of that day, and this one is of {date}; give it another name");
            return Err(ConfigError::Invalid { key: "--name".into(), problem }.into());
        }
        let mut done = Runs { runs: Vec::new(), skipped: Vec::new() };
        for &date in &dates {
            let name = self.name.clone().unwrap_or_else(|| date.to_string());
            if self.to.is_some() && self.leave_out(&config, &root, date, &mut done)? {
                continue;
            }
            let experiment = name != date.to_string() && !self.publish;
            let request = DayRequest { name, date, full: self.full, force: self.force, experiment };
            let began = Utc::now();
            match daily::run(&config, &request, &interrupt).await {
                Ok(record) => {
                    eprintln!("\n{}", summary(&record));
                    done.runs.push(record);
                }
                Err(error) => {
                    if self.to.is_none() || !gives_up(&config, &root, date, began, &interrupt, &error)? {
                        return Err(error);
                    }
                    skip(&root, date, with_causes(error.as_ref()), &mut done)?;
                }
            }
        }
        let refused = done.runs.iter().any(|record| record.outcome() == DayOutcome::Refused);
        let code = match (done.skipped.is_empty(), refused) {
            (false, _) => EXIT_SKIPPED,
            (true, true) => EXIT_REFUSED,
            (true, false) => EXIT_DONE,
        };
        for SkippedDate { date, reason } in &done.skipped {
            eprintln!(
                "climber: {date} was left out: {reason}; `climber daily --date {date}` runs it after all"
            );
        }
        if common.json {
            match &done.runs[..] {
                [record] if self.to.is_none() => print_json(record)?,
                _ => print_json(&done)?,
            }
        }
        Ok(code)
    }

    /// True if `date` is skipped without another try: it was skipped before, --skip names it, or it was tried or killed too
    /// often.
    fn leave_out(&self, config: &Config, root: &Root, date: NaiveDate, done: &mut Runs) -> Result<bool> {
        let record = match Record::load(root, &date.to_string()) {
            // With --skip, an unreadable record does not stop the command.
            Err(_) if self.skip.contains(&date) => None,
            record => record?,
        };
        if let Some(skipped) = record.as_ref().and_then(|record| record.skipped.as_ref()) {
            eprintln!("{date} was left out: {} (`climber daily --date {date}` runs it)", skipped.reason);
            return Ok(true);
        }
        if record.as_ref().is_some_and(Record::is_over) {
            return Ok(false);
        }
        let named = self.skip.contains(&date).then(|| "--skip names it".to_owned());
        let often = || record.as_ref().and_then(|record| too_often(&config.daily, record));
        let Some(reason) = named.or_else(often) else { return Ok(false) };
        skip(root, date, reason, done)?;
        Ok(true)
    }

    fn dates(&self, config: &Config, root: &Root) -> Result<Vec<NaiveDate>, ConfigError> {
        let Some(to) = self.to else {
            let mut paths = config.events.paths.iter().chain(&config.items.paths);
            let dated = paths.any(|path| path.contains("{date}"));
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

fn skip(root: &Root, date: NaiveDate, reason: String, done: &mut Runs) -> Result<()> {
    daily::skip(root, date, reason.clone())?;
    eprintln!("\nwarning: {date} is left out: {reason}");
    done.skipped.push(SkippedDate { date, reason });
    Ok(())
}

/// Returns why a day is not tried again: its runs failed or were killed too often. `None` otherwise.
fn too_often(daily: &Daily, record: &Record) -> Option<String> {
    let &Daily { skip_after_tries, skip_after_kills, .. } = daily;
    let tries = record.tries;
    if skip_after_tries > 0 && tries >= skip_after_tries {
        let last = record.failure.as_ref().map_or("it was killed".into(), ToString::to_string);
        return Some(format!(
            "{tries} tries have failed (daily.skip_after_tries = {skip_after_tries}), the last: {last}"
        ));
    }
    let killed = record.killed().filter(|kills| skip_after_kills > 0 && kills.times >= skip_after_kills)?;
    let Kills { step, times } = killed;
    Some(format!("it was killed {times} times in step {step} (daily.skip_after_kills = {skip_after_kills})"))
}

/// True if the day that just failed, in a run since `began`, is skipped so that later days can run: a later day is finished, or
/// the day was tried too often.
fn gives_up(
    config: &Config,
    root: &Root,
    date: NaiveDate,
    began: DateTime<Utc>,
    interrupt: &Interrupt,
    error: &anyhow::Error,
) -> Result<bool> {
    let of_the_user = error.chain().any(|cause| cause.is::<ConfigError>());
    if interrupt.requested() || of_the_user {
        return Ok(false);
    }
    // A failure before the day's first step is not the day's fault.
    let failed = |record: &Record| record.failure.as_ref().is_some_and(|failure| failure.at >= began);
    let Some(record) = Record::load(root, &date.to_string())?.filter(failed) else { return Ok(false) };
    let most = config.daily.skip_after_tries;
    if later_is_finished(root, date) || (most > 0 && record.tries >= most) {
        return Ok(true);
    }
    let left = most.saturating_sub(record.tries);
    let then = match most {
        0 => String::new(),
        _ => format!(", and so do {left} more tries that fail (daily.skip_after_tries = {most})"),
    };
    eprintln!("climber: {date} has failed {} times; --skip {date} leaves it out{then}", record.tries);
    Ok(false)
}

/// Returns the first day without a finished run, counted from the earliest day with a record.
fn next(records: &[Record]) -> Option<NaiveDate> {
    let days = || records.iter().filter(|record| record.is_of_its_day());
    let finished: BTreeSet<NaiveDate> = days()
        .filter(|record| record.outcome() != DayOutcome::Unfinished)
        .map(|record| record.date)
        .collect();
    let first = days().map(|record| record.date).min()?;
    std::iter::successors(Some(first), |day| day.checked_add_days(Days::new(1)))
        .find(|day| !finished.contains(day))
}

/// True if a day after `date` is finished.
fn later_is_finished(root: &Root, date: NaiveDate) -> bool {
    let (records, _) = Record::all(root);
    records.iter().any(|record| record.date > date && record.is_of_its_day() && record.is_over())
}

fn today() -> NaiveDate {
    Utc::now().date_naive()
}

/// Parses a date, `today` or `yesterday` (UTC). A future day is an error: it has no log yet.
fn day(text: &str) -> Result<NaiveDate, String> {
    let today = today();
    let day = match text {
        "today" => today,
        "yesterday" => today - Days::new(1),
        _ => {
            text.parse().map_err(|_| "write a date such as 2026-11-22, or today, or yesterday".to_owned())?
        }
    };
    if day > today {
        return Err(format!("it is still to come: today is {today} (UTC)"));
    }
    Ok(day)
}

/// Returns a run's outcome in one line.
pub(super) fn summary(record: &Record) -> String {
    let what = match record.outcome() {
        DayOutcome::Published => {
            let number =
                record.steps.publish.as_ref().and_then(|done| done.output.number).unwrap_or_default();
            format!("published `{}` as publication {number}", record.served().unwrap_or_default())
        }
        DayOutcome::Refused => {
            let objections =
                record.steps.gate.as_ref().map(|gate| gate.output.objections()).unwrap_or_default();
            format!("not published, what is served stays: {objections}")
        }
        DayOutcome::NothingNew => "nothing new, what is served stays".into(),
        DayOutcome::Experiment => {
            format!("`{}` is an experiment, what is served stays", record.served().unwrap_or_default())
        }
        DayOutcome::Skipped => {
            let reason = record.skipped.as_ref().map_or("", |skipped| &skipped.reason);
            format!("left out: {reason}")
        }
        DayOutcome::Unfinished => match &record.failure {
            Some(failure) => failure.to_string(),
            None => {
                format!("unfinished, before step {}", record.next_step().map_or("?", DayStep::name))
            }
        },
    };
    format!("{}: {what} ({:.1} s)", record.name, record.seconds())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::SkippedDay;

    fn date(day: u32) -> NaiveDate {
        NaiveDate::from_ymd_opt(2026, 1, day).unwrap()
    }

    fn begun(day: u32) -> Record {
        Record::new(&date(day).to_string(), date(day))
    }

    fn skipped(day: u32) -> Record {
        Record { skipped: Some(SkippedDay { at: Utc::now(), reason: "no log".into() }), ..begun(day) }
    }

    #[test]
    fn days_begin_with_the_first_that_is_missing() {
        assert_eq!(next(&[]), None);
        assert_eq!(next(&[begun(3)]), Some(date(3)));
        assert_eq!(next(&[skipped(3), skipped(4), begun(5)]), Some(date(5)));
        // A gap, and an experiment with a name of its own.
        assert_eq!(next(&[skipped(3), skipped(5)]), Some(date(4)));
        let experiment = Record { name: "s2".into(), ..begun(1) };
        assert_eq!(next(&[experiment, skipped(3)]), Some(date(4)));
    }

    #[test]
    fn a_day_is_written_as_a_date_or_a_word() {
        assert_eq!(day("2026-01-03"), Ok(date(3)));
        assert_eq!(day("today").unwrap() - Days::new(1), day("yesterday").unwrap());
        let tomorrow = (today() + Days::new(1)).to_string();
        for wrong in [&tomorrow, "9999-12-31"] {
            assert!(day(wrong).unwrap_err().contains("still to come"), "{wrong}");
        }
        for wrong in ["tomorrow", "2026-02-30", "03.01.2026", ""] {
            assert!(day(wrong).unwrap_err().contains("yesterday"), "{wrong}");
        }
    }
}
