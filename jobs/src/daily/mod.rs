//! `climber daily`: turns each day's log into a better published model, or changes nothing and reports why.
//!
//! ```text
//! ingest ▶ compact ▶ sequences ▶ sft-sets ▶ instructions ▶ prequential ▶ train ▶ sft ▶ evaluate ▶ gate ▶ publish ▶ retention ▶ report
//! ```
//!
//! Each step can be repeated, and its output is recorded when it is done ([`Record`]): a stopped or killed run resumes at the
//! step it was in, and a second run of a finished day does nothing. From `sequences` on, a run reads the tables at the versions
//! it began with ([`Root::pinned`]), whatever a consumer or a near-real-time refresh commits meanwhile.

mod plan;
mod recovery;
mod work;

use std::time::Instant;

use anyhow::{Result, bail};
use chrono::{NaiveDate, Utc};
use schemas::config::Config;
use schemas::tables::EVENTS;
use store::Root;
use store::failpoint;
use store::lease::Lease;
use store::publication::{self, PublicationError};
use terminal::{Interrupt, with_causes};
use trainer::checkpoint;

pub(crate) use recovery::{again_on_conflict, anew_if_unusable, cannot_tell_what_is_new};

use crate::record::{DayPlan, DayStep, Done, Failure, Record, SkippedDay, Training};
use crate::stop::is_stop;
use crate::{own, report, retention};
use recovery::damaged;
use work::stopped;

/// A run of the daily job: its day, name and options.
#[derive(Debug, Clone)]
pub(crate) struct DayRequest {
    /// Name of the run and its model.
    pub(crate) name: String,
    pub(crate) date: NaiveDate,
    /// Train from scratch, whatever the rule says.
    pub(crate) full: bool,
    /// Repeat this step and all later steps.
    pub(crate) force: Option<DayStep>,
    /// Keep the model without publishing it.
    pub(crate) experiment: bool,
}

/// Replaces `{date}` in input paths with the day: `logs/{date}/*.jsonl.gz`.
pub(crate) fn for_date(mut config: Config, date: NaiveDate) -> Config {
    for path in config.events.paths.iter_mut().chain(&mut config.items.paths) {
        *path = path.replace("{date}", &date.to_string());
    }
    config
}

/// Runs the remaining steps under the lease `jobs/daily.lock`, since two runs would write the same tables.
///
/// # Errors
///
/// If another run holds the lease, the name is that of another day's run, or a step fails or is stopped.
pub(crate) async fn run(config: &Config, request: &DayRequest, interrupt: &Interrupt) -> Result<Record> {
    checkpoint::check_name(&request.name)?;
    let config = &for_date(config.clone(), request.date);
    let root = Root::new(&config.root)?;
    let _lock = lock(&root)?;
    publication::settle(&root)?;
    let mut record = match Record::load(&root, &request.name)? {
        Some(record) if record.date != request.date => bail!(
            "run `{}` is of {}, not of {}; give this one another --name",
            record.name,
            record.date,
            request.date
        ),
        Some(record) => record,
        None => Record::new(&request.name, request.date),
    };
    // This run holds the lock: an earlier one that has not ended was killed.
    record.kills = record.killed();
    if let Some(step) = request.force {
        record.steps.clear_from(step);
    }
    if record.skipped.take().is_some() || request.force.is_some() {
        (record.tries, record.kills) = (0, None);
    }
    if record.experiment && !request.experiment {
        record.steps.clear_from(DayStep::Publish);
    }
    if !record.steps.is_done(DayStep::Publish) {
        record.experiment = request.experiment;
    }
    // A model that was deleted, or replaced by one the job did not make, is trained again.
    let gone = |model: Option<&str>| model.is_some_and(|model| own::model_by(&root, model).is_none());
    if !record.steps.is_done(DayStep::Publish) {
        if gone(record.base()) {
            record.steps.clear_from(DayStep::Train);
        } else if gone(record.served()) {
            record.steps.clear_from(DayStep::Sft);
        }
    }
    record.full |= request.full;
    let trained = record.steps.is_done(DayStep::Train);
    if !record.steps.is_done(DayStep::Publish) {
        // A run that has built its tables is planned by their content.
        let version = record.steps.sequences.as_ref().map(|done| (EVENTS, done.output.events_version));
        let seen = root.pinned(version);
        let plan = DayPlan::new(config, &seen, &record).await?;
        // A planned full training is not replaced by a refresh.
        let stays = |old: &Training| trained || *old == plan.training || *old == Training::Full;
        let same = |old: &DayPlan| old.follows == plan.follows && stays(&old.training);
        if !record.plan.as_ref().is_some_and(same) {
            // Another day was published since the run began, and this run would undo what that one learned; or the base it was to
            // continue is gone.
            record.steps.clear_from(DayStep::Sequences);
            record.plan = Some(plan);
        }
        own_names(&root, config, &mut record)?;
        record.save(&root)?;
        // Frees space before training needs it.
        retention::models(config, &root)?;
    }
    record.begun = !record.is_over();
    if record.begun {
        // A killed run cannot record this afterwards.
        record.save(&root)?;
    }
    Daily { config, root, interrupt, record }.run().await
}

fn lock(root: &Root) -> Result<Lease> {
    Ok(Lease::take(own::DAILY, &root.path().join("jobs").join("daily.lock"))?)
}

