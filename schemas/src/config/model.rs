//! `[model]`, `[pretrain]` and `[evaluate]`: the model that the trainer builds, its training, and its evaluation.

use serde::{Deserialize, Serialize};

use super::{ConfigError, invalid};

/// `[model]`: the architecture. Fields are named by the paper's symbols where it has them.
///
/// Only `climber-pilot` has more than one branch. `sasrec` uses `max_positions`, at least `sequences.max_len`, and ignores
/// `max_distance` and `time_bias`; `hstu` has no feed-forward layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Kind of the model.
    pub architecture: Architecture,
    /// Embedding width `d`.
    pub d: usize,
    /// Backbone layers `L`.
    pub layers: usize,
    /// Attention heads `H`; divides `d`.
    pub heads: usize,
    /// TAMIP branches `K`; 1 is next-item prediction.
    pub branches: usize,
    /// Width of the feed-forward layers as a multiple of `d`.
    pub feed_forward: usize,
    /// Reading of the time-aware mask (Eq. 1) in training.
    pub mask: MaskMode,
    /// Catalogue attributes that are part of an item's representation.
    pub attributes: Vec<String>,
    /// Distance in positions from which on all share one position bias.
    pub max_distance: usize,
    /// `sasrec`: rows of the table of position embeddings.
    pub max_positions: usize,
    /// Whether attention has a bias by the time between two events (`b_time`).
    pub time_bias: bool,
    /// Temperature of scores. 0: inner products of hidden states and item vectors (`φ(h, e) = hᵀe`); above 0: their cosines
    /// divided by it.
    pub score_temperature: f64,
    /// Dropout on embeddings and on each residual branch.
    pub dropout: f64,
    /// Training events below which an item is rare and shares hashed rows.
    pub min_count: u32,
    /// Number of rows that rare items share.
    pub hash_buckets: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            architecture: Architecture::ClimberPilot,
            d: 64,
            layers: 3,
            heads: 2,
            branches: 2,
            feed_forward: 4,
            mask: MaskMode::Gather,
            attributes: Vec::new(),
            max_distance: 128,
            max_positions: 200,
            time_bias: true,
            score_temperature: 0.0,
            dropout: 0.2,
            min_count: 1,
            hash_buckets: 1024,
        }
    }
}

/// Kind of the model, by name. Kinds for comparison share data, validation and evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Architecture {
    /// The paper's model (§3.2): a Transformer with temperatures, position and time bias, and TAMIP branches.
    ClimberPilot,
    /// Self-attentive sequential recommendation (Kang and McAuley 2018), as a pre-norm Transformer.
    Sasrec,
    /// Hierarchical sequential transduction units (Zhai et al. 2024): gated pointwise attention.
    Hstu,
    /// Another kind that the trainer knows by this name; it refuses unknown ones before training.
    Other(String),
}

impl From<String> for Architecture {
    fn from(name: String) -> Self {
        let known = [Self::ClimberPilot, Self::Sasrec, Self::Hstu];
        known.into_iter().find(|known| known.name() == name).unwrap_or(Self::Other(name))
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.name().to_owned()
    }
}

impl Architecture {
    /// Returns the name as configured and printed.
    pub fn name(&self) -> &str {
        match self {
            Self::ClimberPilot => "climber-pilot",
            Self::Sasrec => "sasrec",
            Self::Hstu => "hstu",
            Self::Other(name) => name,
        }
    }
}

/// Readings of the time-aware mask (Eq. 1) when all positions are trained at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskMode {
    /// Plain causal pass; target `t` reads row `v_t`. Equals re-encoding its visible prefix.
    Gather,
    /// Mask `j ≤ i ∧ j ≤ v_{i+1}` per row in attention; a target reads the row before its own (row `t` after the start token):
    /// the paper's figure taken literally. The item of that row may be hidden, and still leaks through the residual stream.
    Row,
    /// Plain causal pass; a target reads the row before its own: the ablation without the mask.
    None,
}

impl MaskMode {
    /// Returns the name as configured and printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gather => "gather",
            Self::Row => "row",
            Self::None => "none",
        }
    }
}

impl Model {
    /// Checks the section; `max_len` is the length of the longest row.
    pub(super) fn validate(&self, known_attributes: &[&str], max_len: usize) -> Result<(), ConfigError> {
        for (key, value) in [
            ("d", self.d),
            ("layers", self.layers),
            ("heads", self.heads),
            ("branches", self.branches),
            ("feed_forward", self.feed_forward),
            ("max_distance", self.max_distance),
            ("max_positions", self.max_positions),
            ("hash_buckets", self.hash_buckets),
        ] {
            if value == 0 {
                return invalid(format!("model.{key}"), "must be at least 1");
            }
        }
        if !self.d.is_multiple_of(self.heads) {
            return invalid("model.heads", format!("{} heads do not divide d = {}", self.heads, self.d));
        }
        if matches!(self.architecture, Architecture::Sasrec | Architecture::Hstu) && self.branches != 1 {
            let name = self.architecture.name();
            return invalid(
                "model.branches",
                format!("`{name}` has one output head, not {}; use branches = 1", self.branches),
            );
        }
        if self.architecture == Architecture::Sasrec && self.max_positions < max_len {
            return invalid(
                "model.max_positions",
                format!("{} are too few for rows of sequences.max_len = {max_len}", self.max_positions),
            );
        }
        if !self.score_temperature.is_finite() || self.score_temperature < 0.0 {
            return invalid("model.score_temperature", "must be 0 or above");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return invalid("model.dropout", "must be at least 0 and below 1");
        }
        if let Some(name) = self
            .attributes
            .iter()
            .enumerate()
            .find_map(|(i, a)| self.attributes[..i].contains(a).then_some(a))
        {
            return invalid("model.attributes", format!("`{name}` is there twice"));
        }
        if let Some(name) = self.attributes.iter().find(|a| !known_attributes.contains(&a.as_str())) {
            return invalid(
                "model.attributes",
                format!(
                    "`{name}` is not an attribute of the catalogue; items.attributes has: {}",
                    known_attributes.join(", ")
                ),
            );
        }
        Ok(())
    }
}

