//! Checkpoints: `models/<name>/`.
//!
//! ```text
//! model.safetensors       parameters, and which item has which row
//! optimizer.safetensors   Adam's moments
//! vocabulary.json         attribute values in the order of their rows, fingerprint of the catalogue
//! trainer_state.json      step, epoch, position in the data, seed
//! config.toml             the resolved configuration, in a format with a number (`settings`)
//! lineage.json            table versions, parent, code version
//! metrics.json            what validation said
//! metrics.jsonl           one line an epoch, and
//! tensorboard/            the same for TensorBoard: of the whole run (`records`)
//! *-test.parquet, .json   what `trainer evaluate` found (`judge::stored`)
//! ```
//!
//! A checkpoint is written under a temporary name, flushed to disk and renamed: what bears a checkpoint's name
//! is whole. Replacing one exchanges two names at once where the file system can; elsewhere it takes two renames, and a
//! kill between them leaves the old one as `<name>.previous`, which reading falls back to.
//!
//! `settings.rs` reads the configurations of earlier versions.

mod settings;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;
use schemas::config::{Config, ConfigError};
use schemas::names;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::{failpoint, sealed};

use crate::data::vocabulary::{OtherCatalogue, SavedVocabulary, Vocabulary};
use crate::data::{Catalogue, ExamplesSource, FreshSource, SequencesSource};
use crate::device::Backend;
use crate::kinds::{Learner, New, SavedLearner, TrainedModel};
use crate::models::{SavedValues, SequenceModel, Values};

/// The tensors in `model.safetensors` that hold the vocabulary's rows and counts.
const ITEM_ROWS: &str = "vocabulary.item_rows";
const ITEM_COUNTS: &str = "vocabulary.item_counts";

/// A checkpoint that cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is none of this name.
    #[error("no model at {path}; models here: {others}")]
    Missing {
        /// Where it should be.
        path: PathBuf,
        /// What is there instead.
        others: String,
    },
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is of a kind that cannot do what is asked.
    #[error("{path} is a model of architecture `{architecture}`, which cannot be {what}")]
    Kind {
        /// The checkpoint.
        path: PathBuf,
        /// Its architecture.
        architecture: String,
        /// What was asked.
        what: &'static str,
    },
    /// A later version wrote it.
    #[error(
        "{path} was written by a newer version (format {format}; this one reads up to {known}): update this program"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The newest that is known.
        known: u32,
    },
    /// The model belongs to another catalogue.
    #[error("model {path} cannot be used with this root")]
    OtherCatalogue {
        /// The checkpoint.
        path: PathBuf,
        /// The difference.
        source: OtherCatalogue,
    },
}

/// How far a training run has come. With the seed this is all the state of its random numbers: each is a
/// function of the seed and the step or epoch it is for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// The run's seed.
    pub seed: u64,
    /// Finished epochs.
    pub epoch: usize,
    /// Finished batches of the current epoch.
    pub batch: usize,
    /// Steps taken in all.
    pub steps: u64,
    /// Steps that the optimiser had taken before this run.
    #[serde(default)]
    pub inherited_steps: u64,
    /// Sum of the step losses of the current epoch.
    pub loss_sum: f64,
    /// Sum of the gradient norms of the current epoch.
    #[serde(default)]
    pub gradient_norm_sum: f64,
    /// Targets learned in the current epoch.
    #[serde(default)]
    pub epoch_targets: u64,
    /// Seconds of the steps of the current epoch; 0 between epochs, so that equal runs have equal files.
    #[serde(default)]
    pub epoch_seconds: f64,
    /// Targets learned so far.
    pub targets: u64,
    /// Validation looks since the best one.
    pub without_improvement: usize,
    /// The best validation so far.
    pub best: Option<Best>,
    /// One record an epoch.
    pub history: Vec<EpochRecord>,
}

/// The best look at the validation targets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// After how many epochs.
    pub epoch: usize,
    /// The selecting number.
    pub value: f64,
}

/// What one epoch came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// From 1.
    pub epoch: usize,
    /// Mean loss of its steps.
    pub loss: f64,
    /// The selecting number, where the epoch was validated.
    pub validation: Option<f64>,
}

