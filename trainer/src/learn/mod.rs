//! Training: pre-training (`trainer pretrain`), refreshing (`trainer refresh`) and fine-tuning (`trainer sft`).
//!
//! `training_loop.rs` holds the loop that they share: steps, schedule, order, validation, selection, resuming. It uses models
//! through [`Learner`]. A [`Task`] defines the targets and the rows they come from: `pretrain.rs`, `refresh.rs` (new rows and
//! replayed old ones), `sft.rs` (instruction examples, §3.3, and how much the model forgets).
//!
//! A run keeps two checkpoints below `models/.training/<name>/`: `latest`, from which it resumes after an interruption, and
//! `best`, which validation selected. At the end `best` becomes `models/<name>`; until then the model of that name
//! stays. The run's records ([`crate::records`]) grow beside the two and are moved with `best`.
//!
//! `parent.rs` loads the model that training starts from; `marks.rs` records which job began a training.

pub mod marks;
mod parent;
pub mod pretrain;
pub mod refresh;
pub mod sft;
mod training_loop;

use std::fmt;
use std::path::PathBuf;

use schemas::config::{ConfigError, Pretrain, Selection};
use serde::Serialize;
use terminal::Interrupt;

use crate::batch::TrainingBatch;
use crate::checkpoint::{Best, Checkpoint, CheckpointError, EpochRecord, MadeBy};
use crate::data::DataError;
use crate::device::DeviceError;
use crate::judge::{EvaluateError, HR_10, Key, Metrics, NDCG_10, Protocol};
use crate::kinds::{Learner, TrainedModel};
use crate::objectives::Objective;
use crate::records::RecordsError;

/// The targets to learn, the rows they come from, and their validation.
trait Task: Sync {
    /// Returns the settings of the loop and of the loss.
    fn settings(&self) -> &Pretrain;

    /// Returns the learning rate of the instruction parameters as a multiple of the others'.
    fn condition_rate(&self) -> f64 {
        1.0
    }

    /// Returns the units that an epoch visits, and their name: rows of `sequences`, or histories.
    fn units(&self) -> (&[u32], &'static str);

    /// Builds the batch of `units`.
    fn batch(&self, units: &[u32]) -> TrainingBatch;

    /// Returns the loss to minimise.
    fn objective(&self) -> &dyn Objective;

    /// Returns the model before the first step.
    fn begin(&self) -> Result<Box<dyn Learner>, TrainError>;

    /// Validates `model`, called `name`; empty if nothing is held out.
    fn validate(&self, name: &str, model: &dyn TrainedModel) -> Result<Vec<Metrics>, TrainError>;

    /// Returns the first setting of the task in which the run of `checkpoint` differs from this one, if any.
    fn difference(&self, checkpoint: &Checkpoint) -> Option<String>;
}

/// A training run that failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration or the model's name is invalid.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A checkpoint cannot be written or used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The run's records cannot be written.
    #[error("the records of the run cannot be written")]
    RunRecords(#[from] RecordsError),
    /// Validation failed.
    #[error(transparent)]
    Evaluate(#[from] EvaluateError),
    /// A tensor operation failed, or a gradient was not finite.
    #[error("training failed at step {step}")]
    Step {
        /// Number of steps finished before.
        step: u64,
        /// Cause.
        source: candle_core::Error,
    },
    /// The tables hold no target to learn.
    #[error(
        "`sequences` holds no pre-training target{hint}; check sequences.split, sequences.sft_share and \
         pretrain.loss_without_history"
    )]
    NoTargets {
        /// Counts of what they hold instead.
        hint: String,
    },
    /// The metric that selects the model has no targets.
    #[error(
        "none of the {targets} validation targets takes part under the protocol {protocol}; \
         choose another pretrain.select_by"
    )]
    NoValidation {
        /// Protocol of the metric.
        protocol: &'static str,
        /// Number of validation targets, excluded ones included.
        targets: usize,
    },
    /// The parent already follows instructions.
    #[error("`{parent}` was fine-tuned before; start from the model that it came from{from}")]
    Taught {
        /// Name of the parent.
        parent: String,
        /// Name of the parent's own parent.
        from: String,
    },
    /// `sequences` was built from newer events than `refresh`.
    #[error(
        "table `refresh` was built from version {refresh} of `events`, and `sequences` from version {sequences}: what is held \
         out in one may be learned in the other; run `pipeline build-sequences --since {since}` again"
    )]
    OldRefresh {
        /// Version of `events` that `refresh` was built from.
        refresh: String,
        /// Version of `events` that `sequences` was built from.
        sequences: String,
        /// Version of `events` after which an event is new.
        since: String,
    },
    /// Events between those of the parent and those of `refresh` are missing.
    #[error(
        "`{parent}` has learned of `events` up to version {learned}, and table `refresh` begins after version {since}: what \
         came between would never be learned; run `pipeline build-sequences --since {learned}`"
    )]
    Gap {
        /// Name of the parent.
        parent: String,
        /// Newest version of `events` that it has learned.
        learned: u64,
        /// Version of `events` after which an event is new.
        since: u64,
    },
    /// No event is new.
    #[error(
        "table `refresh` (version {version}) holds no pre-training target that came after version {since} of `events`: there is \
         nothing to learn"
    )]
    NothingNew {
        /// Version of `refresh`.
        version: u64,
        /// Version of `events` after which an event is new.
        since: String,
    },
    /// The tables hold no example.
    #[error("the tables of {conditions} hold no example to learn; `pipeline build-sft` reports why")]
    NoExamples {
        /// Names of the conditions.
        conditions: String,
    },
    /// A table splits events otherwise than the parent's rows, so that its targets may have been pre-trained on.
    #[error(
        "table {table} was built with settings of [sequences] (hash {settings}) other than the rows that `{parent}` was \
         pre-trained on (hash {rows}): what one of them holds back, the other may have learned; build all from the same \
         configuration"
    )]
    OtherSplit {
        /// Name of the table.
        table: String,
        /// Hash of its settings.
        settings: String,
        /// Name of the parent.
        parent: String,
        /// Hash of the settings of its rows.
        rows: String,
    },
    /// The examples use another definition of a derived condition.
    #[error(
        "table {table} was built for items of the ages {examples}, and conditions.derived has {configured}; run `pipeline \
         build-sft` again"
    )]
    OtherAge {
        /// Name of the table.
        table: String,
        /// Its range of ages.
        examples: String,
        /// The configured range of ages.
        configured: String,
    },
    /// The examples and the rows of validation come from different versions of `events`.
    #[error(
        "table {table} was built from version {examples} of `events`, and `sequences` from version {sequences}: what is \
         held out in one may be learned in the other; run `pipeline build-sequences` and `pipeline build-sft` again"
    )]
    OtherEvents {
        /// Name of the table.
        table: String,
        /// Its version of `events`.
        examples: String,
        /// Version of `events` that `sequences` was built from.
        sequences: String,
    },
    /// An unfinished run of this name has other settings.
    #[error(
        "{path} holds an unfinished training of `{name}` that was started with {difference}; \
         finish it with the same settings, or discard it with --fresh"
    )]
    OtherRun {
        /// Name of the model.
        name: String,
        /// Directory of the unfinished run.
        path: PathBuf,
        /// First difference.
        difference: String,
    },
}

