//! Checkpoints: `models/<name>/`.
//!
//! ```text
//! model.safetensors       parameters, and the row of each item
//! optimizer.safetensors   moments of Adam
//! vocabulary.json         attribute values in the order of their rows, fingerprint of the catalogue
//! trainer_state.json      step, epoch, position in the data, seed
//! config.toml             the resolved configuration, with a format number (`settings`)
//! lineage.json            table versions, parent, code version
//! metrics.json            results of validation
//! metrics.jsonl           one line per epoch of the whole run (`records`)
//! tensorboard/            the same for TensorBoard
//! *-test.parquet, .json   results of `trainer evaluate` (`judge::stored`)
//! ```
//!
//! A checkpoint is written under a temporary name, synced to disk and renamed, so a directory with a checkpoint's name is
//! complete. Replacing a checkpoint exchanges two names atomically where the file system supports it. Elsewhere it takes two
//! renames; a kill between them leaves the old checkpoint as `<name>.previous`, where it is found on reading.
//!
//! `settings.rs` reads the configurations of earlier versions. Memory: saving holds a copy of all tensors.

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
use crate::kinds::{self, Learner, New, SavedLearner, TrainedModel};
use crate::models::{SavedValues, SequenceModel, Values};

/// Names of the tensors in `model.safetensors` with the vocabulary's rows and counts.
const ITEM_ROWS: &str = "vocabulary.item_rows";
const ITEM_COUNTS: &str = "vocabulary.item_counts";

/// An error in writing or reading a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The checkpoint does not exist.
    #[error("no model at {path}; models here: {others}")]
    Missing {
        /// Path where it is expected.
        path: PathBuf,
        /// Names of the models that exist there.
        others: String,
    },
    /// A file cannot be read or written.
    #[error("{path}")]
    Io {
        /// Path of the file.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// A file does not have the expected format.
    #[error("{path} is damaged")]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// The parse error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The architecture of the model does not support the operation.
    #[error("{path} is a model of architecture `{architecture}`, which cannot be {what}")]
    Kind {
        /// Path of the checkpoint.
        path: PathBuf,
        /// Architecture of the model.
        architecture: String,
        /// The operation, as a participle.
        what: &'static str,
    },
    /// The checkpoint was written by a later version of the program.
    #[error(
        "{path} was written by a newer version (format {format}; this one reads up to {known}): update this program"
    )]
    Newer {
        /// Path of the file.
        path: PathBuf,
        /// Format of the file.
        format: u32,
        /// Newest supported format.
        known: u32,
    },
    /// The model was trained on another catalogue.
    #[error("model {path} cannot be used with this root")]
    OtherCatalogue {
        /// Path of the checkpoint.
        path: PathBuf,
        /// The first difference.
        source: OtherCatalogue,
    },
}

/// Progress of a training run. With the seed, this is the whole random state: each random number is a function of the seed and of
/// the step or epoch that uses it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Seed of the run.
    pub seed: u64,
    /// Number of finished epochs.
    pub epoch: usize,
    /// Number of finished batches in the current epoch.
    pub batch: usize,
    /// Number of steps in this run.
    pub steps: u64,
    /// Number of steps of the optimiser before this run.
    #[serde(default)]
    pub inherited_steps: u64,
    /// Sum of the step losses in the current epoch.
    pub loss_sum: f64,
    /// Sum of the gradient norms in the current epoch.
    #[serde(default)]
    pub gradient_norm_sum: f64,
    /// Number of targets learned in the current epoch.
    #[serde(default)]
    pub epoch_targets: u64,
    /// Duration of the steps in the current epoch, seconds; 0 between epochs, so that equal runs have equal files.
    #[serde(default)]
    pub epoch_seconds: f64,
    /// Number of targets learned in this run.
    pub targets: u64,
    /// Number of validations since the best one.
    pub without_improvement: usize,
    /// The best validation so far.
    pub best: Option<Best>,
    /// One record per epoch.
    pub history: Vec<EpochRecord>,
}

