//! Kinds of models. Training, evaluation, serving and checkpoints use models only through the traits of this file; a new kind is
//! a file that implements them and an entry in [`KINDS`].
//!
//! ```text
//! ModelKind::new ─► TrainedModel ─ into_learner ─► Learner ─ step … step ─► TrainedModel ─ recommender ─► serve::Recommender
//! ```
//!
//! `sequence.rs` is the kind of all encoders, which learn by gradients (`adam.rs`); `co_occurrence.rs` counts pairs of items.

mod adam;
mod co_occurrence;
mod sequence;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::Dropout;
use ragged::adam::GradientNorm;
use schemas::config::{Architecture, Config, ConfigError, Paradigm, Pretrain};

use crate::data::vocabulary::Vocabulary;
use crate::device::Backend;
use crate::models::{SavedValues, SequenceModel, Values};
use crate::objectives::{Objective, Plan};
use crate::serve::{RecommendError, Recommender, Serving};

pub use adam::{Adam, AdamSettings, LearningRates};
pub use sequence::{StepLoss, compute, differentiate};

/// Every kind that `[model] architecture` can name.
pub const KINDS: &[ModelKind] =
    &[sequence::CLIMBER_PILOT, sequence::SASREC, sequence::HSTU, co_occurrence::KIND];

/// Name and constructor of a kind of models.
#[derive(Debug, Clone, Copy)]
pub struct ModelKind {
    /// Name of the architecture in the configuration.
    pub name: &'static str,
    /// Creates a model of this kind, new or from saved values.
    pub new: fn(New<'_>) -> Result<Box<dyn TrainedModel>>,
}

/// Returns the kind that `architecture` names.
///
/// # Errors
///
/// No kind has this name; the error lists those that exist.
pub fn find(architecture: &Architecture) -> std::result::Result<&'static ModelKind, ConfigError> {
    let name = architecture.name();
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let problem = format!("there is no `{name}`; there are {}", known.join(", "));
        ConfigError::Invalid { key: "model.architecture".into(), problem }
    })
}

/// Arguments from which a model is created.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// Settings of the model: `[model]`, and `[sft]` if the vocabulary has conditions.
    pub config: &'a Config,
    /// Items and conditions that the model knows.
    pub vocabulary: Arc<Vocabulary>,
    /// Initial or saved values.
    pub values: Values,
    /// Device and precision.
    pub backend: &'a Backend,
}

impl New<'_> {
    /// Creates the model.
    ///
    /// # Errors
    ///
    /// No kind has the architecture's name, or a saved value is missing or has another shape.
    pub fn model(self) -> Result<Box<dyn TrainedModel>> {
        let kind = find(&self.config.model.architecture).map_err(candle_core::Error::wrap)?;
        (kind.new)(self)
    }
}

/// A trained model, independent of its kind.
pub trait TrainedModel: fmt::Debug + Send + Sync {
    /// Returns the items and conditions that the model knows.
    fn vocabulary(&self) -> &Arc<Vocabulary>;

    /// Returns all values that a checkpoint stores, by name.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    fn tensors(&self) -> Result<HashMap<String, Tensor>>;

    /// Prepares the model for serving.
    ///
    /// # Errors
    ///
    /// The values are not finite, or the model does not support what `serving` asks for.
    fn recommender<'a>(
        &'a self,
        serving: Serving<'a>,
    ) -> std::result::Result<Box<dyn Recommender + 'a>, RecommendError>;

    /// Turns the model into a learner, with the state that was saved with it or a new one.
    ///
    /// # Errors
    ///
    /// The saved state does not fit the model.
    fn into_learner(
        self: Box<Self>,
        settings: &Pretrain,
        saved: Option<SavedLearner<'_>>,
    ) -> Result<Box<dyn Learner>>;

    /// Returns a learner with a copy of the model, extended by rows for what `vocabulary`, a [grown](Vocabulary::grown) version
    /// of its own, adds.
    ///
    /// # Errors
    ///
    /// The saved state does not fit the model, or a tensor operation failed.
    fn grown(
        &self,
        config: &Config,
        vocabulary: Arc<Vocabulary>,
        saved: SavedLearner<'_>,
    ) -> Result<Box<dyn Learner>>;

    /// Returns the paradigm of the model's instructions; `None` if it follows none.
    fn paradigm(&self) -> Option<Paradigm> {
        None
    }

    /// Returns the model if it is one of histories and item vectors, the only kind that can be fine-tuned or exported
    /// as a graph; `None` for other kinds.
    fn sequence_model(&self) -> Option<&SequenceModel> {
        None
    }
}

/// Saved state of a [`Learner`], besides the values of its model.
#[derive(Debug, Clone, Copy)]
pub struct SavedLearner<'a> {
    /// Tensors of [`Learner::state`].
    pub values: &'a SavedValues,
    /// Number of steps taken before saving.
    pub steps: u64,
}

/// A model in training.
pub trait Learner: Send {
    /// Returns the model in its current state.
    fn model(&self) -> &dyn TrainedModel;

    /// Returns the number of steps taken by it and its ancestors.
    fn steps(&self) -> u64;

    /// Takes one step.
    ///
    /// # Errors
    ///
    /// A tensor operation failed, or a gradient is not finite.
    fn step(&mut self, step: &TrainingStep<'_>) -> Result<Taken>;

    /// Returns the tensors needed to continue, besides the model's values, by name.
    fn state(&self) -> HashMap<String, Tensor>;
}

/// Inputs of a training step.
#[derive(Debug, Clone, Copy)]
pub struct TrainingStep<'a> {
    /// Loss to minimise.
    pub objective: &'a dyn Objective,
    /// Plan that the objective made for the step.
    pub plan: &'a Plan,
    /// Learning rates.
    pub rates: LearningRates,
    /// Dropout; `None` keeps everything.
    pub dropout: Option<Dropout>,
}

/// Result of a step, which the device may still be computing.
#[derive(Debug)]
pub struct Taken {
    /// Loss, a scalar.
    pub loss: Tensor,
    /// Norm of the gradient before clipping.
    pub gradient_norm: GradientNorm,
}
