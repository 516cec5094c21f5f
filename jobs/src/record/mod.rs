//! The record of a daily run: `jobs/daily/<name>/run.json`. A recorded step is not done again.
//!
//! Jobs, reports, retention and commands read records; of these, records use only the gate's figures.

mod plan;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use chrono::{DateTime, NaiveDate, Utc};
use schemas::names;
use serde::{Deserialize, Serialize};
use store::Root;
use store::{files, sealed};

pub(crate) use plan::{DayPlan, Training};
pub(crate) use step::DayStep;

use crate::gate::{Figures, Measured, Verdict};

/// File name of a run's page, beside its record.
pub(crate) const PAGE: &str = "report.html";

/// One run of the daily job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Name of the run; its models' names begin with it.
    #[serde(deserialize_with = "names::plain")]
    pub(crate) name: String,
    /// Day whose log is processed.
    pub(crate) date: NaiveDate,
    /// When the run first began.
    pub(crate) started_at: DateTime<Utc>,
    /// True if training from scratch was requested.
    #[serde(default)]
    pub(crate) full: bool,
    /// Generation of its models' names, from 1; raised when they are taken.
    #[serde(default)]
    pub(crate) generation: u32,
    /// Models that the run has begun to train.
    #[serde(default, deserialize_with = "names::plain_each")]
    pub(crate) models: BTreeSet<String>,
    /// Models of the run that were published.
    #[serde(default, deserialize_with = "names::plain_each")]
    pub(crate) published: BTreeSet<String>,
    /// True if its model is an experiment: kept, not published.
    #[serde(default)]
    pub(crate) experiment: bool,
    /// Failed tries.
    #[serde(default)]
    pub(crate) tries: u32,
    /// True if a try has begun and not ended: if none is running, it was killed.
    #[serde(default)]
    pub(crate) begun: bool,
    /// Earlier tries that were killed, in one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kills: Option<Kills>,
    /// Why the day was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<SkippedDay>,
    /// Rows of `events` before the first try of `ingest`: what a killed try committed belongs to this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) events_before: Option<u64>,
    /// Which training to run, and from which model.
    pub(crate) plan: Option<DayPlan>,
    /// Output of each finished step.
    #[serde(flatten)]
    pub(crate) steps: Steps,
    /// Why the last try stopped, if it did.
    pub(crate) failure: Option<Failure>,
}

/// Outputs of the finished steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Steps {
    pub(crate) ingest: Option<Done<Ingested>>,
    pub(crate) compact: Option<Done<Compacted>>,
    pub(crate) sequences: Option<Done<Tables>>,
    pub(crate) sft_sets: Option<Done<SftSets>>,
    pub(crate) instructions: Option<Done<BuiltInstructions>>,
    pub(crate) prequential: Option<Done<Prequential>>,
    pub(crate) train: Option<Done<Trained>>,
    pub(crate) sft: Option<Done<Tuned>>,
    pub(crate) evaluate: Option<Done<Measured>>,
    pub(crate) gate: Option<Done<Verdict>>,
    pub(crate) publish: Option<Done<Published>>,
    pub(crate) retention: Option<Done<Removed>>,
    pub(crate) report: Option<Done<Page>>,
}

/// A finished step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Done<T> {
    /// End of the step.
    pub(crate) finished_at: DateTime<Utc>,
    /// Wall time in seconds.
    pub(crate) seconds: f64,
    /// Output of the step.
    #[serde(flatten)]
    pub(crate) output: T,
}

/// A step that failed or was stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) step: DayStep,
    pub(crate) error: String,
    pub(crate) at: DateTime<Utc>,
    /// True if it was asked to stop, which is no failure.
    #[serde(default)]
    pub(crate) stopped: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stopped {
            true => write!(f, "stopped in step {}; the next run goes on there", self.step),
            false => write!(f, "failed in step {}: {}", self.step, self.error),
        }
    }
}

/// Tries killed in one step: from outside, by a power cut, or for lack of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kills {
    pub(crate) step: DayStep,
    pub(crate) times: u32,
}

/// A skipped day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SkippedDay {
    pub(crate) at: DateTime<Utc>,
    pub(crate) reason: String,
}

/// Counts of `ingest`: from files to `events`, `items` and `dead_letters`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ingested {
    /// Records of the log: read = accepted + duplicates + dead letters + forgotten.
    pub(crate) read: u64,
    pub(crate) accepted: u64,
    pub(crate) duplicates: u64,
    pub(crate) dead_letters: u64,
    #[serde(default)]
    pub(crate) forgotten: u64,
    /// Rejected records of log and catalogue, by reason.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Rows of `events`.
    pub(crate) events: u64,
    /// Rows of `items`.
    pub(crate) items: u64,
}

