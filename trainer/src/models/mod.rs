//! The Climber-Pilot model (§3): item representation, causal backbone, TAMIP branches.
//!
//! ```text
//! items i_1 … i_n ─► e_1 … e_n            items.rs    id and attribute embeddings, fused
//!          [start] + e ─► H                encoder.rs  L causal layers
//!                      ├─► branch 1 ─► h¹              in Climber-Pilot one layer each, then a norm
//!                      └─► branch K ─► hᴷ              φ(h, e) = hᵀe, or their cosine over a temperature
//! ```
//!
//! An [`Encoder`] supplies the layers, chosen by `[model] architecture`: `climber_pilot.rs`, and for comparison `sasrec.rs` and
//! `hstu.rs`, whose one branch is a norm without a layer.
//!
//! Each sequence begins with a learned start-of-sequence token: row `p` of a sequence represents its first `p` items, row 0 a
//! user without visible history.
//!
//! `instruct.rs` implements instructions (CGSA, Eq. 5, and the paradigms it is compared with); `grow.rs` initialises rows for new
//! items; `parameters.rs` names the parameters; `saved.rs` reads them from a mapped file.
//!
//! Memory: the parameters, 4 bytes each; most are the id table, one row of `d` per frequent item.

mod climber_pilot;
mod encoder;
mod grow;
mod hstu;
mod instruct;
mod items;
mod layers;
mod parameters;
mod sasrec;
mod saved;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::{Architecture, MaskMode, Model, Sft};

pub use encoder::{BranchInstruction, Encoder};
pub use instruct::{CONDITION_PREFIX, Histories, Reads};
pub use items::{ID_TABLE, IdRows, IdTable, ItemRows, ItemVectors, TouchedRows};
pub use parameters::{Parameters, Values};
use ragged::{AttentionLayout, Dropout};
pub use saved::SavedValues;

use crate::data::vocabulary::Vocabulary;
use crate::data::{ItemIndex, Token, VectorRow, as_u32s};
use crate::device::Backend;
use climber_pilot::ClimberPilot;
use hstu::Hstu;
use instruct::Instructions;
use items::ItemEncoder;
use layers::at;
use sasrec::Sasrec;

/// Item representation, encoder and instructions; scores items by the inner product of their vectors with a history's state.
#[derive(Debug, Clone)]
pub struct SequenceModel {
    parameters: Parameters,
    vocabulary: Arc<Vocabulary>,
    items: ItemEncoder,
    start: Tensor,
    encoder: Arc<dyn Encoder>,
    /// Present in a model trained to follow instructions.
    instructions: Option<Instructions>,
    mask: MaskMode,
    score_temperature: f64,
    d: usize,
}

/// Tokens of a ragged batch.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// Row that embeds each token.
    pub embedding: Vec<VectorRow>,
    /// Sequence boundaries, times and visible keys.
    pub layout: Arc<AttentionLayout>,
}

impl SequenceModel {
    /// Creates a model with initial values that follow from `seed`. It follows instructions, as `sft` says, if the vocabulary has
    /// conditions.
    ///
    /// # Errors
    ///
    /// A tensor operation failed, or the architecture has no encoder.
    pub fn new(
        model: &Model,
        sft: &Sft,
        vocabulary: Arc<Vocabulary>,
        seed: u64,
        backend: &Backend,
    ) -> Result<Self> {
        Self::with_values(model, sft, vocabulary, Values::Seed(seed), backend)
    }

    /// Creates a model with `values`, copied to `backend` from any device or file.
    ///
    /// # Errors
    ///
    /// A value is missing, has another shape or is not of 32-bit floats.
    pub fn saved(
        model: &Model,
        sft: &Sft,
        vocabulary: Arc<Vocabulary>,
        values: SavedValues,
        backend: &Backend,
    ) -> Result<Self> {
        Self::with_values(model, sft, vocabulary, Values::Saved(Arc::new(values)), backend)
    }

    /// Creates a model with initial or saved `values`.
    ///
    /// # Errors
    ///
    /// A saved value is missing, has another shape or is not of 32-bit floats.
    pub fn with_values(
        model: &Model,
        sft: &Sft,
        vocabulary: Arc<Vocabulary>,
        values: Values,
        backend: &Backend,
    ) -> Result<Self> {
        let mut parameters = Parameters::new(values, backend.clone());
        let items = ItemEncoder::new(&mut parameters, model, &vocabulary)?;
        let start = parameters.normal("start", &[1, model.d], 0.02)?;
        let encoder = encoder(&mut parameters, model)?;
        let &Model { mask, score_temperature, d, .. } = model;
        let conditions = vocabulary.conditions();
        let instructions = if conditions.is_empty() {
            None
        } else {
            Some(Instructions::new(&mut parameters, sft, conditions.len(), model)?)
        };
        parameters.complete();
        Ok(Self { parameters, vocabulary, items, start, encoder, instructions, mask, score_temperature, d })
    }

