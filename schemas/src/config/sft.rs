//! `[sft]`: fine-tuning of a pre-trained model to follow instructions.

use serde::{Deserialize, Serialize};

use super::{
    Architecture, Conditions, ConfigError, Items, MaskMode, Model, Pretrain, Schedule, conditions, invalid,
};

/// `[sft]`: supervised fine-tuning (§3.3). Everything else (architecture, loss, negatives, weight decay, clipping, selection) is
/// as in the model's pre-training, whatever `[model]` and `[pretrain]` say now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sft {
    /// Conditions to follow: catalogue attributes and derived conditions, each with a table `sft/<condition>`.
    pub conditions: Vec<String>,
    /// How an instruction enters the model.
    pub paradigm: Paradigm,
    /// `cgsa`: whether a learned embedding of the condition is added to a branch's query. Without it only the mask carries the
    /// condition, and a user without matching history gets no sign of it.
    pub condition_embedding: bool,
    /// Most passes over the examples.
    pub epochs: usize,
    /// Approximate number of examples to train on, drawn as whole users at random, differently for each parent model; 0 uses all.
    /// Small tables are used whole.
    pub examples: usize,
    /// Histories per step, each with all its examples.
    pub batch_size: usize,
    /// Adam's learning rate of the pre-trained parameters.
    pub learning_rate: f64,
    /// Adam's learning rate of the condition parameters. Larger, because they start at zero.
    pub condition_learning_rate: f64,
    /// Steps over which the learning rates rise linearly from 0.
    pub warmup_steps: usize,
    /// Course of the learning rates after the warm-up.
    pub schedule: Schedule,
    /// Label smoothing towards the uniform distribution; only with `loss = "full"`. Works against compliance: items without the
    /// condition keep a share.
    pub label_smoothing: f64,
    /// Weight of an additional loss on the same examples without their conditions, against forgetting.
    pub unconditional_weight: f64,
    /// Epochs between two validations.
    pub validate_every: usize,
    /// Validations without improvement after which training stops.
    pub patience: usize,
}

impl Default for Sft {
    fn default() -> Self {
        Self {
            conditions: Vec::new(),
            paradigm: Paradigm::Cgsa,
            condition_embedding: true,
            epochs: 10,
            examples: 0,
            batch_size: 256,
            learning_rate: 1e-5,
            condition_learning_rate: 5e-4,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            label_smoothing: 0.0,
            unconditional_weight: 0.0,
            validate_every: 1,
            patience: 3,
        }
    }
}

/// Paradigms of conditional generation that the paper compares (Table 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paradigm {
    /// Condition-guided sparse attention (§3.3.2): branches attend to matching items only (Eq. 5).
    Cgsa,
    /// An embedding of the condition is added to the query of a branch, which attends to everything (as in PinRec).
    Pinrec,
    /// The condition is a token after the visible history, and its output is read (as in LUM).
    Lum,
    /// The condition shifts, scales and gates the branch layers (AdaLN-Zero, from diffusion transformers).
    AdalnZero,
    /// No condition: the same examples, for comparison.
    Unconditional,
}

impl Paradigm {
    /// Every paradigm, in the order of the printed tables.
    pub const ALL: [Self; 5] = [Self::Unconditional, Self::Pinrec, Self::Lum, Self::AdalnZero, Self::Cgsa];

    /// Returns the name as configured and printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cgsa => "cgsa",
            Self::Pinrec => "pinrec",
            Self::Lum => "lum",
            Self::AdalnZero => "adaln-zero",
            Self::Unconditional => "unconditional",
        }
    }
}

impl Sft {
    /// Returns `pretrain` with the settings that this section replaces.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] if the two do not go together.
    pub fn training(&self, pretrain: &Pretrain) -> Result<Pretrain, ConfigError> {
        let training = Pretrain {
            epochs: self.epochs,
            batch_size: self.batch_size,
            learning_rate: self.learning_rate,
            warmup_steps: self.warmup_steps,
            schedule: self.schedule,
            label_smoothing: self.label_smoothing,
            validate_every: self.validate_every,
            patience: self.patience,
            ..pretrain.clone()
        };
        training.validate().map(|()| training)
    }

    /// Refuses a pre-trained model that cannot follow instructions.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`]: the architecture has no branches, or the mask is `row`.
    pub fn check_parent(&self, model: &Model) -> Result<(), ConfigError> {
        if model.architecture != Architecture::ClimberPilot {
            let name = model.architecture.name();
            return invalid("--from", format!("`{name}` has no branches that could follow instructions"));
        }
        if model.mask == MaskMode::Row {
            return invalid(
                "--from",
                "examples do not say what each of their rows sees: a model with mask = \"row\" cannot be fine-tuned",
            );
        }
        Ok(())
    }

    pub(super) fn validate(&self, items: &Items, derived: &Conditions) -> Result<(), ConfigError> {
        for (i, name) in self.conditions.iter().enumerate() {
            conditions::check("sft.conditions", name, items, derived)?;
            if self.conditions[..i].contains(name) {
                return invalid("sft.conditions", format!("`{name}` is there twice"));
            }
        }
        for (key, value) in [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("validate_every", self.validate_every),
            ("patience", self.patience),
        ] {
            if value == 0 {
                return invalid(format!("sft.{key}"), "must be at least 1");
            }
        }
        for (key, value) in
            [("learning_rate", self.learning_rate), ("condition_learning_rate", self.condition_learning_rate)]
        {
            if !(value > 0.0 && value.is_finite()) {
                return invalid(format!("sft.{key}"), "must be positive");
            }
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return invalid("sft.label_smoothing", "must be at least 0 and below 1");
        }
        if !(self.unconditional_weight >= 0.0 && self.unconditional_weight.is_finite()) {
            return invalid("sft.unconditional_weight", "must not be negative");
        }
        Ok(())
    }
}