/// Where a model came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The rows it was trained on.
    pub sequences: SequencesSource,
    /// Version of `items` that the trainer read.
    pub items_version: u64,
    /// The checkpoint it continued from.
    pub parent: Option<String>,
    /// Hash of that checkpoint's weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_hash: Option<String>,
    /// The new events that it learned, if it continued on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh: Option<FreshSource>,
    /// The newest version of `events` that its ancestors have learned of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited_events: Option<u64>,
    /// The fine-tuned model whose parameters of the conditions it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taught_by: Option<String>,
    /// The instruction examples it was fine-tuned on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<ExamplesSource>,
    /// The job that trained it; none where a person did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<MadeBy>,
    /// Version of the code.
    pub code_version: String,
}

/// The mark that a job leaves in what it trains: only what bears it under its own name may be deleted by jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// The job, such as `climber daily`.
    pub job: String,
    /// The name that the job gave the model: a copy under another name is somebody's own.
    pub model: String,
}

impl Lineage {
    /// The newest version of `events` that the model or an ancestor may have learned of; `None` where that is not known.
    pub fn learned_events(&self) -> Option<u64> {
        let fresh = self.fresh.as_ref().map(|fresh| &fresh.events_version);
        let own = fresh.into_iter().chain([&self.sequences.events_version]);
        let own = own.map(|version| version.parse().ok()).collect::<Option<Vec<u64>>>()?;
        own.into_iter().chain(self.inherited_events).max()
    }
}

/// Everything a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model.
    pub model: Box<dyn TrainedModel>,
    /// The configuration it was trained with.
    pub config: Config,
    /// How far its training came.
    pub state: TrainerState,
    /// Where it came from.
    pub lineage: Lineage,
    directory: PathBuf,
}

/// Writes a checkpoint to `directory`, replacing the one there.
pub fn save(
    directory: &Path,
    learner: &dyn Learner,
    config: &Config,
    state: &TrainerState,
    lineage: &Lineage,
    metrics: &impl Serialize,
) -> Result<(), CheckpointError> {
    let temporary = sibling(directory, "writing");
    remove(&temporary)?;
    fs::create_dir_all(&temporary).map_err(io_error(&temporary))?;
    let model = learner.model();
    let (vocabulary, [rows, counts]) = model.vocabulary().save().map_err(|e| damaged(&temporary, e))?;
    let mut tensors = model.tensors().map_err(|e| damaged(&temporary, e))?;
    tensors.insert(ITEM_ROWS.into(), rows);
    if counts.elem_count() > 0 {
        tensors.insert(ITEM_COUNTS.into(), counts);
    }
    save_tensors(&temporary.join("model.safetensors"), &tensors)?;
    save_tensors(&temporary.join("optimizer.safetensors"), &learner.state())?;
    save_json(&temporary.join("vocabulary.json"), &vocabulary)?;
    save_json(&temporary.join("trainer_state.json"), state)?;
    save_json(&temporary.join("lineage.json"), lineage)?;
    save_json(&temporary.join("metrics.json"), metrics)?;
    let path = temporary.join("config.toml");
    fs::write(&path, settings::to_text(config)).map_err(io_error(&path))?;
    publish(&temporary, directory)
}

/// Flushes the checkpoint in `temporary` and gives it its name.
fn publish(temporary: &Path, directory: &Path) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(temporary).map_err(io_error(temporary))? {
        let path = entry.map_err(io_error(temporary))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(io_error(&path))?;
    }
    sync_directory(temporary)?;
    rename_over(temporary, directory)
}

/// Moves the checkpoint `from` to `to`, replacing the one there.
pub fn rename_over(from: &Path, to: &Path) -> Result<(), CheckpointError> {
    let previous = sibling(to, "previous");
    let reach = |point: &str| {
        failpoint::reach(format_args!("checkpoint:{}:{point}", to.file_name().unwrap_or_default().display()));
    };
    if !from.is_dir() {
        return Err(io_error(from)(io::Error::from(io::ErrorKind::NotFound)));
    }
    let replaced = if !to.exists() {
        fs::rename(from, to).map_err(io_error(to))?;
        &previous
    } else if exchange(from, to) {
        reach("exchanged");
        from
    } else {
        remove(&previous)?;
        fs::rename(to, &previous).map_err(io_error(to))?;
        reach("aside");
        fs::rename(from, to).map_err(io_error(to))?;
        &previous
    };
    if let Some(parent) = to.parent() {
        sync_directory(parent)?;
    }
    remove(replaced)
}

/// Lets two directories change their names in one step, where the file system can.
fn exchange(one: &Path, other: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        !failpoint::is_without("exchange")
            && renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (one, other);
        false
    }
}

