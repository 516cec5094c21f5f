//! The Climber-Pilot model (§3): item representation, causal backbone, TAMIP branches.
//!
//! ```text
//! items i_1 … i_n ─► e_1 … e_n            items.rs    id and attribute embeddings, fused
//!          [start] + e ─► H                encoder.rs  L causal layers
//!                      ├─► branch 1 ─► h¹              in Climber-Pilot one layer each, then a norm
//!                      └─► branch K ─► hᴷ              φ(h, e) = hᵀe, or their cosine over a temperature
//! ```
//!
//! The layers are an [`Encoder`]'s, chosen by `[model] architecture`: `climber_pilot.rs`, and for comparison `sasrec.rs` and
//! `hstu.rs`, which have one branch, a norm without a layer.
//!
//! Each sequence begins with a learned start-of-sequence token, so that row `p` of a sequence represents its
//! first `p` items, and row 0 a user of whom nothing is visible.
//!
//! How an instruction enters (CGSA, Eq. 5, and what it is compared with) is `instruct.rs`; `grow.rs` gives new items their first rows;
//! `parameters.rs` names the parameters, and `saved.rs` reads them from a mapped file.

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

/// A model that scores items by the inner products of their vectors with the state of a history: item representation, encoder,
/// instructions.
#[derive(Debug, Clone)]
pub struct SequenceModel {
    parameters: Parameters,
    vocabulary: Arc<Vocabulary>,
    items: ItemEncoder,
    start: Tensor,
    encoder: Arc<dyn Encoder>,
    /// Of a model that was taught to follow them.
    instructions: Option<Instructions>,
    mask: MaskMode,
    score_temperature: f64,
    d: usize,
}

/// The tokens of a ragged batch.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// What each token is embedded as.
    pub embedding: Vec<VectorRow>,
    /// Sequence boundaries, times and visible keys.
    pub layout: Arc<AttentionLayout>,
}

impl SequenceModel {
    /// A new model; its values follow from `seed`. It follows instructions, as `sft` says, where the vocabulary has
    /// conditions.
    pub fn new(
        model: &Model,
        sft: &Sft,
        vocabulary: Arc<Vocabulary>,
        seed: u64,
        backend: &Backend,
    ) -> Result<Self> {
        Self::with_values(model, sft, vocabulary, Values::Seed(seed), backend)
    }

    /// The model with values that were saved, on `backend`, from wherever they are.
    ///
    /// # Errors
    ///
    /// Where a value is not there, or has another shape.
    pub fn saved(
        model: &Model,
        sft: &Sft,
        vocabulary: Arc<Vocabulary>,
        values: SavedValues,
        backend: &Backend,
    ) -> Result<Self> {
        Self::with_values(model, sft, vocabulary, Values::Saved(Arc::new(values)), backend)
    }

    /// A model with values from `values`.
    ///
    /// # Errors
    ///
    /// Where a saved value is not there, or has another shape.
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

    /// A model with the values of `parent`, which follows no instructions yet, and what is new for those of `vocabulary`.
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

    /// The dense parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The id table.
    pub fn ids(&self) -> &IdTable {
        &self.items.ids
    }

    /// Which items have which rows.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// `K`.
    pub fn branches(&self) -> usize {
        self.encoder.branches()
    }

    /// The mask that it was made for.
    pub fn mask(&self) -> MaskMode {
        self.mask
    }

    /// `e_i` of `items`: `[items, d]`.
    pub fn item_vectors(&self, items: &[ItemIndex]) -> Result<ItemVectors> {
        self.item_vectors_of(&ItemRows::new(&self.vocabulary, items))
    }

    /// The same of items whose rows are known.
    pub fn item_vectors_of(&self, rows: &ItemRows) -> Result<ItemVectors> {
        self.items.forward(rows)
    }

    /// The shared backbone `H`: `[T, d]`.
    pub fn backbone(&self, tokens: &Tokens, items: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let embedded = ragged::gather(&Tensor::cat(&[&self.start, items], 0)?, as_u32s(&tokens.embedding))?;
        // As in the Transformer: embeddings are small, the layers' outputs are not.
        let embedded = self.encoder.embed((embedded * (self.d as f64).sqrt())?, &tokens.layout)?;
        let x = ragged::add_dropped(&embedded.zeros_like()?, &embedded, at(dropout, "embedding"))?;
        self.encoder.backbone(x, &tokens.layout, dropout)
    }

    /// Branch `k` (from 1) on top of the backbone's output, at the tokens `rows`: `[rows, d]`.
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

    /// What is scored, from the states of a branch.
    fn scored(&self, hidden: &Tensor) -> Result<Tensor> {
        if self.cosines() { ragged::unit_rows(hidden)? / self.score_temperature } else { Ok(hidden.clone()) }
    }

    /// Whether scores are cosines.
    fn cosines(&self) -> bool {
        self.score_temperature > 0.0
    }

    /// What a hidden state is multiplied with for a score, from the items' vectors: `[items, d]`.
    pub fn candidates(&self, items: &Tensor) -> Result<Tensor> {
        if self.cosines() { ragged::unit_rows(items) } else { Ok(items.clone()) }
    }

    /// All values by name, the id table included.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        let mut tensors: HashMap<_, _> =
            self.parameters.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())).collect();
        tensors.insert(ID_TABLE.to_owned(), self.items.ids.weight.clone());
        tensors
    }
}

/// The encoder that `model` names, with new parameters.
fn encoder(parameters: &mut Parameters, model: &Model) -> Result<Arc<dyn Encoder>> {
    Ok(match &model.architecture {
        Architecture::ClimberPilot => Arc::new(ClimberPilot::new(parameters, model)?),
        Architecture::Sasrec => Arc::new(Sasrec::new(parameters, model)?),
        Architecture::Hstu => Arc::new(Hstu::new(parameters, model)?),
        Architecture::Other(name) => candle_core::bail!("`{name}` is no encoder of histories"),
    })
}
