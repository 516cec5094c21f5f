//! Losses: which items compete with each target, and the loss of the targets' hidden states. An [`Objective`] handles negatives
//! and corrections, and is independent of the layers.
//!
//! The loss of TAMIP (Eq. 3 and 4) and of fine-tuning (Eq. 6) is the sum over branches of the mean softmax cross-entropy of their
//! targets. Fine-tuning computes it under each target's condition and, against forgetting, without one. `full.rs` takes the
//! softmax over the whole catalogue, `sampled.rs` over negatives that a step's targets share.
//!
//! `plan.rs` prepares a step while earlier steps run; `draws.rs` gives the chance that a batch contains an item, for `−log Q`.

mod draws;
mod full;
mod plan;
mod sampled;
#[cfg(test)]
mod tests;

use std::fmt;

use candle_core::{Result, Tensor};
use schemas::config::{Loss, Precision, Pretrain};

use crate::batch::TrainingBatch;
use crate::data::vocabulary::Vocabulary;

pub use draws::Draws;
pub use full::FullSoftmax;
pub use plan::{BranchTargets, Plan};
pub use sampled::SampledSoftmax;

/// The loss that training steps minimise.
pub trait Objective: fmt::Debug + Send + Sync {
    /// Plans a step on `batch` for a model with this vocabulary; `step` seeds the random draws. The plan is independent of the
    /// parameters' values, so it can be made while earlier steps run.
    fn plan(&self, vocabulary: &Vocabulary, batch: TrainingBatch, step: u64) -> Plan;

    /// Returns the mean loss of the targets `asked`, a scalar, from the hidden states `[rows, d]` of its rows and the vectors
    /// `candidates` `[candidates, d]` of the plan.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    fn loss(
        &self,
        hidden: &Tensor,
        candidates: &Tensor,
        asked: &BranchTargets,
        precision: Precision,
    ) -> Result<Tensor>;

    /// Returns the weight of the loss without instructions relative to the loss with them (Eq. 6).
    fn unconditional_weight(&self) -> f64;
}

/// Creates the objective that `config` selects. `draws` counts the units that batches are drawn from. If `unconditional_weight`
/// is positive, targets under a condition are also predicted without one.
pub fn objective(
    config: &Pretrain,
    draws: Draws,
    seed: u64,
    unconditional_weight: f64,
) -> Box<dyn Objective> {
    match config.loss {
        Loss::Full => {
            let label_smoothing = config.label_smoothing;
            Box::new(FullSoftmax { items: draws.items(), label_smoothing, unconditional_weight })
        }
        Loss::Sampled => {
            Box::new(SampledSoftmax { config: config.clone(), draws, unconditional_weight, seed })
        }
    }
}
