//! `[refresh]`: further training of a pre-trained model.

use serde::{Deserialize, Serialize};

use super::{ConfigError, Pretrain, Schedule, invalid};

/// `[refresh]`: training on new events. Everything else (architecture, loss, negatives, weight decay, clipping, selection) is as
/// in the model's pre-training, whatever `[model]` and `[pretrain]` say now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refresh {
    /// Most passes over the new and the replayed targets.
    pub epochs: usize,
    /// Rows per step.
    pub batch_size: usize,
    /// Adam's learning rate; its moments continue from the model's.
    pub learning_rate: f64,
    /// Replayed old targets per new one, against forgetting.
    pub replay: f64,
    /// Approximate number of held-out targets for validation, drawn as whole users of `sequences` at random. A small table is
    /// used whole.
    pub validation_targets: usize,
    /// Epochs between two validations.
    pub validate_every: usize,
    /// Validations without improvement after which training stops.
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
    /// Returns `pretrain` with the settings that this section replaces.
    pub fn training(&self, pretrain: &Pretrain) -> Pretrain {
        Pretrain {
            epochs: self.epochs,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            // Moments exist already, and the rate must not depend on the number of new events.
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