/// `[pretrain]`: TAMIP pre-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pretrain {
    /// Most passes over the pre-training targets.
    pub epochs: usize,
    /// Rows of `sequences` per step.
    pub batch_size: usize,
    /// Adam's learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: usize,
    /// Course of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// L2 penalty added to the gradient, as in Adam's paper.
    pub weight_decay: f64,
    /// Largest norm of a step's total gradient; larger gradients are scaled down.
    pub clip_norm: f64,
    /// Softmax of the loss (Eq. 3).
    pub loss: Loss,
    /// Label smoothing towards the uniform distribution; only with `loss = "full"`.
    pub label_smoothing: f64,
    /// `sampled`: whether the batch's items serve as negatives.
    pub in_batch_negatives: bool,
    /// `sampled`: uniformly drawn negatives per step.
    pub uniform_negatives: usize,
    /// `sampled`: whether negatives' logits are corrected by `−log Q`.
    pub sampling_correction: bool,
    /// Whether targets without visible history carry loss (they train the start-of-sequence row).
    pub loss_without_history: bool,
    /// Exponent `α` that balances users: each target of a user with `n` targets weighs `n^−α`. 0 weighs events equally, 1 weighs
    /// users equally, as the evaluation does.
    pub user_balance: f64,
    /// Epochs between two validations.
    pub validate_every: usize,
    /// Validations without improvement after which training stops.
    pub patience: usize,
    /// Validation metric that selects the model.
    pub select_by: Selection,
    /// Steps between two checkpoints from which an interrupted run resumes; 0 writes one per epoch only.
    pub checkpoint_steps: usize,
}

impl Default for Pretrain {
    fn default() -> Self {
        Self {
            epochs: 50,
            batch_size: 256,
            learning_rate: 5e-4,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            weight_decay: 1e-6,
            clip_norm: 5.0,
            loss: Loss::Full,
            label_smoothing: 0.0,
            in_batch_negatives: true,
            uniform_negatives: 512,
            sampling_correction: true,
            loss_without_history: true,
            user_balance: 0.0,
            validate_every: 1,
            patience: 10,
            select_by: Selection::HrStandard,
            checkpoint_steps: 0,
        }
    }
}

/// Course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Constant.
    Constant,
    /// Linear decay to 0 at the end of the last epoch.
    Linear,
}

/// Softmax over which a target is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Over the whole catalogue.
    Full,
    /// Over one set of negatives that all targets and branches of a step share (Eq. 3).
    Sampled,
}

/// Metric that selects a model: HR@10 or NDCG@10 with seen items filtered, under one of the two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// HR@10 with all earlier items as context.
    HrStandard,
    /// HR@10 with the last `Δτ` hidden.
    HrAsServed,
    /// NDCG@10 with all earlier items as context.
    NdcgStandard,
    /// NDCG@10 with the last `Δτ` hidden.
    NdcgAsServed,
}

impl Pretrain {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("validate_every", self.validate_every),
            ("patience", self.patience),
        ] {
            if value == 0 {
                return invalid(format!("pretrain.{key}"), "must be at least 1");
            }
        }
        for (key, value) in [("learning_rate", self.learning_rate), ("clip_norm", self.clip_norm)] {
            if !(value > 0.0 && value.is_finite()) {
                return invalid(format!("pretrain.{key}"), "must be positive");
            }
        }
        if !(self.weight_decay >= 0.0 && self.weight_decay.is_finite()) {
            return invalid("pretrain.weight_decay", "must not be negative");
        }
        if !(0.0..=1.0).contains(&self.user_balance) {
            return invalid("pretrain.user_balance", "must lie between 0 and 1");
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return invalid("pretrain.label_smoothing", "must be at least 0 and below 1");
        }
        match self.loss {
            Loss::Sampled if !self.in_batch_negatives && self.uniform_negatives == 0 => invalid(
                "pretrain.uniform_negatives",
                "a sampled softmax needs negatives: in_batch_negatives = true, or uniform_negatives above 0",
            ),
            Loss::Sampled if self.label_smoothing > 0.0 => {
                invalid("pretrain.label_smoothing", "belongs to loss = \"full\"")
            }
            Loss::Full | Loss::Sampled => Ok(()),
        }
    }
}

/// `[evaluate]`: ranking over the whole catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Targets scored per batch.
    pub batch_size: usize,
    /// Whether to evaluate the popularity and co-occurrence baselines too.
    pub baselines: bool,
    /// Approximate number of held-out targets to evaluate, drawn as whole users at random, so that the cost does not grow with
    /// the log. A sample has no baselines. 0 evaluates all; `climber refresh` uses `refresh.validation_targets` instead.
    pub sample: usize,
}

impl Default for Evaluate {
    fn default() -> Self {
        Self { batch_size: 256, baselines: true, sample: 0 }
    }
}

impl Evaluate {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.batch_size == 0 {
            return invalid("evaluate.batch_size", "must be at least 1");
        }
        Ok(())
    }
}