/// The best validation of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Number of finished epochs at that validation.
    pub epoch: usize,
    /// Value of the selecting metric.
    pub value: f64,
}

/// Record of one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Number of the epoch, from 1.
    pub epoch: usize,
    /// Mean loss of its steps.
    pub loss: f64,
    /// Value of the selecting metric; `None` without validation in this epoch.
    pub validation: Option<f64>,
}

/// Data and models that a model was trained from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// Source of the rows that it was trained on.
    pub sequences: SequencesSource,
    /// Version of `items` that was read.
    pub items_version: u64,
    /// Name of the checkpoint that training continued from.
    pub parent: Option<String>,
    /// Hash of that checkpoint's weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent_hash: Option<String>,
    /// New events that it learned, if it was refreshed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fresh: Option<FreshSource>,
    /// Newest version of `events` that its ancestors have learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited_events: Option<u64>,
    /// Name of the fine-tuned model that gave the initial parameters of the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taught_by: Option<String>,
    /// Instruction examples that it was fine-tuned on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<ExamplesSource>,
    /// The job that trained it; `None` for manual training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<MadeBy>,
    /// Version of the code.
    pub code_version: String,
}

/// Mark of a job on a model that it trains; jobs delete only models that carry their mark under the marked name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeBy {
    /// Name of the job, such as `climber daily`.
    pub job: String,
    /// Name that the job gave the model; under another name it is a user's copy.
    pub model: String,
}

impl Lineage {
    /// Returns the newest version of `events` that the model or an ancestor may have learned; `None` if unknown.
    pub fn learned_events(&self) -> Option<u64> {
        let fresh = self.fresh.as_ref().map(|fresh| &fresh.events_version);
        let own = fresh.into_iter().chain([&self.sequences.events_version]);
        let own = own.map(|version| version.parse().ok()).collect::<Option<Vec<u64>>>()?;
        own.into_iter().chain(self.inherited_events).max()
    }
}

/// A loaded checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// The model, with its parameters.
    pub model: Box<dyn TrainedModel>,
    /// Configuration of the training.
    pub config: Config,
    /// Progress of the training.
    pub state: TrainerState,
    /// Origin of the model.
    pub lineage: Lineage,
    directory: PathBuf,
}

/// Writes a checkpoint to `directory`, replacing an older one.
///
/// # Errors
///
/// A tensor operation, serialization or write fails; an older checkpoint is then still readable.
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
    move_into_place(&temporary, directory)
}

/// Syncs the checkpoint in `temporary` to disk and renames it to `directory`.
fn move_into_place(temporary: &Path, directory: &Path) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(temporary).map_err(io_error(temporary))? {
        let path = entry.map_err(io_error(temporary))?.path();
        File::open(&path).and_then(|file| file.sync_all()).map_err(io_error(&path))?;
    }
    sync_directory(temporary)?;
    rename_over(temporary, directory)
}

/// Moves the checkpoint `from` to `to`, replacing an older one.
///
/// # Errors
///
/// `from` is no directory, or a rename or sync fails.
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

/// Exchanges the names of two directories atomically; returns false if the file system does not support it.
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

/// Removes a checkpoint and the remains of an interrupted write. A partly removed checkpoint no longer has its name.
///
/// # Errors
///
/// A rename or removal fails.
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

/// Checks that `name` is a single plain directory name and does not end as the names that checkpoints use internally.
///
/// # Errors
///
/// The name is invalid; the message states the rule.
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

/// Returns the directory to read the checkpoint `directory` from; `None` if it does not exist.
pub fn find(directory: &Path) -> Option<PathBuf> {
    [directory.to_owned(), sibling(directory, "previous")].into_iter().find(|d| d.is_dir())
}

/// Returns the attributes of the catalogue that the model needs for its items and conditions.
///
/// # Errors
///
/// The checkpoint is missing or cannot be read.
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