    /// Extends `parent`, which follows no instructions, by the instruction parameters of `vocabulary`'s conditions, initialised
    /// from `seed`. All other values are copied.
    ///
    /// # Errors
    ///
    /// A tensor operation failed, or `vocabulary` does not fit the shapes of `parent`.
    pub fn taught(
        parent: &Self,
        model: &Model,
        sft: &Sft,
        vocabulary: Arc<Vocabulary>,
        seed: u64,
    ) -> Result<Self> {
        let mut tensors = parent.tensors();
        if !vocabulary.conditions().is_empty() {
            let mut new = Parameters::new(Values::Seed(seed), parent.parameters.backend().clone());
            Instructions::new(&mut new, sft, vocabulary.conditions().len(), model)?;
            tensors.extend(new.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())));
        }
        Self::saved(model, sft, vocabulary, tensors.into(), parent.parameters.backend())
    }

    /// Returns the dense parameters, the id table excluded.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns the id embedding table.
    pub fn ids(&self) -> &IdTable {
        &self.items.ids
    }

    /// Returns the map from items to embedding rows.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Returns the number of branches, `K`.
    pub fn branches(&self) -> usize {
        self.encoder.branches()
    }

    /// Returns the visibility mask that the model is trained with.
    pub fn mask(&self) -> MaskMode {
        self.mask
    }

    /// Computes the vectors `e_i` of `items`: `[items, d]`.
    pub fn item_vectors(&self, items: &[ItemIndex]) -> Result<ItemVectors> {
        self.item_vectors_of(&ItemRows::new(&self.vocabulary, items))
    }

    /// Computes the item vectors for embedding rows already looked up: `[items, d]`.
    pub fn item_vectors_of(&self, rows: &ItemRows) -> Result<ItemVectors> {
        self.items.forward(rows)
    }

    /// Computes the shared backbone `H`, `[T, d]`, from the item vectors `items` `[items, d]`.
    pub fn backbone(&self, tokens: &Tokens, items: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let embedded = ragged::gather(&Tensor::cat(&[&self.start, items], 0)?, as_u32s(&tokens.embedding))?;
        // As in the Transformer, √d scales the embeddings, which start smaller than the layers' outputs.
        let embedded = self.encoder.embed((embedded * (self.d as f64).sqrt())?, &tokens.layout)?;
        let x = ragged::add_dropped(&embedded.zeros_like()?, &embedded, at(dropout, "embedding"))?;
        self.encoder.backbone(x, &tokens.layout, dropout)
    }

    /// Computes branch `k` (from 1) from the backbone's output `[T, d]`, at the tokens `rows`: `[rows, d]`.
    pub fn branch(
        &self,
        k: usize,
        backbone: &Tensor,
        layout: &Arc<AttentionLayout>,
        rows: &[Token],
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        self.scored(&self.encoder.branch(k, backbone, layout, rows, dropout)?)
    }

    /// Returns the branch states as scored: unit vectors over the temperature if scores are cosines, otherwise unchanged.
    fn scored(&self, hidden: &Tensor) -> Result<Tensor> {
        if self.cosines() { ragged::unit_rows(hidden)? / self.score_temperature } else { Ok(hidden.clone()) }
    }

    /// True if scores are cosines over a temperature.
    fn cosines(&self) -> bool {
        self.score_temperature > 0.0
    }

    /// Returns the vectors that hidden states are multiplied with, `[items, d]`: unit vectors if scores are cosines.
    pub fn candidates(&self, items: &Tensor) -> Result<Tensor> {
        if self.cosines() { ragged::unit_rows(items) } else { Ok(items.clone()) }
    }

    /// Returns all values by name, the id table included.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        let mut tensors: HashMap<_, _> =
            self.parameters.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())).collect();
        tensors.insert(ID_TABLE.to_owned(), self.items.ids.weight.clone());
        tensors
    }
}

/// Creates the encoder that `model` names, with its parameters.
fn encoder(parameters: &mut Parameters, model: &Model) -> Result<Arc<dyn Encoder>> {
    Ok(match &model.architecture {
        Architecture::ClimberPilot => Arc::new(ClimberPilot::new(parameters, model)?),
        Architecture::Sasrec => Arc::new(Sasrec::new(parameters, model)?),
        Architecture::Hstu => Arc::new(Hstu::new(parameters, model)?),
        Architecture::Other(name) => candle_core::bail!("`{name}` is no encoder of histories"),
    })
}