/// Counts of `compact`: small shards merged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compacted {
    /// Number of rewritten dates and unpartitioned tables.
    pub(crate) rewritten: usize,
}

/// Versions of the tables that the run reads, whatever is committed meanwhile, and their counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tables {
    pub(crate) events_version: u64,
    pub(crate) items_version: u64,
    pub(crate) sequences_version: u64,
    /// `None` if nothing is refreshed.
    pub(crate) refresh_version: Option<u64>,
    /// Rows of `events`.
    pub(crate) events: u64,
    /// Rows (windows) of `sequences`.
    pub(crate) rows: u64,
    /// Rows of `refresh`.
    pub(crate) fresh_rows: Option<u64>,
    /// Users in `sequences`, if this run built it.
    pub(crate) users: Option<u64>,
    /// Share of the earlier events that `Δτ` hides, if this run built `sequences`.
    pub(crate) hidden_share: Option<f64>,
}

/// The tables `sft/<condition>`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct SftSets {
    /// Table → version.
    pub(crate) versions: BTreeMap<String, u64>,
    /// Table → examples.
    pub(crate) examples: BTreeMap<String, u64>,
}

/// The table `instructions`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct BuiltInstructions {
    /// `None` if no condition is configured.
    pub(crate) version: Option<u64>,
    pub(crate) users: u64,
}

/// Prequential evaluation: new events are predicted before they are learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prequential {
    /// The served model; `None` if there was none, or nothing is new.
    pub(crate) model: Option<String>,
    /// Figures as served, seen items filtered.
    pub(crate) metrics: Figures,
    /// New events that were predicted.
    pub(crate) targets: usize,
    /// Why the model could not be evaluated.
    #[serde(default)]
    pub(crate) problem: Option<String>,
}

/// Training of the base.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trained {
    /// `None` if nothing was new: then nothing is published.
    #[serde(default, deserialize_with = "names::plain_option")]
    pub(crate) model: Option<String>,
    pub(crate) steps: u64,
    /// Targets learned by the last try, over all epochs and branches.
    pub(crate) targets: u64,
    pub(crate) epochs: Vec<Epoch>,
}

/// One epoch of the learning curve.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    pub(crate) epoch: usize,
    pub(crate) loss: f64,
    pub(crate) validation: Option<f64>,
}

/// SFT of the base.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tuned {
    /// `None` if no condition is configured: the base itself is served.
    #[serde(default, deserialize_with = "names::plain_option")]
    pub(crate) model: Option<String>,
    pub(crate) steps: u64,
    pub(crate) epochs: Vec<Epoch>,
}

/// Output of `publish`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Published {
    /// Number of the publication; `None` if nothing was new, the gate refused, or the run is an experiment.
    pub(crate) number: Option<u64>,
}

/// The day's page, with figures that later pages compare with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Page {
    /// Path inside the root.
    pub(crate) path: String,
    /// Name and count of each bin, by title.
    #[serde(default)]
    pub(crate) distributions: BTreeMap<String, Vec<(String, u64)>>,
}

/// What retention deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    /// Names of models.
    pub(crate) models: Vec<String>,
    /// Files of tables.
    pub(crate) files: usize,
    /// Bytes of these files.
    pub(crate) bytes: u64,
    /// How long versions of tables stay readable.
    pub(crate) kept: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DayOutcome {
    /// Some steps are not done.
    Unfinished,
    /// A new model is served.
    Published,
    /// The gate refused the new model; the old one is served.
    Refused,
    /// There was nothing to learn.
    NothingNew,
    /// A model was made as an experiment, and is not served.
    Experiment,
    /// The day was skipped.
    Skipped,
}

impl Record {
    pub(crate) fn new(name: &str, date: NaiveDate) -> Self {
        Self {
            name: name.into(),
            date,
            started_at: Utc::now(),
            full: false,
            generation: 1,
            models: BTreeSet::new(),
            published: BTreeSet::new(),
            experiment: false,
            tries: 0,
            begun: false,
            kills: None,
            skipped: None,
            events_before: None,
            plan: None,
            steps: Steps::default(),
            failure: None,
        }
    }

    /// Returns the directory of run `name`.
    pub(crate) fn directory(root: &Root, name: &str) -> PathBuf {
        root.path().join("jobs").join("daily").join(name)
    }

