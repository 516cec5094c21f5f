//! `[model]`, `[pretrain]` and `[evaluate]`: what the trainer builds, how it learns, how it is judged.

use serde::{Deserialize, Serialize};

use super::{ConfigError, invalid};

/// `[model]`: the architecture. Field names are the paper's symbols where it has them.
///
/// Only `climber-pilot` has more than one branch. `sasrec` reads `max_positions`, and neither `max_distance` nor
/// `time_bias`; `hstu` has no feed-forward layers. At least `sequences.max_len` positions make a `sasrec`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Its kind.
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
    /// Which reading of Eq. 1 the training uses.
    pub mask: MaskMode,
    /// Attributes of the catalogue that are part of an item's representation.
    pub attributes: Vec<String>,
    /// Distances from this one on share one position bias.
    pub max_distance: usize,
    /// `sasrec`: rows of the table of learned positions.
    pub max_positions: usize,
    /// Whether attention is biased by the time between two events (`b_time`).
    pub time_bias: bool,
    /// What scores are: with 0, the inner products of hidden states and item vectors (`φ(h, e) = hᵀe`); with any
    /// larger number, their cosines divided by it.
    pub score_temperature: f64,
    /// Dropout on embeddings and on each residual branch.
    pub dropout: f64,
    /// Items with fewer training events share hashed rows.
    pub min_count: u32,
    /// Rows that the rare items share.
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

/// The kind of the model, by its name. Those for comparison leave data, validation and evaluation as they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Architecture {
    /// The paper's (§3.2): a Transformer with temperatures, position and time bias, and TAMIP branches.
    ClimberPilot,
    /// Self-attentive sequential recommendation (Kang and McAuley 2018), as a pre-norm Transformer.
    Sasrec,
    /// Hierarchical sequential transduction units (Zhai et al. 2024): gated pointwise attention.
    Hstu,
    /// Another kind, which the trainer knows by this name; what it does not know it refuses before it trains.
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
    /// The name as configured and printed.
    pub fn name(&self) -> &str {
        match self {
            Self::ClimberPilot => "climber-pilot",
            Self::Sasrec => "sasrec",
            Self::Hstu => "hstu",
            Self::Other(name) => name,
        }
    }
}

/// The readings of the time-aware mask when every position is trained at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MaskMode {
    /// A plain causal pass; target `t` reads row `v_t`. Equal to re-encoding its visible prefix.
    Gather,
    /// Per-row mask `j ≤ i ∧ j ≤ v_{i+1}` inside attention, read at the row before the target's own (row `t` behind the start
    /// token): the paper's picture taken literally. That row's item may be hidden and still leaks through the residual stream.
    Row,
    /// A plain causal pass read at the row before the target's own: the ablation without the mask.
    None,
}

impl MaskMode {
    /// The name as configured and printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gather => "gather",
            Self::Row => "row",
            Self::None => "none",
        }
    }
}

impl Model {
    /// `max_len` is the length of the longest row.
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
        if self.architecture != Architecture::ClimberPilot && self.branches != 1 {
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
    /// Passes over the pre-training targets, at most.
    pub epochs: usize,
    /// Rows of `sequences` in one step.
    pub batch_size: usize,
    /// Adam's step size.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// What becomes of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// L2 penalty added to the gradient, as in Adam's paper.
    pub weight_decay: f64,
    /// Largest norm of a step's whole gradient; larger ones are scaled down.
    pub clip_norm: f64,
    /// The softmax of Eq. 3.
    pub loss: Loss,
    /// Smoothing of the targets by the uniform distribution; only with `loss = "full"`.
    pub label_smoothing: f64,
    /// `sampled`: whether the items of the batch are negatives.
    pub in_batch_negatives: bool,
    /// `sampled`: uniformly drawn negatives a step.
    pub uniform_negatives: usize,
    /// `sampled`: whether negatives are corrected by `−log Q`.
    pub sampling_correction: bool,
    /// Whether targets with nothing visible carry loss (they train the start-of-sequence row).
    pub loss_without_history: bool,
    /// How much less each event of a heavy user weighs: a user with `n` targets gives each the weight `n^−α`.
    /// 0 counts events alike, 1 counts users alike, as the evaluation does.
    pub user_balance: f64,
    /// Epochs between two looks at the validation targets.
    pub validate_every: usize,
    /// Looks at the validation targets without improvement before training stops.
    pub patience: usize,
    /// The number that selects the model, on the validation targets.
    pub select_by: Selection,
    /// Steps between two checkpoints from which an interrupted run resumes; 0 leaves only one an epoch.
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

/// The course of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls in a straight line, to nothing at the end of the last epoch.
    Linear,
}

/// The softmax over which a target is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Over the whole catalogue.
    Full,
    /// Over one set of negatives shared by all targets and branches of a step (Eq. 3).
    Sampled,
}

/// What selects a model: HR@10 or NDCG@10 with seen items filtered, under one of the two protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// HR@10, all earlier items as context.
    HrStandard,
    /// HR@10, the last `Δτ` hidden.
    HrAsServed,
    /// NDCG@10, all earlier items as context.
    NdcgStandard,
    /// NDCG@10, the last `Δτ` hidden.
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
            _ => Ok(()),
        }
    }
}

/// `[evaluate]`: ranking over the whole catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Evaluate {
    /// Targets scored at once.
    pub batch_size: usize,
    /// Whether the popularity and co-occurrence baselines stand in the same table.
    pub baselines: bool,
    /// Held-out targets to ask, about: whole users are drawn by lot until they hold out so many, so that asking does not cost the
    /// log. Of a sample there are no baselines. 0 asks all; `climber refresh` asks `refresh.validation_targets` instead.
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
