//! `[refresh]`: how a pre-trained model goes on learning.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Pretrain, Schedule, invalid};

/// `[refresh]`: what a model learns from new events. What is not here (architecture, loss, negatives, weight decay, clipping,
/// selection) is as the model was pre-trained, whatever `[model]` and `[pretrain]` say now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refresh {
    /// Passes over the new targets and those that are repeated, at most.
    pub epochs: usize,
    /// Rows in one step.
    pub batch_size: usize,
    /// Adam's step size; its moments are those of the model.
    pub learning_rate: f64,
    /// Old targets that are repeated, against forgetting, for each new one.
    pub replay: f64,
    /// Held-out targets that validation asks, about: whole users of `sequences` are drawn by lot until they hold out so many. A small
    /// table is asked as a whole.
    pub validation_targets: usize,
    /// Epochs between two looks at the validation targets.
    pub validate_every: usize,
    /// Looks at the validation targets without improvement before training stops.
    pub patience: usize,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            epochs: 3,
            batch_size: 256,
            learning_rate: 2e-4,
            replay: 1.0,
            validation_targets: 10_000,
            validate_every: 1,
            patience: 1,
        }
    }
}

impl Refresh {
    /// `pretrain` with what this section replaces.
    pub fn training(&self, pretrain: &Pretrain) -> Pretrain {
        Pretrain {
            epochs: self.epochs,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            // The moments are there, and the course of the rate is not to depend on how many events came.
            warmup_steps: 0,
            schedule: Schedule::Constant,
            validate_every: self.validate_every,
            patience: self.patience,
            ..pretrain.clone()
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("validation_targets", self.validation_targets),
            ("validate_every", self.validate_every),
            ("patience", self.patience),
        ] {
            if value == 0 {
                return invalid(format!("refresh.{key}"), "must be at least 1");
            }
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return invalid("refresh.learning_rate", "must be positive");
        }
        if !(self.replay >= 0.0 && self.replay.is_finite()) {
            return invalid("refresh.replay", "must not be negative");
        }
        Ok(())
    }
}