    /// Reads the record of run `name`; `None` if it was never begun.
    ///
    /// # Errors
    ///
    /// If the record is unreadable, damaged, or of another run.
    pub(crate) fn load(root: &Root, name: &str) -> Result<Option<Self>> {
        Self::read(&Self::directory(root, name).join("run.json"))
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.with_context(|| format!("{}", path.display()))?,
        };
        let hint = || format!("{} is damaged; remove it and the run begins anew", path.display());
        let record: Self = sealed::read(&bytes).with_context(hint)?;
        let directory = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        if directory != Some(record.name.as_str()) {
            return Err(anyhow!("it is the record of run `{}`", record.name)).with_context(hint);
        }
        Ok(Some(record))
    }

    /// Renames an unreadable record to `run.damaged.json`, and returns its new path.
    pub(crate) fn set_aside(root: &Root, name: &str) -> Result<PathBuf> {
        let path = Self::directory(root, name).join("run.json");
        let aside = path.with_extension("damaged.json");
        std::fs::rename(&path, &aside).with_context(|| format!("{}", path.display()))?;
        Ok(aside)
    }

    /// Reads all records, sorted by date and beginning, and returns messages about unreadable ones.
    pub(crate) fn all(root: &Root) -> (Vec<Self>, Vec<String>) {
        let (mut records, mut problems) = (Vec::new(), Vec::new());
        let directory = Self::directory(root, "");
        let mut unlisted =
            |error| problems.push(format!("{} cannot be listed: {error}", directory.display()));
        let mut entries = Vec::new();
        match std::fs::read_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => unlisted(error),
            Ok(found) => found.for_each(|entry| match entry {
                Ok(entry) => entries.push(entry),
                Err(error) => unlisted(error),
            }),
        }
        for entry in entries {
            let path = entry.path().join("run.json");
            match Self::read(&path) {
                // A finished run has a page and a record.
                Ok(None) if entry.path().join(PAGE).exists() => problems.push(format!(
                    "{} is gone, and the page of its run is there: run the day again, or remove the directory",
                    path.display()
                )),
                Ok(record) => records.extend(record),
                Err(error) => problems.push(format!("{error:#}")),
            }
        }
        records.sort_by(|a, b| (a.date, a.started_at, &a.name).cmp(&(b.date, b.started_at, &b.name)));
        (records, problems)
    }

    /// Writes the record atomically.
    pub(crate) fn save(&self, root: &Root) -> Result<()> {
        let path = Self::directory(root, &self.name).join("run.json");
        let text = sealed::write(self)?;
        let write = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            files::replace(&path, &text)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// Returns the name of the base.
    pub(crate) fn base_name(&self) -> String {
        match self.generation {
            0 | 1 => self.name.clone(),
            n => format!("{}.{n}", self.name),
        }
    }

    /// Returns the name of the base after SFT.
    pub(crate) fn tuned_name(&self) -> String {
        format!("{}-sft", self.base_name())
    }

    /// Returns the new base, if any.
    pub(crate) fn base(&self) -> Option<&str> {
        self.steps.train.as_ref()?.output.model.as_deref()
    }

    /// Returns the new model to be served, if any.
    pub(crate) fn served(&self) -> Option<&str> {
        self.steps.sft.as_ref().and_then(|sft| sft.output.model.as_deref()).or_else(|| self.base())
    }

    /// Returns how the run ended.
    pub(crate) fn outcome(&self) -> DayOutcome {
        match (&self.steps.publish, &self.steps.gate) {
            _ if self.skipped.is_some() => DayOutcome::Skipped,
            _ if !self.is_over() => DayOutcome::Unfinished,
            (Some(Done { output: Published { number: Some(_) }, .. }), _) => DayOutcome::Published,
            _ if self.experiment && self.base().is_some() => DayOutcome::Experiment,
            (_, Some(gate)) if !gate.output.publish && self.base().is_some() => DayOutcome::Refused,
            _ => DayOutcome::NothingNew,
        }
    }

    /// True if all steps are done.
    pub(crate) fn is_over(&self) -> bool {
        self.next_step().is_none()
    }

    /// Returns the first step that is not done.
    pub(crate) fn next_step(&self) -> Option<DayStep> {
        DayStep::ALL.into_iter().find(|&step| !self.steps.is_done(step))
    }

    /// Returns how many tries were killed in the next step; the last try counts if it has begun and not ended.
    pub(crate) fn killed(&self) -> Option<Kills> {
        let step = self.next_step()?;
        let before = self.kills.filter(|kills| kills.step == step).map_or(0, |kills| kills.times);
        Some(Kills { step, times: before + u32::from(self.begun) }).filter(|kills| kills.times > 0)
    }

    /// True if this is the day's own run, not an experiment with another name.
    pub(crate) fn is_of_its_day(&self) -> bool {
        self.name == self.date.to_string()
    }

    /// Returns the wall time of all steps, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        DayStep::ALL.into_iter().filter_map(|step| self.steps.seconds(step)).sum()
    }
}

