//! Kinds of models. What trains, judges, serves, keeps and deletes a model knows it as the traits of this file and no more; a kind
//! is a file that implements them and a line in [`KINDS`].
//!
//! ```text
//! ModelKind::new ─► TrainedModel ─ into_learner ─► Learner ─ step … step ─► TrainedModel ─ recommender ─► serve::Recommender
//! ```
//!
//! `sequence.rs` is the kind of all encoders, learned by gradients (`adam.rs`); `co_occurrence.rs` counts.

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

/// A kind of model.
#[derive(Debug, Clone, Copy)]
pub struct ModelKind {
    /// The architecture's name in the configuration.
    pub name: &'static str,
    /// A model of this kind: a new one, or one that was saved.
    pub new: fn(New<'_>) -> Result<Box<dyn TrainedModel>>,
}

/// The kind that `architecture` names.
///
/// # Errors
///
/// There is none; the error names those that there are.
pub fn find(architecture: &Architecture) -> std::result::Result<&'static ModelKind, ConfigError> {
    let name = architecture.name();
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let problem = format!("there is no `{name}`; there are {}", known.join(", "));
        ConfigError::Invalid { key: "model.architecture".into(), problem }
    })
}

/// What a model is made of.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// Its settings: `[model]`, and `[sft]` where the vocabulary has conditions.
    pub config: &'a Config,
    /// Which items and conditions it knows.
    pub vocabulary: Arc<Vocabulary>,
    /// Where its values come from.
    pub values: Values,
    /// Where it computes.
    pub backend: &'a Backend,
}

impl New<'_> {
    /// The model.
    ///
    /// # Errors
    ///
    /// The architecture is of no kind that there is, or a saved value is missing or has another shape.
    pub fn model(self) -> Result<Box<dyn TrainedModel>> {
        let kind = find(&self.config.model.architecture).map_err(candle_core::Error::wrap)?;
        (kind.new)(self)
    }
}

/// A model as everything but its own kind knows it.
pub trait TrainedModel: fmt::Debug + Send + Sync {
    /// Which items and conditions it knows.
    fn vocabulary(&self) -> &Arc<Vocabulary>;

    /// All that a checkpoint keeps of its values, by name.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    fn tensors(&self) -> Result<HashMap<String, Tensor>>;

    /// The model, ready to be asked.
    ///
    /// # Errors
    ///
    /// Its values are not finite, or it cannot serve in the way that is asked for.
    fn recommender<'a>(
        &'a self,
        serving: Serving<'a>,
    ) -> std::result::Result<Box<dyn Recommender + 'a>, RecommendError>;

    /// The model, ready to learn: with the state that was saved with it, or a new one.
    ///
    /// # Errors
    ///
    /// The saved state does not fit the model.
    fn into_learner(
        self: Box<Self>,
        settings: &Pretrain,
        saved: Option<SavedLearner<'_>>,
    ) -> Result<Box<dyn Learner>>;

    /// A copy of the model that goes on learning, with rows for what `vocabulary` has more than its own, of which it is a
    /// [grown](Vocabulary::grown) one.
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

    /// How instructions enter the model; `None` where it follows none.
    fn paradigm(&self) -> Option<Paradigm> {
        None
    }

    /// The model as one of histories and item vectors, which alone can be fine-tuned and exported as a graph; `None` for other
    /// kinds.
    fn sequence_model(&self) -> Option<&SequenceModel> {
        None
    }
}

/// What was saved of a [`Learner`] besides the values of its model.
#[derive(Debug, Clone, Copy)]
pub struct SavedLearner<'a> {
    /// Its [state](Learner::state).
    pub values: &'a SavedValues,
    /// The steps that it had taken.
    pub steps: u64,
}

/// A model that learns.
pub trait Learner: Send {
    /// The model as it is now.
    fn model(&self) -> &dyn TrainedModel;

    /// Steps that it and its ancestors have taken.
    fn steps(&self) -> u64;

    /// One step.
    ///
    /// # Errors
    ///
    /// A tensor operation failed, or a gradient is not finite.
    fn step(&mut self, step: &TrainingStep<'_>) -> Result<Taken>;

    /// What it needs besides the model's values to go on, by name.
    fn state(&self) -> HashMap<String, Tensor>;
}

/// What a step is to do.
#[derive(Debug, Clone, Copy)]
pub struct TrainingStep<'a> {
    /// What it minimises.
    pub objective: &'a dyn Objective,
    /// What it computes.
    pub plan: &'a Plan,
    /// How far it goes.
    pub rates: LearningRates,
    /// What it drops.
    pub dropout: Option<Dropout>,
}

/// A step that was taken, whose numbers may still be on their way.
#[derive(Debug)]
pub struct Taken {
    /// The loss: a scalar.
    pub loss: Tensor,
    /// The gradient's norm before clipping.
    pub gradient_norm: GradientNorm,
}