/// Returns the configuration and the lineage of a checkpoint, without loading its weights.
///
/// # Errors
///
/// The checkpoint is missing or cannot be read.
pub fn describe(directory: &Path) -> Result<(Config, Lineage), CheckpointError> {
    let directory = require(directory)?;
    Ok((load_config(&directory)?.0, load_json(&directory.join("lineage.json"))?))
}

/// Returns the job that made the model in `directory`; `None` for manual training, or if the lineage cannot be read.
pub fn made_by(directory: &Path) -> Option<MadeBy> {
    #[derive(Deserialize)]
    struct Mark {
        made_by: Option<MadeBy>,
    }
    let lineage = fs::read(find(directory)?.join("lineage.json")).ok()?;
    serde_json::from_slice::<Mark>(&lineage).ok()?.made_by
}

/// Returns a hash of a checkpoint's weights, which distinguishes checkpoints of the same name.
///
/// # Errors
///
/// The checkpoint is missing or cannot be read.
pub fn hash(directory: &Path) -> Result<String, CheckpointError> {
    let path = require(directory)?.join("model.safetensors");
    let hash = File::open(&path).and_then(schemas::hash::hash128_of).map_err(io_error(&path))?;
    Ok(format!("{hash:032x}"))
}

/// Loads a checkpoint for use with `catalogue`, with its model on `backend`, regardless of the device it was trained on.
///
/// # Errors
///
/// The checkpoint is missing, damaged or newer than this program, or belongs to another catalogue.
pub fn load(
    directory: &Path,
    catalogue: &Catalogue,
    backend: &Backend,
) -> Result<Checkpoint, CheckpointError> {
    loop {
        let found = require(directory)?;
        let begun = identity(&found);
        let loaded = load_from(found, catalogue, backend);
        // If the checkpoint was replaced during the read, parts of two checkpoints may be mixed: read again.
        if begun == find(directory).as_deref().and_then(identity) {
            return loaded;
        }
    }
}

/// Returns the identity of a directory, which differs between directories that had the same name.
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
    // Older checkpoints have no counts.
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
    /// Converts the model into a learner with its saved optimiser, on the same device, ready to continue.
    ///
    /// # Errors
    ///
    /// The optimiser's state cannot be read or does not fit the model.
    pub fn into_learner(self) -> Result<Box<dyn Learner>, CheckpointError> {
        let path = self.directory.join("optimizer.safetensors");
        let steps = self.state.inherited_steps + self.state.steps;
        SavedValues::open(&path)
            .and_then(|saved| {
                self.model.into_learner(&self.config.pretrain, Some(SavedLearner { values: &saved, steps }))
            })
            .map_err(|e| damaged(&path, e))
    }

    /// Opens the saved state of the learner, for [`TrainedModel::grown`].
    ///
    /// # Errors
    ///
    /// The state cannot be read.
    pub fn learner_state(&self) -> Result<(SavedValues, u64), CheckpointError> {
        let path = self.directory.join("optimizer.safetensors");
        let values = SavedValues::open(&path).map_err(|e| damaged(&path, e))?;
        Ok((values, self.state.inherited_steps + self.state.steps))
    }

    /// Returns the model as a [`SequenceModel`], which fine-tuning and export need; `what` names the operation in the error.
    ///
    /// # Errors
    ///
    /// The model has another architecture.
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

/// Returns the configuration, and a warning if it was converted from an earlier format.
fn load_config(directory: &Path) -> Result<(Config, Option<String>), CheckpointError> {
    let path = directory.join("config.toml");
    let text = fs::read_to_string(&path).map_err(io_error(&path))?;
    let (config, said) = settings::parse(&path, &text)?;
    kinds::find(&config.model.architecture).map_err(|e| damaged(&path, e))?;
    Ok((config, said))
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
    // safetensors writes a temporary file readable only by its owner; this sets the permissions of an ordinary new file.
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
