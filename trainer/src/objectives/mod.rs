//! Losses: which items compete with each target, and what the states of the targets' rows cost. An [`Objective`] knows negatives
//! and corrections, not layers.
//!
//! The loss of TAMIP (Eq. 3 and 4) and of fine-tuning (Eq. 6) is the sum over branches of the mean softmax cross-entropy of their
//! targets; in fine-tuning of what is read under a condition, and, against forgetting, without one. `full.rs` is the softmax over
//! the whole catalogue, `sampled.rs` that over negatives shared by a step.
//!
//! `plan.rs` is what a step computes, made beside the step before; `draws.rs` says how likely an item is in a batch, for `−log Q`.

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

/// What a step minimises.
pub trait Objective: fmt::Debug + Send + Sync {
    /// What a step on `batch` is to compute, of a model with this vocabulary; `step` seeds what is random. It knows no values: it
    /// can be made while the steps before are still going on.
    fn plan(&self, vocabulary: &Vocabulary, batch: TrainingBatch, step: u64) -> Plan;

    /// The mean loss of what is `asked`: a scalar. `hidden` `[rows, d]` are the states of its rows, `candidates` `[candidates, d]`
    /// the vectors that the plan names.
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

    /// The weight of the loss without instructions beside that with them (Eq. 6).
    fn unconditional_weight(&self) -> f64;
}

/// The objective that `config` names, for batches of the units that `draws` was made of. With `unconditional_weight`, what is read
/// under a condition is read without one too.
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
