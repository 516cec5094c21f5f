//! The kind of models that encode a history and score items by inner products ([`SequenceModel`]); they learn by gradients and
//! Adam.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor};
use ragged::Dropout;
use schemas::config::{Config, Paradigm, Pretrain};

use super::adam::Adam;
use super::{Learner, ModelKind, New, SavedLearner, Taken, TrainedModel, TrainingStep};
use crate::data::as_u32s;
use crate::data::vocabulary::Vocabulary;
use crate::models::{SequenceModel, TouchedRows};
use crate::objectives::{BranchTargets, Objective, Plan};
use crate::serve::{DotProduct, RecommendError, Recommender, Serving};

/// The paper's model (§3.2).
pub(super) const CLIMBER_PILOT: ModelKind = ModelKind { name: "climber-pilot", new };
/// Self-attentive sequential recommendation.
pub(super) const SASREC: ModelKind = ModelKind { name: "sasrec", new };
/// Hierarchical sequential transduction units.
pub(super) const HSTU: ModelKind = ModelKind { name: "hstu", new };

fn new(New { config, vocabulary, values, backend }: New<'_>) -> Result<Box<dyn TrainedModel>> {
    Ok(Box::new(SequenceModel::with_values(&config.model, &config.sft, vocabulary, values, backend)?))
}

impl TrainedModel for SequenceModel {
    fn vocabulary(&self) -> &Arc<Vocabulary> {
        self.vocabulary()
    }

    fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        Ok(self.tensors())
    }

    fn recommender<'a>(
        &'a self,
        serving: Serving<'a>,
    ) -> std::result::Result<Box<dyn Recommender + 'a>, RecommendError> {
        Ok(Box::new(DotProduct::new(self, serving)?))
    }

    fn into_learner(
        self: Box<Self>,
        settings: &Pretrain,
        saved: Option<SavedLearner<'_>>,
    ) -> Result<Box<dyn Learner>> {
        let adam = match saved {
            Some(saved) => Adam::restored(&self, saved, settings.into())?,
            None => Adam::new(&self, settings.into())?,
        };
        Ok(Box::new(GradientLearner { model: *self, adam }))
    }

    fn grown(
        &self,
        config: &Config,
        vocabulary: Arc<Vocabulary>,
        saved: SavedLearner<'_>,
    ) -> Result<Box<dyn Learner>> {
        let model = self.grown(&config.model, &config.sft, vocabulary)?;
        let adam = Adam::restored(self, saved, (&config.pretrain).into())?.grown(&model)?;
        Ok(Box::new(GradientLearner { model, adam }))
    }

    fn paradigm(&self) -> Option<Paradigm> {
        self.paradigm()
    }

    fn sequence_model(&self) -> Option<&SequenceModel> {
        Some(self)
    }
}

/// Model and optimiser.
struct GradientLearner {
    model: SequenceModel,
    adam: Adam,
}

impl Learner for GradientLearner {
    fn model(&self) -> &dyn TrainedModel {
        &self.model
    }

    fn steps(&self) -> u64 {
        self.adam.steps()
    }

    fn step(
        &mut self,
        &TrainingStep { objective, plan, rates, dropout }: &TrainingStep<'_>,
    ) -> Result<Taken> {
        let (gradients, step) = differentiate(objective, &self.model, plan, dropout)?;
        let gradient_norm = self.adam.step(&self.model, &step.touched, &gradients, rates)?;
        Ok(Taken { loss: step.loss.detach(), gradient_norm })
    }

    fn state(&self) -> HashMap<String, Tensor> {
        self.adam.tensors()
    }
}

/// Loss of a step, and the rows it touched.
#[derive(Debug)]
pub struct StepLoss {
    /// `Σ_k` of the mean loss of branch `k`: a scalar.
    pub loss: Tensor,
    /// Rows of the id table that the optimiser writes back.
    pub touched: TouchedRows,
}

/// Computes the loss of a batch as planned for `model`: the sum over branches (Eq. 4), in fine-tuning under conditions plus,
/// weighted, without them (Eq. 6).
///
/// # Errors
///
/// A tensor operation failed, or the batch has no target.
pub fn compute(
    objective: &dyn Objective,
    model: &SequenceModel,
    plan: &Plan,
    dropout: Option<Dropout>,
) -> Result<StepLoss> {
    let vectors = model.item_vectors_of(&plan.rows)?;
    let histories = model.histories(&plan.tokens, &vectors.vectors, dropout);
    let scored = model.candidates(&vectors.vectors)?;
    let candidates = match &plan.candidates {
        None => scored,
        Some(index) => ragged::gather(&scored, as_u32s(index))?,
    };
    let mut total: Option<Tensor> = None;
    let mut add = |hidden: &Tensor, asked: &BranchTargets, weight: f64| -> Result<()> {
        let mean = objective.loss(hidden, &candidates, asked, model.parameters().precision())?;
        let mean = if weight == 1.0 { mean } else { (mean * weight)? };
        total = Some(match total.take() {
            Some(total) => (total + mean)?,
            None => mean,
        });
        Ok(())
    };
    for (k, (of_branch, anchors)) in (1..).zip(plan.branches.iter().zip(&plan.batch.branches)) {
        match (&of_branch.instructed, &anchors.reads) {
            (Some(asked), Some(reads)) => {
                add(&model.read(k, &histories, reads)?, asked, 1.0)?;
                if let Some(asked) = &of_branch.plain {
                    let hidden = model.read_plain(k, &histories, &asked.rows)?;
                    add(&hidden, asked, objective.unconditional_weight())?;
                }
            }
            _ => {
                let Some(asked) = &of_branch.plain else { continue };
                let backbone = model.backbone_of(&histories)?;
                let layout = &plan.tokens.layout;
                add(&model.branch(k, &backbone, layout, &asked.rows, dropout)?, asked, 1.0)?;
            }
        }
    }
    match total {
        Some(loss) => Ok(StepLoss { loss, touched: vectors.touched }),
        None => candle_core::bail!("a batch without targets has no loss"),
    }
}

/// Computes the loss as [`compute`] does, and its gradients.
///
/// # Errors
///
/// A tensor operation failed, or the batch has no target.
pub fn differentiate(
    objective: &dyn Objective,
    model: &SequenceModel,
    plan: &Plan,
    dropout: Option<Dropout>,
) -> Result<(GradStore, StepLoss)> {
    ragged::differentiate(|| {
        let step = compute(objective, model, plan, dropout)?;
        Ok((step.loss.clone(), step))
    })
}