/// Removes a checkpoint and what an interrupted write of it left. What is half removed no longer bears the
/// checkpoint's name.
pub fn discard(directory: &Path) -> Result<(), CheckpointError> {
    let writing = sibling(directory, "writing");
    for named in [sibling(directory, "previous"), directory.to_owned()] {
        remove(&writing)?;
        if named.is_dir() {
            fs::rename(&named, &writing).map_err(io_error(&named))?;
        }
    }
    remove(&writing)
}

/// Refuses names that are not one plain directory name, or that checkpoints use themselves.
pub fn check_name(name: &str) -> Result<(), ConfigError> {
    if !names::is_plain(name) {
        return Err(ConfigError::Invalid {
            key: "--name".into(),
            problem: format!(
                "`{name}` cannot be a model's name; use letters, digits, `-`, `_` and `.`, not at the start, and \
                 not the endings .previous, .writing and .json"
            ),
        });
    }
    Ok(())
}

/// Where the checkpoint `directory` is to be read from; `None` where there is none.
pub fn find(directory: &Path) -> Option<PathBuf> {
    [directory.to_owned(), sibling(directory, "previous")].into_iter().find(|d| d.is_dir())
}

/// The attributes of the catalogue that a checkpoint's model needs: of its items, and of the conditions it follows.
pub fn attributes(directory: &Path) -> Result<Vec<String>, CheckpointError> {
    let directory = require(directory)?;
    let (config, _) = load_config(&directory)?;
    let saved: SavedVocabulary = load_json(&directory.join("vocabulary.json"))?;
    let mut attributes = config.model.attributes;
    for name in saved.conditions.attributes() {
        if !config.conditions.derived.contains_key(name) && !attributes.iter().any(|known| known == name) {
            attributes.push(name.into());
        }
    }
    Ok(attributes)
}

/// What a checkpoint was trained with and from, without its weights.
pub fn describe(directory: &Path) -> Result<(Config, Lineage), CheckpointError> {
    let directory = require(directory)?;
    Ok((load_config(&directory)?.0, load_json(&directory.join("lineage.json"))?))
}

/// The job that made the model in `directory`; `None` where a person did, or its lineage cannot be read.
pub fn made_by(directory: &Path) -> Option<MadeBy> {
    #[derive(Deserialize)]
    struct Mark {
        made_by: Option<MadeBy>,
    }
    let lineage = fs::read(find(directory)?.join("lineage.json")).ok()?;
    serde_json::from_slice::<Mark>(&lineage).ok()?.made_by
}

/// A hash of a checkpoint's weights, to tell it from another of the same name.
pub fn hash(directory: &Path) -> Result<String, CheckpointError> {
    let path = require(directory)?.join("model.safetensors");
    let hash = File::open(&path).and_then(schemas::hash::hash128_of).map_err(io_error(&path))?;
    Ok(format!("{hash:032x}"))
}

/// Reads a checkpoint for use with `catalogue`, its model on `backend`, wherever that was trained.
pub fn load(
    directory: &Path,
    catalogue: &Catalogue,
    backend: &Backend,
) -> Result<Checkpoint, CheckpointError> {
    loop {
        let found = require(directory)?;
        let begun = identity(&found);
        let loaded = load_from(found, catalogue, backend);
        // Replaced meanwhile: what was read may be of two checkpoints, or half of one.
        if begun == find(directory).as_deref().and_then(identity) {
            return loaded;
        }
    }
}

/// What tells a directory from another of the same name.
fn identity(directory: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = directory;
        None
    }
}

fn load_from(
    found: PathBuf,
    catalogue: &Catalogue,
    backend: &Backend,
) -> Result<Checkpoint, CheckpointError> {
    let (config, said) = load_config(&found)?;
    if let Some(said) = said {
        eprintln!("warning: {said}");
    }
    let saved: SavedVocabulary = load_json(&found.join("vocabulary.json"))?;
    let path = found.join("model.safetensors");
    let values = SavedValues::open(&path).map_err(|e| damaged(&path, e))?;
    let rows = values.get(ITEM_ROWS).map_err(|e| damaged(&path, e))?;
    // Older checkpoints have none.
    let counts = values.get(ITEM_COUNTS).ok();
    let vocabulary = Vocabulary::restore(saved, &rows, counts.as_ref(), catalogue)
        .map_err(|e| damaged(&path, e))?
        .map_err(|source| CheckpointError::OtherCatalogue { path: found.clone(), source })?;
    let values = Values::Saved(Arc::new(values));
    let new = New { config: &config, vocabulary: vocabulary.into(), values, backend };
    let model = new.model().map_err(|e| damaged(&path, e))?;
    Ok(Checkpoint {
        model,
        config,
        state: load_json(&found.join("trainer_state.json"))?,
        lineage: load_json(&found.join("lineage.json"))?,
        directory: found,
    })
}

