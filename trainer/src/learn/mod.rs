//! Training: what pre-training (`trainer pretrain`), going on with it (`trainer refresh`) and fine-tuning (`trainer sft`) share,
//! and each by itself.
//!
//! `training_loop.rs` holds the loop: steps, schedule, order, validation, selection, resuming. It knows a model as a [`Learner`]. A
//! [`Task`] says what is learned from which rows: `pretrain.rs`, `refresh.rs` (new rows and old ones again), `sft.rs` (instruction
//! examples, §3.3, and what they make the model forget).
//!
//! A run keeps two checkpoints below `models/.training/<name>/`: `latest`, from which it resumes after an
//! interruption, and `best`, the one validation selected. At the end `best` becomes `models/<name>`; until then
//! whatever is published under that name stays. The run's records ([`crate::records`]) grow beside the two and are
//! published with `best`.
//!
//! `marks.rs` marks what a job trains.

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

/// What is learned, and from what.
trait Task: Sync {
    /// How the loop runs, and the loss.
    fn settings(&self) -> &Pretrain;

    /// How many times larger the learning rate of the conditions' parameters is.
    fn condition_rate(&self) -> f64 {
        1.0
    }

    /// What an epoch visits, and what one of it is called: rows of `sequences`, or histories.
    fn units(&self) -> (&[u32], &'static str);

    /// The batch of some of them.
    fn batch(&self, units: &[u32]) -> TrainingBatch;

    /// What is minimised.
    fn objective(&self) -> &dyn Objective;

    /// The model before the first step.
    fn begin(&self) -> Result<Box<dyn Learner>, TrainError>;

    /// What validation says of `model`, called `name`; nothing where nothing is held out.
    fn validate(&self, name: &str, model: &dyn TrainedModel) -> Result<Vec<Metrics>, TrainError>;

    /// What the run of a checkpoint was started with, where that differs from this one.
    fn difference(&self, checkpoint: &Checkpoint) -> Option<String>;
}

/// A training run that failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The model's name cannot be used.
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
    /// A tensor operation failed.
    #[error("training failed at step {step}")]
    Step {
        /// Steps finished before.
        step: u64,
        /// Why.
        source: candle_core::Error,
    },
    /// The tables hold nothing to learn.
    #[error(
        "`sequences` holds no pre-training target{hint}; check sequences.split, sequences.sft_share and \
         pretrain.loss_without_history"
    )]
    NoTargets {
        /// What there is instead.
        hint: String,
    },
    /// The selecting number has nothing to count.
    #[error(
        "none of the {targets} validation targets takes part under the protocol {protocol}; \
         choose another pretrain.select_by"
    )]
    NoValidation {
        /// The protocol.
        protocol: &'static str,
        /// Validation targets in all.
        targets: usize,
    },
    /// The parent follows instructions already.
    #[error("`{parent}` was fine-tuned before; start from the model that it came from{from}")]
    Taught {
        /// The parent.
        parent: String,
        /// Its own parent.
        from: String,
    },
    /// `sequences` knows more than `refresh`.
    #[error(
        "table `refresh` was built from version {refresh} of `events`, and `sequences` from version {sequences}: what is held \
         out in one may be learned in the other; run `pipeline build-sequences --since {since}` again"
    )]
    OldRefresh {
        /// Version of `events` behind `refresh`.
        refresh: String,
        /// That behind `sequences`.
        sequences: String,
        /// After which version an event is new.
        since: String,
    },
    /// Events between the parent and `refresh`.
    #[error(
        "`{parent}` has learned of `events` up to version {learned}, and table `refresh` begins after version {since}: what \
         came between would never be learned; run `pipeline build-sequences --since {learned}`"
    )]
    Gap {
        /// The parent.
        parent: String,
        /// What it knows.
        learned: u64,
        /// After which version an event is new.
        since: u64,
    },
    /// Nothing is new.
    #[error(
        "table `refresh` (version {version}) holds no pre-training target that came after version {since} of `events`: there is \
         nothing to learn"
    )]
    NothingNew {
        /// The table's version.
        version: u64,
        /// After which version of `events` an event is new.
        since: String,
    },
    /// The tables hold no example.
    #[error("the tables of {conditions} hold no example to learn; `pipeline build-sft` reports why")]
    NoExamples {
        /// The conditions.
        conditions: String,
    },
    /// Targets that may have been pre-trained on.
    #[error(
        "table {table} was built with settings of [sequences] (hash {settings}) other than the rows that `{parent}` was \
         pre-trained on (hash {rows}): what one of them holds back, the other may have learned; build all from the same \
         configuration"
    )]
    OtherSplit {
        /// The table.
        table: String,
        /// Its settings.
        settings: String,
        /// The parent.
        parent: String,
        /// Its rows' settings.
        rows: String,
    },
    /// Examples of another definition of a derived condition.
    #[error(
        "table {table} was built for items of the ages {examples}, and conditions.derived has {configured}; run `pipeline \
         build-sft` again"
    )]
    OtherAge {
        /// The table.
        table: String,
        /// Its range of ages.
        examples: String,
        /// The configured one.
        configured: String,
    },
    /// Examples of another log than the rows that validation asks.
    #[error(
        "table {table} was built from version {examples} of `events`, and `sequences` from version {sequences}: what is \
         held out in one may be learned in the other; run `pipeline build-sequences` and `pipeline build-sft` again"
    )]
    OtherEvents {
        /// The table.
        table: String,
        /// Its version of `events`.
        examples: String,
        /// That of `sequences`.
        sequences: String,
    },
    /// An unfinished run of this name was started differently.
    #[error(
        "{path} holds an unfinished training of `{name}` that was started with {difference}; \
         finish it with the same settings, or discard it with --fresh"
    )]
    OtherRun {
        /// The model.
        name: String,
        /// Where the run stands.
        path: PathBuf,
        /// The first difference.
        difference: String,
    },
}

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct TrainOptions<'a> {
    /// The model's name.
    pub name: &'a str,
    /// Discard what an earlier run left.
    pub fresh: bool,
    /// Stops after the current step, with a checkpoint.
    pub interrupt: &'a Interrupt,
    /// Stop after this many steps of this run, as if interrupted.
    pub stop_after: Option<u64>,
    /// The job that trains; none for a person.
    pub job: Option<&'a str>,
}

impl TrainOptions<'_> {
    fn made_by(&self) -> Option<MadeBy> {
        self.job.map(|job| MadeBy { job: job.into(), model: self.name.into() })
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainOutcome {
    /// The model.
    pub model: String,
    /// `trained`, `unchanged` (it was trained on just this before) or `interrupted`.
    pub status: Status,
    /// Steps taken, earlier parts of a resumed run included.
    pub steps: u64,
    /// The selected epoch and its validation.
    pub best: Option<Best>,
    /// One record an epoch.
    pub epochs: Vec<EpochRecord>,
    /// Targets learned in this run, over all epochs and branches.
    pub targets: u64,
    /// Seconds of this run.
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
    /// The model is there.
    Trained,
    /// It was there already, from the same tables and configuration.
    Unchanged,
    /// It can be resumed.
    Interrupted,
}

/// The protocol and the metric that select the model.
fn selector(selection: Selection) -> (Protocol, Key) {
    match selection {
        Selection::HrStandard => (Protocol::Standard, HR_10),
        Selection::HrAsServed => (Protocol::AsServed, HR_10),
        Selection::NdcgStandard => (Protocol::Standard, NDCG_10),
        Selection::NdcgAsServed => (Protocol::AsServed, NDCG_10),
    }
}
