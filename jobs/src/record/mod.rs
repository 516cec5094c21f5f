//! What a run has done, on disk: `jobs/daily/<name>/run.json`. A step that stands there is not done again.
//!
//! Jobs, reports, retention and commands read records; a record knows none of them.

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

/// The file of the page of a run, beside its record.
pub(crate) const PAGE: &str = "report.html";

/// One run of the daily job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What the run is called, and the model unless that was made before.
    #[serde(deserialize_with = "names::plain")]
    pub(crate) name: String,
    /// The day.
    pub(crate) date: NaiveDate,
    /// When it was begun.
    pub(crate) started_at: DateTime<Utc>,
    /// Whether a training from scratch was asked for.
    #[serde(default)]
    pub(crate) full: bool,
    /// How often its models were made anew, from 1.
    #[serde(default)]
    pub(crate) generation: u32,
    /// Every model that the run has begun to train.
    #[serde(default, deserialize_with = "names::plain_each")]
    pub(crate) models: BTreeSet<String>,
    /// Those of them that were published.
    #[serde(default, deserialize_with = "names::plain_each")]
    pub(crate) published: BTreeSet<String>,
    /// Whether its model is an experiment: kept and not published.
    #[serde(default)]
    pub(crate) experiment: bool,
    /// Runs that failed.
    #[serde(default)]
    pub(crate) tries: u32,
    /// A run was begun and has not ended: if it is not running, it was killed.
    #[serde(default)]
    pub(crate) begun: bool,
    /// Runs before it that were killed, the last ones in one step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kills: Option<Kills>,
    /// Why the day was left out, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) skipped: Option<SkippedDay>,
    /// Rows of `events` before the first try of `ingest`: what a try committed before it was killed is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) events_before: Option<u64>,
    /// Which training to run, and from which model.
    pub(crate) plan: Option<DayPlan>,
    /// What each step did.
    #[serde(flatten)]
    pub(crate) steps: Steps,
    /// Why it stopped, if it did.
    pub(crate) failure: Option<Failure>,
}

/// The outcome of each step that is done.
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
    /// When.
    pub(crate) finished_at: DateTime<Utc>,
    /// Wall time.
    pub(crate) seconds: f64,
    /// What came of it.
    #[serde(flatten)]
    pub(crate) output: T,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) step: DayStep,
    pub(crate) error: String,
    pub(crate) at: DateTime<Utc>,
    /// It was asked to stop, which is no failure.
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

/// Runs that were killed in the same step: from outside, by a power cut, or because they used too much memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kills {
    pub(crate) step: DayStep,
    pub(crate) times: u32,
}

/// A day that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SkippedDay {
    pub(crate) at: DateTime<Utc>,
    pub(crate) reason: String,
}

/// Files to `events`, `items` and `dead_letters`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ingested {
    /// Records of the log: read = accepted + duplicates + dead letters + forgotten.
    pub(crate) read: u64,
    pub(crate) accepted: u64,
    pub(crate) duplicates: u64,
    pub(crate) dead_letters: u64,
    #[serde(default)]
    pub(crate) forgotten: u64,
    /// Rejected records, of log and catalogue, by reason.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Rows of `events`, and of `items`.
    pub(crate) events: u64,
    pub(crate) items: u64,
}

/// Small shards merged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compacted {
    /// Dates and tables that were rewritten.
    pub(crate) rewritten: usize,
}

/// The tables that the run reads, at these versions whatever is committed meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tables {
    pub(crate) events_version: u64,
    pub(crate) items_version: u64,
    pub(crate) sequences_version: u64,
    /// None where nothing is refreshed.
    pub(crate) refresh_version: Option<u64>,
    /// Rows of `events`.
    pub(crate) events: u64,
    /// Windows, in `sequences`.
    pub(crate) rows: u64,
    /// Rows of `refresh`.
    pub(crate) fresh_rows: Option<u64>,
    /// Users, of a build that was made by this run.
    pub(crate) users: Option<u64>,
    /// Share of the earlier events that `Δτ` hides, of a build that was made by this run.
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
    /// None where no condition is configured.
    pub(crate) version: Option<u64>,
    pub(crate) users: u64,
}

/// New events, predicted before they are learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Prequential {
    /// The model that was served; none where there was none, or nothing is new.
    pub(crate) model: Option<String>,
    /// As served, seen items filtered.
    pub(crate) metrics: Figures,
    /// New events that took part.
    pub(crate) targets: usize,
    /// Why the model could not be asked.
    #[serde(default)]
    pub(crate) problem: Option<String>,
}

/// The base.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trained {
    /// None where nothing was new: then nothing is published.
    #[serde(default, deserialize_with = "names::plain_option")]
    pub(crate) model: Option<String>,
    pub(crate) steps: u64,
    /// Seconds of training alone, over all parts of a step that was resumed.
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

