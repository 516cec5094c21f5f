//! `jobs daily`: each day's log becomes a better published model, or nothing changes and someone is told why.
//!
//! ```text
//! ingest ▶ compact ▶ sequences ▶ sft-sets ▶ instructions ▶ prequential ▶ train ▶ sft ▶ evaluate ▶ gate ▶ publish ▶ retention ▶ report
//! ```
//!
//! Each step can be repeated, and what it came to is written down when it is done ([`Record`]): a run that was stopped, however,
//! goes on at the step that it was in, and a second run of a finished day does nothing. From `sequences` on, a run reads the
//! tables at the versions that it began with ([`Root::pinned`]), whatever a consumer or a near-real-time refresh commits meanwhile.

mod plan;
mod record;
mod step;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use chrono::{NaiveDate, Utc};
use pipeline::commit::CommitError;
use pipeline::inspect::{Contents, inspect};
use pipeline::scan::Resources;
use pipeline::{compact, ingest, instructions, sequences, sft as sft_sets};
use schemas::cli::Interrupt;
use schemas::config::Config;
use schemas::delta::{Root, TableError};
use schemas::failpoint;
use schemas::publication::{self, Kind, Publication};
use schemas::tables::{EVENTS, ITEMS, REFRESH, SEQUENCES};
use trainer::checkpoint;
use trainer::data::DataError;
use trainer::evaluate::EvaluateError;
use trainer::training::{Options, Status, TrainError, pretrain, refresh, sft};

pub(crate) use plan::{Plan, Training, chain};
pub(crate) use record::{
    Compacted, Done, Epoch, Failure, Ingested, Instructed, Outcome, Page, Prequential, Published, Record,
    SftSets, Tables, Trained, Tuned,
};
pub(crate) use step::Step;

use crate::gate::{self, Measured};
use crate::lock::Lock;
use crate::publish::{self, Candidate};
use crate::stop::{Stopped, unless_stopped};
use crate::{report, retention};

/// So often a table is built that another job writes too.
const CONFLICTS: usize = 5;

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// What the run, and the model, is called.
    pub(crate) name: String,
    pub(crate) date: NaiveDate,
    /// Train from nothing, whatever the rule says.
    pub(crate) full: bool,
    /// Do this step and all that come after it again.
    pub(crate) force: Option<Step>,
}

/// `{date}` in a path is the day: `logs/{date}/*.jsonl.gz`.
pub(crate) fn for_date(mut config: Config, date: NaiveDate) -> Config {
    for path in config.events.paths.iter_mut().chain(&mut config.items.paths) {
        *path = path.replace("{date}", &date.to_string());
    }
    config
}

/// Runs the steps that are left. The lock is held by nobody else: two runs would write the same tables.
pub(crate) async fn run(config: &Config, request: &Request, interrupt: &Interrupt) -> Result<Record> {
    checkpoint::check_name(&request.name)?;
    let config = &for_date(config.clone(), request.date);
    let root = Root::new(&config.root)?;
    let _lock = Lock::take("jobs daily", &root.path().join("jobs").join("daily.lock"))?;
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
    if let Some(step) = request.force {
        record.steps.clear_from(step);
    }
    // A model that is gone has to be made again, whoever took it away.
    let gone = |model: Option<&str>| model.is_some_and(|m| checkpoint::find(&root.model_path(m)).is_none());
    if !record.steps.is_done(Step::Publish) {
        if gone(record.base()) {
            record.steps.clear_from(Step::Train);
        } else if gone(record.served()) {
            record.steps.clear_from(Step::Sft);
        }
    }
    record.full |= request.full;
    let trained = record.steps.is_done(Step::Train);
    if !record.steps.is_done(Step::Publish) {
        // A run that has read its tables is planned by what is in them.
        let version = record.steps.sequences.as_ref().map(|done| (EVENTS, done.output.events_version));
        let seen = root.pinned(version);
        let plan = Plan::new(config, &seen, (&record.name, record.date), record.full).await?;
        // A training from scratch that was begun is finished.
        let stays = |old: &Training| trained || *old == plan.training || *old == Training::Full;
        let same = |old: &Plan| old.follows == plan.follows && stays(&old.training);
        if !record.plan.as_ref().is_some_and(same) {
            // Another day was published since the run was begun, and it would take back what that one has learned; or the
            // base that it was to continue is not there any more.
            record.steps.clear_from(Step::Sequences);
            record.plan = Some(plan);
        }
        own_names(&root, &mut record)?;
        record.save(&root)?;
        // Room is made before it is needed.
        retention::models(config, &root)?;
    }
    Daily { config, root, interrupt, record }.run().await
}