/// A step's output, whatever its type.
trait Slot {
    fn seconds(&self) -> Option<f64>;
    fn clear(&mut self);
}

impl<T> Slot for Option<Done<T>> {
    fn seconds(&self) -> Option<f64> {
        self.as_ref().map(|done| done.seconds)
    }

    fn clear(&mut self) {
        *self = None;
    }
}

impl Steps {
    /// True if `step` is done.
    pub(crate) fn is_done(&self, step: DayStep) -> bool {
        self.seconds(step).is_some()
    }

    /// Returns the wall time of `step` in seconds, once it is done.
    pub(crate) fn seconds(&self, step: DayStep) -> Option<f64> {
        self.slot(step).seconds()
    }

    /// Marks `step` and all later steps as not done.
    pub(crate) fn clear_from(&mut self, step: DayStep) {
        DayStep::ALL
            .into_iter()
            .filter(|&later| later >= step)
            .for_each(|later| self.slot_mut(later).clear());
    }

    fn slot(&self, step: DayStep) -> &dyn Slot {
        match step {
            DayStep::Ingest => &self.ingest,
            DayStep::Compact => &self.compact,
            DayStep::Sequences => &self.sequences,
            DayStep::SftSets => &self.sft_sets,
            DayStep::Instructions => &self.instructions,
            DayStep::Prequential => &self.prequential,
            DayStep::Train => &self.train,
            DayStep::Sft => &self.sft,
            DayStep::Evaluate => &self.evaluate,
            DayStep::Gate => &self.gate,
            DayStep::Publish => &self.publish,
            DayStep::Retention => &self.retention,
            DayStep::Report => &self.report,
        }
    }

    fn slot_mut(&mut self, step: DayStep) -> &mut dyn Slot {
        match step {
            DayStep::Ingest => &mut self.ingest,
            DayStep::Compact => &mut self.compact,
            DayStep::Sequences => &mut self.sequences,
            DayStep::SftSets => &mut self.sft_sets,
            DayStep::Instructions => &mut self.instructions,
            DayStep::Prequential => &mut self.prequential,
            DayStep::Train => &mut self.train,
            DayStep::Sft => &mut self.sft,
            DayStep::Evaluate => &mut self.evaluate,
            DayStep::Gate => &mut self.gate,
            DayStep::Publish => &mut self.publish,
            DayStep::Retention => &mut self.retention,
            DayStep::Report => &mut self.report,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_one_step_alone() {
        let mut record = Record::new("d", NaiveDate::default());
        assert_eq!(record.killed(), None);
        for times in 1..=3 {
            record.begun = true;
            assert_eq!(record.killed(), Some(Kills { step: DayStep::Ingest, times }));
            record.kills = record.killed();
            record.begun = false;
            assert_eq!(record.killed(), Some(Kills { step: DayStep::Ingest, times }));
        }
        let (finished_at, output) = (Utc::now(), Ingested::default());
        record.steps.ingest = Some(Done { finished_at, seconds: 0.0, output });
        assert_eq!(record.killed(), None);
        record.begun = true;
        assert_eq!(record.killed(), Some(Kills { step: DayStep::Compact, times: 1 }));
    }

    #[cfg(unix)]
    #[test]
    fn records_that_cannot_be_listed_are_a_problem() {
        let directory = tempfile::tempdir().unwrap();
        let root = super::Root::new(directory.path().to_str().unwrap()).unwrap();
        assert!(super::Record::all(&root).1.is_empty());
        std::fs::create_dir(directory.path().join("jobs")).unwrap();
        // A directory that cannot be listed: a symbolic link to itself.
        let jobs = directory.path().join("jobs/daily");
        std::os::unix::fs::symlink(&jobs, &jobs).unwrap();
        let (_, problems) = super::Record::all(&root);
        assert!(problems.len() == 1 && problems[0].contains("cannot be listed"), "{problems:?}");
    }
}