/// The base after SFT.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tuned {
    /// None where no condition is configured: the base itself is served.
    #[serde(default, deserialize_with = "names::plain_option")]
    pub(crate) model: Option<String>,
    pub(crate) steps: u64,
    pub(crate) epochs: Vec<Epoch>,
}

/// The publication.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Published {
    /// None where nothing was new, or the gate refused.
    pub(crate) number: Option<u64>,
}

/// The page for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Page {
    /// Inside the root.
    pub(crate) path: String,
    /// By title, name and count of each bin.
    #[serde(default)]
    pub(crate) distributions: BTreeMap<String, Vec<(String, u64)>>,
}

/// What was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removed {
    /// Models.
    pub(crate) models: Vec<String>,
    /// Files of tables, and their bytes.
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// How long versions of tables stay readable.
    pub(crate) kept: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DayOutcome {
    /// Not all steps are done.
    Unfinished,
    /// A new model is served.
    Published,
    /// The gate refused it; the old one is served.
    Refused,
    /// There was nothing to learn.
    NothingNew,
    /// A model was made to look at, and is not served.
    Experiment,
    /// The day was left out.
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

    /// The directory of the run called `name`.
    pub(crate) fn directory(root: &Root, name: &str) -> PathBuf {
        root.path().join("jobs").join("daily").join(name)
    }

    /// What the run called `name` has done so far; `None` where it was never begun.
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

    /// Gives a record that cannot be read another name.
    pub(crate) fn set_aside(root: &Root, name: &str) -> Result<PathBuf> {
        let path = Self::directory(root, name).join("run.json");
        let aside = path.with_extension("damaged.json");
        std::fs::rename(&path, &aside).with_context(|| format!("{}", path.display()))?;
        Ok(aside)
    }

    /// All runs, by date and beginning. What cannot be read is left out, with its problem.
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
                // A run that is over has a page, and a record.
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

    /// Writes it down, as a whole or not at all.
    pub(crate) fn save(&self, root: &Root) -> Result<()> {
        let path = Self::directory(root, &self.name).join("run.json");
        let text = sealed::write(self)?;
        let write = || {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            files::replace(&path, &text)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The name of the base.
    pub(crate) fn base_name(&self) -> String {
        match self.generation {
            0 | 1 => self.name.clone(),
            n => format!("{}.{n}", self.name),
        }
    }

    /// The name of the base after SFT.
    pub(crate) fn tuned_name(&self) -> String {
        format!("{}-sft", self.base_name())
    }

    /// The base, if there is a new one.
    pub(crate) fn base(&self) -> Option<&str> {
        self.steps.train.as_ref()?.output.model.as_deref()
    }

    /// The model to be served, if there is a new one.
    pub(crate) fn served(&self) -> Option<&str> {
        self.steps.sft.as_ref().and_then(|sft| sft.output.model.as_deref()).or_else(|| self.base())
    }

    /// How it ended.
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

    /// Whether all steps are done.
    pub(crate) fn is_over(&self) -> bool {
        self.next_step().is_none()
    }

    /// The first step that is not done.
    pub(crate) fn next_step(&self) -> Option<DayStep> {
        DayStep::ALL.into_iter().find(|&step| !self.steps.is_done(step))
    }

    /// How often runs were killed in the step in which the next one goes on; the last one counts if it was begun and has not
    /// ended.
    pub(crate) fn killed(&self) -> Option<Kills> {
        let step = self.next_step()?;
        let before = self.kills.filter(|kills| kills.step == step).map_or(0, |kills| kills.times);
        Some(Kills { step, times: before + u32::from(self.begun) }).filter(|kills| kills.times > 0)
    }

    /// Whether it is the day's own run, not an experiment with another name.
    pub(crate) fn is_of_its_day(&self) -> bool {
        self.name == self.date.to_string()
    }

    /// Wall time of all steps.
    pub(crate) fn seconds(&self) -> f64 {
        DayStep::ALL.into_iter().filter_map(|step| self.steps.seconds(step)).sum()
    }
}

/// A step's place, whatever comes of it.
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
    /// Whether `step` is done.
    pub(crate) fn is_done(&self, step: DayStep) -> bool {
        self.seconds(step).is_some()
    }

    /// Wall time of `step`, once it is done.
    pub(crate) fn seconds(&self, step: DayStep) -> Option<f64> {
        self.slot(step).seconds()
    }

    /// `step` and all that come after it are to be done again.
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
        // A directory that leads nowhere, as one that may not be read.
        let jobs = directory.path().join("jobs/daily");
        std::os::unix::fs::symlink(&jobs, &jobs).unwrap();
        let (_, problems) = super::Record::all(&root);
        assert!(problems.len() == 1 && problems[0].contains("cannot be listed"), "{problems:?}");
    }
}