impl Checkpoint {
    /// The model with the optimiser that belongs to it, on the same device, ready to go on.
    pub fn into_learner(self) -> Result<Box<dyn Learner>, CheckpointError> {
        let path = self.directory.join("optimizer.safetensors");
        let steps = self.state.inherited_steps + self.state.steps;
        SavedValues::open(&path)
            .and_then(|saved| {
                self.model.into_learner(&self.config.pretrain, Some(SavedLearner { values: &saved, steps }))
            })
            .map_err(|e| damaged(&path, e))
    }

    /// A copy of the model that goes on learning from here with a vocabulary that has grown.
    pub fn grown(
        &self,
        config: &Config,
        vocabulary: Arc<Vocabulary>,
    ) -> Result<Box<dyn Learner>, CheckpointError> {
        let path = self.directory.join("optimizer.safetensors");
        let steps = self.state.inherited_steps + self.state.steps;
        SavedValues::open(&path)
            .and_then(|saved| self.model.grown(config, vocabulary, SavedLearner { values: &saved, steps }))
            .map_err(|e| damaged(&path, e))
    }

    /// The model as one that `what` needs: fine-tuning and graphs are for those of histories and item vectors alone.
    pub fn sequence_model(&self, what: &'static str) -> Result<&SequenceModel, CheckpointError> {
        self.model.sequence_model().ok_or_else(|| CheckpointError::Kind {
            path: self.directory.clone(),
            architecture: self.config.model.architecture.name().into(),
            what,
        })
    }
}

fn require(directory: &Path) -> Result<PathBuf, CheckpointError> {
    find(directory)
        .ok_or_else(|| CheckpointError::Missing { path: directory.to_owned(), others: others(directory) })
}

/// The configuration, and what is to be said about it.
fn load_config(directory: &Path) -> Result<(Config, Option<String>), CheckpointError> {
    let path = directory.join("config.toml");
    let text = fs::read_to_string(&path).map_err(io_error(&path))?;
    settings::parse(&path, &text)
}

fn others(directory: &Path) -> String {
    let mut names: Vec<String> = directory
        .parent()
        .and_then(|models| fs::read_dir(models).ok())
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort_unstable();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn sibling(directory: &Path, suffix: &str) -> PathBuf {
    let mut name = directory.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::Io { path: path.to_owned(), source }
}

fn damaged(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> CheckpointError {
    CheckpointError::Damaged { path: path.to_owned(), source: Box::new(source) }
}

fn remove(directory: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error(directory)(e)),
        _ => Ok(()),
    }
}

fn sync_directory(directory: &Path) -> Result<(), CheckpointError> {
    File::open(directory).and_then(|d| d.sync_all()).map_err(io_error(directory))
}

fn save_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<(), CheckpointError> {
    // The file is written under a temporary name that only its owner may read; it gets the rights of any other new file.
    let created = File::create(path).and_then(|file| file.metadata()).map_err(io_error(path))?;
    candle_core::safetensors::save(tensors, path)
        .map_err(|e| CheckpointError::Io { path: path.to_owned(), source: io::Error::other(e) })?;
    fs::set_permissions(path, created.permissions()).map_err(io_error(path))
}

fn save_json(path: &Path, value: &impl Serialize) -> Result<(), CheckpointError> {
    let text = sealed::write(value).map_err(|e| damaged(path, e))?;
    fs::write(path, text).map_err(io_error(path))
}

fn load_json<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let text = fs::read(path).map_err(io_error(path))?;
    sealed::read(&text).map_err(|e| damaged(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["base", "2026-11-22", "a_b.c"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "..", ".training", "team/base", "m.previous", "m.writing", "published.json", "a b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_state_reads_back_to_the_last_bit() {
        for hits in 0..450 {
            let value = f64::from(hits) / 450.0;
            let state = TrainerState {
                best: Some(Best { epoch: 1, value }),
                loss_sum: value / 3.0,
                ..TrainerState::default()
            };
            let text = serde_json::to_vec_pretty(&state).unwrap();
            assert_eq!(serde_json::from_slice::<TrainerState>(&text).unwrap(), state);
        }
    }
}