/// Options of a training run.
#[derive(Debug, Clone, Copy)]
pub struct TrainOptions<'a> {
    /// Name of the model.
    pub name: &'a str,
    /// Discards what an earlier run left.
    pub fresh: bool,
    /// Stops the run after the current step, with a checkpoint.
    pub interrupt: &'a Interrupt,
    /// Stops the run after this many of its own steps, as if interrupted.
    pub stop_after: Option<u64>,
    /// Job that trains; `None` if a person started the run.
    pub job: Option<&'a str>,
}

impl TrainOptions<'_> {
    fn made_by(&self) -> Option<MadeBy> {
        self.job.map(|job| MadeBy { job: job.into(), model: self.name.into() })
    }
}

/// Outcome of a training run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainOutcome {
    /// Name of the model.
    pub model: String,
    /// How the run ended.
    pub status: Status,
    /// Number of steps taken, earlier parts of a resumed run included.
    pub steps: u64,
    /// Selected epoch and its validation.
    pub best: Option<Best>,
    /// One record per epoch.
    pub epochs: Vec<EpochRecord>,
    /// Number of targets learned in this run, over all epochs and branches.
    pub targets: u64,
    /// Duration of this run in seconds.
    pub seconds: f64,
}

impl fmt::Display for TrainOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.model;
        match self.status {
            Status::Trained => {
                match &self.best {
                    Some(best) => {
                        write!(f, "model `{name}`: epoch {} (validation {:.4})", best.epoch, best.value)?
                    }
                    None => write!(f, "model `{name}`: the last epoch")?,
                }
                let rate = self.targets as f64 / self.seconds.max(1e-9);
                write!(
                    f,
                    ", {} steps; {} targets in {:.1} s, {rate:.0} targets/s",
                    self.steps, self.targets, self.seconds
                )
            }
            Status::Unchanged => write!(
                f,
                "model `{name}` was trained on these tables with these settings before: unchanged \
                 (--fresh trains again)"
            ),
            Status::Interrupted => {
                write!(
                    f,
                    "interrupted after step {}; the same command resumes there (without --fresh)",
                    self.steps
                )
            }
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// The model is in its place.
    Trained,
    /// The model was made before, from the same tables and configuration.
    Unchanged,
    /// The run can be resumed.
    Interrupted,
}

/// Returns the protocol and the metric that select the model.
fn selector(selection: Selection) -> (Protocol, Key) {
    match selection {
        Selection::HrStandard => (Protocol::Standard, HR_10),
        Selection::HrAsServed => (Protocol::AsServed, HR_10),
        Selection::NdcgStandard => (Protocol::Standard, NDCG_10),
        Selection::NdcgAsServed => (Protocol::AsServed, NDCG_10),
    }
}
