//! The work of each step of the daily job.

use std::collections::BTreeMap;
use std::future::Future;

use anyhow::{Context as _, Result};
use pipeline::engine::Resources;
use pipeline::inspect::{Contents, inspect};
use pipeline::{compact, ingest, instructions, sequences, sft as sft_sets};
use schemas::tables::{EVENTS, ITEMS, REFRESH, SEQUENCES};
use store::Root;
use store::publication::{self, Kind, Publication};
use terminal::with_causes;
use trainer::checkpoint;
use trainer::learn::{Status, TrainError, TrainOptions, pretrain, refresh, sft};

use super::{Daily, again_on_conflict, anew_if_unusable, cannot_tell_what_is_new};
use crate::gate::{self, Measured};
use crate::own;
use crate::publish::{self, Candidate};
use crate::record::{
    BuiltInstructions, Compacted, DayPlan, DayStep, Epoch, Ingested, PAGE, Page, Prequential, Published,
    Record, Removed, SftSets, Tables, Trained, Training, Tuned,
};
use crate::retention;
use crate::stop::{Stopped, unless_stopped};

impl Daily<'_> {
    pub(super) async fn ingest(&mut self) -> Result<Ingested> {
        if self.config.events.paths.is_empty() && self.config.items.paths.is_empty() {
            let events = self.root.require(EVENTS, "pipeline consume").await?;
            eprintln!("no files are configured: events come from a topic");
            return Ok(Ingested { events: events.rows(), ..Ingested::default() });
        }
        let rows = self.root.snapshot(EVENTS).await?.map_or(0, |events| events.rows());
        let before = *self.record.events_before.get_or_insert(rows);
        self.record.save(&self.root)?;
        let limits = ingest::Limits { memory: self.config.memory.of_daily(), ..ingest::Limits::default() };
        let mut report = ingest::run_within(self.config, &self.root, limits, self.interrupt).await?;
        // A killed try could not record the events it committed: this try reads them again, as duplicates.
        let earlier = rows.saturating_sub(before).min(report.events.duplicates);
        report.events.accepted += earlier;
        report.events.duplicates -= earlier;
        self.record.events_before = None;
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

    pub(super) async fn compact(&self) -> Result<Compacted> {
        let report =
            compact::compact(&self.root, &[], compact::TARGET, self.resources(), self.interrupt).await?;
        eprintln!("{report}");
        Ok(Compacted { rewritten: report.tables.iter().map(|table| table.rewritten.len()).sum() })
    }

    pub(super) async fn sequences(&mut self) -> Result<Tables> {
        let events = self.root.require(EVENTS, "pipeline ingest").await?.version();
        let root = self.root.pinned([(EVENTS, events)]);
        let plan = DayPlan::new(self.config, &root, &self.record).await?;
        eprintln!("planned: {}, because {}", plan.training.name(), plan.reason);
        self.record.plan = Some(plan.clone());
        let build = || sequences::build_with(self.config, &root, self.resources());
        let all = self.unless_stopped(DayStep::Sequences, again_on_conflict(build)).await??;
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
        // The previously served model predicts the new events, whichever training follows.
        let since = match &plan.training {
            Training::Refresh { since, .. } => Some(*since),
            Training::Full => self.followed()?.map(|publication| publication.learned_events),
        };
        let Some(since) = since else { return Ok(tables) };
        let build = || sequences::refresh(self.config, &root, since, self.resources());
        match self.unless_stopped(DayStep::Sequences, again_on_conflict(build)).await? {
            Ok(fresh) => {
                eprintln!("{fresh}");
                tables.refresh_version = Some(fresh.version);
                tables.fresh_rows = Some(fresh.rows);
                tables.items_version = tables.items_version.max(fresh.items_version);
            }
            Err(error) if cannot_tell_what_is_new(&error) => {
                let reason = with_causes(&error);
                eprintln!("{reason}\na model is trained from scratch instead");
                let full = (self.record.date, root.require(EVENTS, "pipeline ingest").await?.rows());
                self.record.plan = Some(DayPlan { training: Training::Full, reason, full, ..plan });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(tables)
    }

    pub(super) async fn sft_sets(&self) -> Result<SftSets> {
        let mut sets = SftSets::default();
        let Some(conditions) = self.conditions() else { return Ok(sets) };
        let root = self.root.pinned([(EVENTS, self.tables()?.events_version)]);
        let built = sft_sets::build_with(self.config, &root, conditions, self.resources());
        let report = self.unless_stopped(DayStep::SftSets, built).await??;
        eprintln!("{report}");
        for table in report.tables {
            sets.examples.insert(table.table.clone(), table.rows);
            sets.versions.insert(table.table, table.version);
        }
        Ok(sets)
    }

    pub(super) async fn instructions(&self) -> Result<BuiltInstructions> {
        if self.conditions().is_none() {
            return Ok(BuiltInstructions::default());
        }
        let root = self.pinned()?;
        let built = instructions::build(self.config, &root, None, self.resources());
        let report = self.unless_stopped(DayStep::Instructions, built).await??;
        eprintln!("{report}");
        Ok(BuiltInstructions { version: Some(report.version), users: report.users })
    }

    pub(super) async fn prequential(&self) -> Result<Prequential> {
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
                Ok(Prequential { model: Some(served), metrics, targets, problem: None })
            }
            // This costs a number, not the day.
            Err(error) => {
                let problem = format!("`{served}` cannot be asked: {}", with_causes(&error));
                eprintln!("warning: {problem}");
                Ok(Prequential { problem: Some(problem), ..Prequential::default() })
            }
        }
    }

    pub(super) async fn train(&mut self) -> Result<Trained> {
        let (name, root) = (self.record.base_name(), self.pinned()?);
        let training = self.plan()?.training;
        self.begin_model(&name)?;
        let (config, interrupt) = (self.config, self.interrupt);
        let outcome = anew_if_unusable(async |fresh| {
            let options =
                TrainOptions { name: &name, fresh, interrupt, stop_after: None, job: Some(own::DAILY) };
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
            return Err(stopped(DayStep::Train).into());
        }
        let epochs = epochs(&outcome.epochs);
        Ok(Trained { model: Some(name), steps: outcome.steps, targets: outcome.targets, epochs })
    }

    pub(super) async fn sft(&mut self) -> Result<Tuned> {
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
            let options =
                TrainOptions { name: &name, fresh, interrupt, stop_after: None, job: Some(own::DAILY) };
            sft::run(config, &root, &base, options).await
        });
        let outcome = outcome.await?;
        eprintln!("{outcome}");
        if outcome.training.status == Status::Interrupted {
            return Err(stopped(DayStep::Sft).into());
        }
        let epochs = epochs(&outcome.training.epochs);
        Ok(Tuned { model: Some(name), steps: outcome.training.steps, epochs })
    }

    pub(super) async fn evaluate(&self) -> Result<Measured> {
        let Some(model) = self.record.served() else {
            eprintln!("there is no new model");
            return Ok(Measured::default());
        };
        let _turn = gate::turn(&self.root, self.interrupt).await?;
        let served = publication::newest(&self.root)?;
        let best = served.as_ref().map(|served| gate::best(&self.root, &self.config.gate, served));
        let best = best.flatten();
        gate::measure(self.config, &self.pinned()?, model, served.iter().collect(), best.as_ref()).await
    }

    pub(super) fn gate(&self) -> Result<gate::Verdict> {
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

    pub(super) fn publish(&mut self) -> Result<Published> {
        let (Some(base), Some(served)) = (self.record.base(), self.record.served()) else {
            eprintln!("nothing new: what is served stays");
            return Ok(Published::default());
        };
        if self.record.experiment {
            eprintln!("`{served}` is an experiment: what is served stays (--publish publishes it)");
            return Ok(Published::default());
        }
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
        let models = [base.to_owned(), served.to_owned()];
        self.record.published.extend(models);
        Ok(Published { number: Some(number) })
    }

    pub(super) async fn retention(&self) -> Result<Removed> {
        let removed = retention::clean(self.config, &self.root, self.interrupt).await?;
        let Removed { models, files, bytes, kept } = &removed;
        let megabytes = *bytes as f64 / 1e6;
        eprintln!(
            "{} old models and {files} files of tables ({megabytes:.1} MB, older than {kept}) deleted",
            models.len()
        );
        Ok(removed)
    }

    /// Collects what the page shows. The page is written after this step is recorded.
    pub(super) async fn report(&self) -> Result<Page> {
        let inspected =
            self.unless_stopped(DayStep::Report, inspect(&self.pinned()?, Some(SEQUENCES))).await??;
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
        let path = Record::directory(&self.root, &self.record.name).join(PAGE);
        let inside = path.strip_prefix(self.root.path()).unwrap_or(&path);
        Ok(Page { path: inside.display().to_string(), distributions })
    }

    /// Returns the share of the machine's memory that this job may use.
    fn resources(&self) -> Resources {
        Resources::within(self.config.memory.of_daily())
    }

    /// Records the model as the run's, before any of it exists.
    pub(super) fn begin_model(&mut self, name: &str) -> Result<()> {
        self.record.models.insert(name.into());
        self.record.save(&self.root)
    }

    /// Returns the conditions that the served model follows. `None` without conditions, or without events set aside for SFT: the
    /// base itself is served.
    pub(super) fn conditions(&self) -> Option<&[String]> {
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

    pub(super) fn plan(&self) -> Result<DayPlan> {
        self.record.plan.clone().context("the run has no plan")
    }

    /// Returns the publication that this run follows.
    pub(super) fn followed(&self) -> Result<Option<Publication>> {
        match self.plan()?.follows {
            Some(number) => Ok(publication::at(&self.root, number)?),
            None => Ok(None),
        }
    }

    pub(super) fn tables(&self) -> Result<&Tables> {
        let done = self.record.steps.sequences.as_ref();
        done.map(|done| &done.output).context("the step `sequences` is not done")
    }

    /// Returns the tables of instruction examples, with their versions.
    pub(super) fn sets(&self) -> impl Iterator<Item = (String, u64)> {
        let sets = self.record.steps.sft_sets.as_ref();
        sets.map(|done| done.output.versions.clone()).unwrap_or_default().into_iter()
    }

    /// Returns the root at the table versions that this run reads.
    pub(super) fn pinned(&self) -> Result<Root> {
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

    pub(super) async fn unless_stopped<T>(
        &self,
        step: DayStep,
        work: impl Future<Output = T>,
    ) -> Result<T, Stopped> {
        unless_stopped(self.interrupt, step.name(), work).await
    }
}

pub(super) fn stopped(step: DayStep) -> Stopped {
    Stopped { during: step.name().into() }
}

fn epochs(records: &[checkpoint::EpochRecord]) -> Vec<Epoch> {
    let epoch = |record: &checkpoint::EpochRecord| Epoch {
        epoch: record.epoch,
        loss: record.loss,
        validation: record.validation,
    };
    records.iter().map(epoch).collect()
}