/// Records the unfinished day `date` as skipped, and writes its page.
pub(crate) fn skip(root: &Root, date: NaiveDate, reason: String) -> Result<Record> {
    let _lock = lock(root)?;
    let name = date.to_string();
    let mut record = match Record::load(root, &name) {
        Ok(record) => record,
        Err(problem) => {
            eprintln!("warning: {problem:#}; it is now {}", Record::set_aside(root, &name)?.display());
            None
        }
    }
    .unwrap_or_else(|| Record::new(&name, date));
    record.skipped = Some(SkippedDay { at: Utc::now(), reason });
    record.save(root)?;
    report::write(root, &record)?;
    Ok(record)
}

/// Raises the run's generation until its model names are free: no other model, training or publication has them. Served models
/// are never overwritten.
fn own_names(root: &Root, config: &Config, record: &mut Record) -> Result<()> {
    let kept = match retention::kept(root, config) {
        // The run's own publications are in its record, and the weights of the others still exist.
        Err(damaged @ PublicationError::Damaged { .. }) => {
            eprintln!("warning: {}", with_causes(&damaged));
            Vec::new()
        }
        kept => kept?,
    };
    let taken = |record: &Record, name: &str| {
        record.published.contains(name)
            || kept.iter().any(|p| p.base == name || p.served == name)
            || own::is_somebodys(root, name)
            || (!record.models.contains(name) && checkpoint::find(&root.model_path(name)).is_some())
    };
    loop {
        let base = !record.steps.is_done(DayStep::Train) && taken(record, &record.base_name());
        let tuned = !record.steps.is_done(DayStep::Sft) && taken(record, &record.tuned_name());
        if !base && !tuned {
            return Ok(());
        }
        record.generation += 1;
    }
}

struct Daily<'a> {
    config: &'a Config,
    root: Root,
    interrupt: &'a Interrupt,
    record: Record,
}

impl Daily<'_> {
    async fn run(mut self) -> Result<Record> {
        self.record.failure = None;
        for (i, step) in DayStep::ALL.into_iter().enumerate() {
            if self.record.steps.is_done(step) {
                continue;
            }
            if self.interrupt.requested() {
                let stopped = stopped(step).into();
                self.failed(step, &stopped);
                return Err(stopped);
            }
            eprintln!("\n[{}/{}] {step}: {}", i + 1, DayStep::ALL.len(), step.what());
            failpoint::reach(format!("step:{step}"));
            if let Err(error) = self.perform(step).await {
                self.failed(step, &error);
                return Err(error.context(format!("step {step} of `{}`", self.record.name)));
            }
            self.record.begun = !self.record.is_over();
            self.record.save(&self.root)?;
            failpoint::reach(format!("step:{step}:done"));
        }
        Ok(self.record)
    }

    /// Records the failure, also on the page. A problem here is only printed: the caller returns `error`.
    fn failed(&mut self, step: DayStep, error: &anyhow::Error) {
        let stopped = is_stop(error);
        self.record.begun = false;
        self.record.tries += u32::from(!stopped);
        let (error_text, at) = (with_causes(error.as_ref()), Utc::now());
        self.record.failure = Some(Failure { step, error: error_text, at, stopped });
        if let Some((step, shard)) = damaged(&self.root, error) {
            // The builders notice the missing shard.
            let aside = shard.with_extension("damaged.parquet");
            match std::fs::rename(&shard, &aside) {
                Err(problem) if problem.kind() != std::io::ErrorKind::NotFound => {}
                moved => {
                    if moved.is_ok() {
                        eprintln!("the damaged shard is now {}", aside.display());
                    }
                    eprintln!("the next run builds the table again");
                    self.record.steps.clear_from(step);
                }
            }
        }
        let written = self.record.save(&self.root).and_then(|()| report::write(&self.root, &self.record));
        if let Err(problem) = written {
            eprintln!("warning: the run's record cannot be written: {problem:#}");
        }
    }

    async fn perform(&mut self, step: DayStep) -> Result<()> {
        let started = Instant::now();
        macro_rules! done {
            ($field:ident, $output:expr) => {{
                let output = $output;
                let seconds = started.elapsed().as_secs_f64();
                self.record.steps.$field = Some(Done { finished_at: Utc::now(), seconds, output });
            }};
        }
        match step {
            DayStep::Ingest => done!(ingest, self.ingest().await?),
            DayStep::Compact => done!(compact, self.compact().await?),
            DayStep::Sequences => done!(sequences, self.sequences().await?),
            DayStep::SftSets => done!(sft_sets, self.sft_sets().await?),
            DayStep::Instructions => done!(instructions, self.instructions().await?),
            DayStep::Prequential => done!(prequential, self.prequential().await?),
            DayStep::Train => done!(train, self.train().await?),
            DayStep::Sft => done!(sft, self.sft().await?),
            DayStep::Evaluate => done!(evaluate, self.evaluate().await?),
            DayStep::Gate => done!(gate, self.gate()?),
            DayStep::Publish => done!(publish, self.publish()?),
            DayStep::Retention => done!(retention, self.retention().await?),
            DayStep::Report => {
                done!(report, self.report().await?);
                let path = report::write(&self.root, &self.record)?;
                eprintln!("{}", path.display());
            }
        }
        Ok(())
    }
}