/// Raises the run's generation until nobody else's model, and none that was published, has the names of those that it will make:
/// what is served is never written over.
fn own_names(root: &Root, record: &mut Record) -> Result<()> {
    let (all, _) = publication::all(root)?;
    let published = |name: &str| all.iter().any(|p| p.base == name || p.served == name);
    let taken = |record: &Record, name: &str| {
        published(name)
            || (!record.models.contains(name) && checkpoint::find(&root.model_path(name)).is_some())
    };
    loop {
        let base = !record.steps.is_done(Step::Train) && taken(record, &record.base_name());
        let tuned = !record.steps.is_done(Step::Sft) && taken(record, &record.tuned_name());
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
        for (i, step) in Step::ALL.into_iter().enumerate() {
            if self.record.steps.is_done(step) {
                continue;
            }
            if self.interrupt.requested() {
                return Err(stopped(step).into());
            }
            eprintln!("\n[{}/{}] {step}: {}", i + 1, Step::ALL.len(), step.what());
            failpoint::reach(format!("step:{step}"));
            if let Err(error) = self.perform(step).await {
                self.failed(step, &error);
                return Err(error.context(format!("step {step} of `{}`", self.record.name)));
            }
            self.record.save(&self.root)?;
            failpoint::reach(format!("step:{step}:done"));
        }
        Ok(self.record)
    }

    /// Writes down why the run stopped, and tells it on the page. The error itself goes on to the caller, so nothing here may hide it.
    fn failed(&mut self, step: Step, error: &anyhow::Error) {
        self.record.failure = Some(Failure { step, error: chain(error.as_ref()), at: Utc::now() });
        if let Some((step, shard)) = damaged(&self.root, error) {
            // The builders see that it is missing.
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

    async fn perform(&mut self, step: Step) -> Result<()> {
        let started = Instant::now();
        macro_rules! done {
            ($field:ident, $output:expr) => {{
                let output = $output;
                let seconds = started.elapsed().as_secs_f64();
                self.record.steps.$field = Some(Done { finished_at: Utc::now(), seconds, output });
            }};
        }
        match step {
            Step::Ingest => done!(ingest, self.ingest().await?),
            Step::Compact => done!(compact, self.compact().await?),
            Step::Sequences => done!(sequences, self.sequences().await?),
            Step::SftSets => done!(sft_sets, self.sft_sets().await?),
            Step::Instructions => done!(instructions, self.instructions().await?),
            Step::Prequential => done!(prequential, self.prequential().await?),
            Step::Train => done!(train, self.train().await?),
            Step::Sft => done!(sft, self.sft().await?),
            Step::Evaluate => done!(evaluate, self.evaluate().await?),
            Step::Gate => done!(gate, self.gate()?),
            Step::Publish => done!(publish, self.publish()?),
            Step::Retention => done!(retention, self.retention().await?),
            Step::Report => {
                done!(report, self.report().await?);
                let path = report::write(&self.root, &self.record)?;
                eprintln!("{}", path.display());
            }
        }
        Ok(())
    }

    async fn ingest(&self) -> Result<Ingested> {
        if self.config.events.paths.is_empty() && self.config.items.paths.is_empty() {
            let events = self.root.require(EVENTS, "pipeline consume").await?;
            eprintln!("no files are configured: events come from a topic");
            return Ok(Ingested { events: events.rows(), ..Ingested::default() });
        }
        let report = ingest::run(self.config, &self.root, self.interrupt).await?;
        eprintln!("{report}");
        Ok(Ingested {
            read: report.events.read,
            accepted: report.events.accepted,
            duplicates: report.events.duplicates,
            dead_letters: report.events.dead_letters,
            forgotten: report.events.forgotten,
            reasons: report.dead_letters.iter().map(|(&reason, &count)| (reason.to_owned(), count)).collect(),
            events: report.events_stored,
            items: report.catalogue.total,
        })
    }

    async fn compact(&self) -> Result<Compacted> {
        let report =
            compact::compact(&self.root, &[], compact::TARGET, Resources::default(), self.interrupt).await?;
        eprintln!("{report}");
        Ok(Compacted { rewritten: report.tables.iter().map(|table| table.rewritten.len()).sum() })
    }

    async fn sequences(&mut self) -> Result<Tables> {
        let events = self.root.require(EVENTS, "pipeline ingest").await?.version();
        let root = self.root.pinned([(EVENTS, events)]);
        let plan =
            Plan::new(self.config, &root, (&self.record.name, self.record.date), self.record.full).await?;
        eprintln!("planned: {}, because {}", plan.training.name(), plan.reason);
        self.record.plan = Some(plan.clone());
        let build = || sequences::build(self.config, &root);
        let all = self.unless_stopped(Step::Sequences, again_on_conflict(build)).await??;
        eprintln!("{all}");
        let mut tables = Tables {
            events_version: events,
            items_version: all.items_version,
            sequences_version: all.version,
            rows: all.rows,
            users: all.counts.as_ref().map(|counts| counts.users),
            events: all.counts.as_ref().map_or(0, |counts| counts.events),
            hidden_share: all.hidden_share,
            ..Tables::default()
        };
        // What is new is predicted by the model that was there before, however the next one is trained.
        let since = match &plan.training {
            Training::Refresh { since, .. } => Some(*since),
            Training::Full => self.followed()?.map(|publication| publication.learned_events),
        };
        let Some(since) = since else { return Ok(tables) };
        let build = || sequences::refresh(self.config, &root, since, Resources::default());
        match self.unless_stopped(Step::Sequences, again_on_conflict(build)).await? {
            Ok(fresh) => {
                eprintln!("{fresh}");
                tables.refresh_version = Some(fresh.version);
                tables.fresh_rows = Some(fresh.rows);
                tables.items_version = tables.items_version.max(fresh.items_version);
            }
            Err(error) if cannot_tell_what_is_new(&error) => {
                let reason = chain(&error);
                eprintln!("{reason}\na model is trained from scratch instead");
                let full = (self.record.date, root.require(EVENTS, "pipeline ingest").await?.rows());
                self.record.plan = Some(Plan { training: Training::Full, reason, full, ..plan });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(tables)
    }

    async fn sft_sets(&self) -> Result<SftSets> {
        let mut sets = SftSets::default();
        let Some(conditions) = self.conditions() else { return Ok(sets) };
        let root = self.root.pinned([(EVENTS, self.tables()?.events_version)]);
        let built = sft_sets::build_with(self.config, &root, conditions, Resources::default());
        let report = self.unless_stopped(Step::SftSets, built).await??;
        eprintln!("{report}");
        for table in report.tables {
            sets.examples.insert(table.table.clone(), table.rows);
            sets.versions.insert(table.table, table.version);
        }
        Ok(sets)
    }

    async fn instructions(&self) -> Result<Instructed> {
        if self.conditions().is_none() {
            return Ok(Instructed::default());
        }
        let root = self.pinned()?;
        let built = instructions::build(self.config, &root, None, Resources::default());
        let report = self.unless_stopped(Step::Instructions, built).await??;
        eprintln!("{report}");
        Ok(Instructed { version: Some(report.version), users: report.users })
    }

    async fn prequential(&self) -> Result<Prequential> {
        let Some(publication) = self.followed()? else {
            eprintln!("nothing was published before");
            return Ok(Prequential::default());
        };
        if self.tables()?.fresh_rows.unwrap_or(0) == 0 {
            eprintln!("nothing is new");
            return Ok(Prequential::default());
        }
        let served = publication.served;
        let _turn = gate::turn(&self.root, self.interrupt).await?;
        match gate::prequential(self.config, &self.pinned()?, &served).await {
            Ok((metrics, targets)) => {
                if let Some(hr) = metrics.get("hr@10") {
                    eprintln!(
                        "`{served}` predicts {targets} new events: HR@10 {hr:.4} as served, seen items filtered"
                    );
                }
                Ok(Prequential { model: Some(served), metrics, targets })
            }
            // What is lost is a number, not the day.
            Err(error) => {
                eprintln!("warning: `{served}` cannot be asked: {}", chain(&error));
                Ok(Prequential::default())
            }
        }
    }

    async fn train(&mut self) -> Result<Trained> {
        let (name, root) = (self.record.base_name(), self.pinned()?);
        let training = self.plan()?.training;
        self.begin_model(&name)?;
        let (config, interrupt) = (self.config, self.interrupt);
        let outcome = anew_if_unusable(async |fresh| {
            let options = Options { name: &name, fresh, interrupt, stop_after: None };
            match &training {
                Training::Full => pretrain::run(config, &root, options).await,
                Training::Refresh { from, .. } => refresh::run(config, &root, from, options).await,
            }
        });
        let outcome = match outcome.await {
            Err(error @ TrainError::NothingNew { .. }) => {
                eprintln!("{error}");
                return Ok(Trained::default());
            }
            outcome => outcome?,
        };
        eprintln!("{outcome}");
        if outcome.status == Status::Interrupted {
            return Err(stopped(Step::Train).into());
        }
        let epochs = epochs(&outcome.epochs);
        Ok(Trained { model: Some(name), steps: outcome.steps, targets: outcome.targets, epochs })
    }

    async fn sft(&mut self) -> Result<Tuned> {
        let Some(base) = self.record.base().map(str::to_owned) else {
            eprintln!("there is no new base");
            return Ok(Tuned::default());
        };
        if self.conditions().is_none() {
            return Ok(Tuned::default());
        }
        let (name, root) = (self.record.tuned_name(), self.pinned()?);
        self.begin_model(&name)?;
        let (config, interrupt) = (self.config, self.interrupt);
        let outcome = anew_if_unusable(async |fresh| {
            let options = Options { name: &name, fresh, interrupt, stop_after: None };
            sft::run(config, &root, &base, options).await
        });
        let outcome = outcome.await?;
        eprintln!("{outcome}");
        if outcome.training.status == Status::Interrupted {
            return Err(stopped(Step::Sft).into());
        }
        let epochs = epochs(&outcome.training.epochs);
        Ok(Tuned { model: Some(name), steps: outcome.training.steps, epochs })
    }

    async fn evaluate(&self) -> Result<Measured> {
        let Some(model) = self.record.served() else {
            eprintln!("there is no new model");
            return Ok(Measured::default());
        };
        let _turn = gate::turn(&self.root, self.interrupt).await?;
        let served = publication::newest(&self.root)?;
        gate::measure(self.config, &self.pinned()?, model, served.iter().collect()).await
    }

    fn gate(&self) -> Result<gate::Verdict> {
        let Some(measured) = self.record.steps.evaluate.as_ref().filter(|done| done.output.model.is_some())
        else {
            eprintln!("there is no new model");
            return Ok(gate::Verdict::default());
        };
        let refreshed = matches!(self.plan()?.training, Training::Refresh { .. });
        let verdict = gate::judge(&self.config.gate, &measured.output, refreshed);
        eprintln!("{verdict}");
        Ok(verdict)
    }

    fn publish(&self) -> Result<Published> {
        let (Some(base), Some(served)) = (self.record.base(), self.record.served()) else {
            eprintln!("nothing new: what is served stays");
            return Ok(Published::default());
        };
        if !self.record.steps.gate.as_ref().is_some_and(|gate| gate.output.publish) {
            eprintln!("refused by the gate: what is served stays");
            return Ok(Published::default());
        }
        let tables = self.tables()?;
        let mut versions = vec![
            (EVENTS.to_owned(), tables.events_version),
            (ITEMS.to_owned(), tables.items_version),
            (SEQUENCES.to_owned(), tables.sequences_version),
        ];
        versions.extend(tables.refresh_version.map(|version| (REFRESH.to_owned(), version)));
        versions.extend(self.sets());
        let candidate = Candidate {
            kind: Kind::Daily,
            run: &self.record.name,
            base,
            served,
            full: self.plan()?.full,
            tables: versions.into_iter().collect(),
            measured: self.record.steps.evaluate.as_ref().map(|done| &done.output),
        };
        let number = publish::over_refreshes(&self.root, &candidate, self.plan()?.follows)?;
        eprintln!("`{served}` is served, as publication {number}");
        Ok(Published { number: Some(number) })
    }

    async fn retention(&self) -> Result<retention::Removed> {
        let removed = retention::clean(self.config, &self.root, self.interrupt).await?;
        let retention::Removed { models, files, bytes, kept } = &removed;
        let megabytes = *bytes as f64 / 1e6;
        eprintln!(
            "{} old models and {files} files of tables ({megabytes:.1} MB, older than {kept}) deleted",
            models.len()
        );
        Ok(removed)
    }

    /// The page is written when the record of this step is there, too.
    async fn report(&self) -> Result<Page> {
        let inspected =
            self.unless_stopped(Step::Report, inspect(&self.pinned()?, Some(SEQUENCES))).await??;
        let mut distributions = BTreeMap::new();
        for table in inspected.tables {
            let Some(Contents::Sequences(contents)) = table.contents else { continue };
            for (title, found) in [
                ("Events a user", &contents.history_length),
                ("Events a session", &contents.session_length),
                ("Events a request batch", &contents.request_size),
            ] {
                let bins = found.bins.iter().map(|bin| (bin.name(), bin.count));
                distributions.insert(title.to_owned(), bins.collect());
            }
        }
        let path = Record::directory(&self.root, &self.record.name).join("report.html");
        let inside = path.strip_prefix(self.root.path()).unwrap_or(&path);
        Ok(Page { path: inside.display().to_string(), distributions })
    }

    /// Writes down that the model is the run's, before there is anything of it.
    fn begin_model(&mut self, name: &str) -> Result<()> {
        self.record.models.insert(name.into());
        self.record.save(&self.root)
    }

    /// What the served model is to follow; without, and without events that are set aside for it, the base itself is served.
    fn conditions(&self) -> Option<&[String]> {
        let conditions = self.config.sft.conditions.as_slice();
        if conditions.is_empty() {
            eprintln!("none: sft.conditions is empty, so the base is served");
        } else if self.config.sequences.sft_share == 0.0 {
            eprintln!("none: sequences.sft_share is 0, so the base is served");
        } else {
            return Some(conditions);
        }
        None
    }

    fn plan(&self) -> Result<Plan> {
        self.record.plan.clone().context("the run has no plan")
    }

    /// The publication that this run follows.
    fn followed(&self) -> Result<Option<Publication>> {
        match self.plan()?.follows {
            Some(number) => Ok(publication::at(&self.root, number)?),
            None => Ok(None),
        }
    }

    fn tables(&self) -> Result<&Tables> {
        let done = self.record.steps.sequences.as_ref();
        done.map(|done| &done.output).context("the step `sequences` is not done")
    }

    /// The tables of instruction examples.
    fn sets(&self) -> impl Iterator<Item = (String, u64)> {
        let sets = self.record.steps.sft_sets.as_ref();
        sets.map(|done| done.output.versions.clone()).unwrap_or_default().into_iter()
    }

    /// The root as this run sees it.
    fn pinned(&self) -> Result<Root> {
        let tables = self.tables()?;
        let pinned = self.root.pinned([
            (EVENTS, tables.events_version),
            (ITEMS, tables.items_version),
            (SEQUENCES, tables.sequences_version),
        ]);
        let sets: Vec<(String, u64)> = self.sets().collect();
        let sets = sets.iter().map(|(table, version)| (table.as_str(), *version));
        Ok(pinned.pinned(sets.chain(tables.refresh_version.map(|version| (REFRESH, version)))))
    }

    async fn unless_stopped<T>(&self, step: Step, work: impl Future<Output = T>) -> Result<T, Stopped> {
        unless_stopped(self.interrupt, step.name(), work).await
    }
}

fn stopped(step: Step) -> Stopped {
    Stopped { during: step.name().into() }
}

pub(crate) fn epochs(records: &[checkpoint::EpochRecord]) -> Vec<Epoch> {
    let epoch = |record: &checkpoint::EpochRecord| Epoch {
        epoch: record.epoch,
        loss: record.loss,
        validation: record.validation,
    };
    records.iter().map(epoch).collect()
}

/// `build`, again where another job has committed to the same table meanwhile: both write `refresh`, and new items.
pub(crate) async fn again_on_conflict<T, F: Future<Output = Result<T, sequences::BuildError>>>(
    build: impl Fn() -> F,
) -> Result<T, sequences::BuildError> {
    for _ in 1..CONFLICTS {
        match build().await {
            Err(sequences::BuildError::Commit(CommitError::Conflict { .. })) => {}
            built => return built,
        }
    }
    build().await
}

/// A training, from the beginning where what an earlier run has left cannot be continued: it was begun with other settings, from
/// other tables, by another version of the code, or is damaged. The names are the jobs' own, so nothing of anybody's is lost.
pub(crate) async fn anew_if_unusable<T>(
    train: impl AsyncFn(bool) -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    match train(false).await {
        Err(error @ (TrainError::OtherRun { .. } | TrainError::Checkpoint(_))) => {
            eprintln!("{}\ntraining begins anew", chain(&error));
            train(true).await
        }
        trained => trained,
    }
}

/// Whether what came after a version of `events` is not known any more: a log entry is gone, or a shard as it was then.
pub(crate) fn cannot_tell_what_is_new(error: &sequences::BuildError) -> bool {
    let gone = |error: &TableError| match error {
        TableError::Expired { .. } | TableError::Future { .. } => true,
        TableError::Shard { table, .. } => table == EVENTS,
        _ => false,
    };
    matches!(error, sequences::BuildError::Table(error) if gone(error))
}

/// The shard that cannot be read and the step that builds its table, if it is one that can be built again.
fn damaged(root: &Root, error: &anyhow::Error) -> Option<(Step, PathBuf)> {
    let data = match (error.downcast_ref(), error.downcast_ref()) {
        (Some(TrainError::Data(data) | TrainError::Evaluate(EvaluateError::Data(data))), _) => data,
        (_, Some(EvaluateError::Data(data))) => data,
        _ => return None,
    };
    let DataError::Table(TableError::Shard { table, shard, .. }) = data else { return None };
    let step = match table.as_str() {
        SEQUENCES | REFRESH => Step::Sequences,
        table if table.starts_with("sft/") => Step::SftSets,
        _ => return None,
    };
    Some((step, root.table_path(table).join(shard)))
}
