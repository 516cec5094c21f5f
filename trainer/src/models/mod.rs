//! The Climber-Pilot model (§3): item representation, causal backbone, TAMIP branches.
//!
//! ```text
//! items i_1 … i_n ─► e_1 … e_n            items.rs    id and attribute embeddings, fused
//!          [start] + e ─► H                climber.rs  L causal layers, position and time bias
//!                      ├─► branch 1 ─► h¹  climber.rs  one layer each, then a norm
//!                      └─► branch K ─► hᴷ              φ(h, e) = hᵀe, or their cosine over a temperature
//! ```
//!
//! For comparison, `[model] architecture` puts other layers in their place: `sasrec.rs`, with positions added to the
//! items, and `hstu.rs`. They have one branch, which is a norm without a layer.
//!
//! Each sequence begins with a learned start-of-sequence token, so that row `p` of a sequence represents its
//! first `p` items, and row 0 a user of whom nothing is visible.

mod climber;
mod grow;
mod hstu;
mod instruct;
mod items;
mod layer;
mod parameters;
mod sasrec;
mod saved;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::{Architecture, Model, Sft};

pub use instruct::{CONDITION_PREFIX, Histories, Reads};
pub use items::{ID_TABLE, IdTable, ItemRows, ItemVectors, TouchedRows};
pub use parameters::{Parameters, Values};
use ragged::{AttentionLayout, Dropout};
pub use saved::SavedValues;

use crate::data::vocabulary::Vocabulary;
use crate::device::Backend;
use instruct::Instructions;
use items::ItemEncoder;
use layer::{Layer, Norm};
use sasrec::Positions;

/// The model with its parameters.
#[derive(Debug, Clone)]
pub struct ClimberPilot {
    parameters: Parameters,
    vocabulary: Arc<Vocabulary>,
    items: ItemEncoder,
    start: Tensor,
    /// SASRec's; the others' attention knows distances.
    positions: Option<Positions>,
    backbone: Vec<Layer>,
    branches: Vec<Branch>,
    /// Of a model that was taught to follow them.
    instructions: Option<Instructions>,
    score_temperature: f64,
    d: usize,
}

/// What stands between the backbone and `φ`.
#[derive(Debug, Clone)]
struct Branch {
    /// A TAMIP branch has one (§3.2.2); the only head of the other architectures has none.
    layer: Option<Layer>,
    norm: Norm,
}

impl Branch {
    /// Branch `k`, from 1.
    fn new(parameters: &mut Parameters, k: usize, model: &Model) -> Result<Self> {
        let name = format!("branch.{k}");
        let layer = match model.architecture {
            Architecture::ClimberPilot => Some(Layer::new(parameters, &name, model)?),
            Architecture::Sasrec | Architecture::Hstu => None,
        };
        Ok(Self { layer, norm: Norm::new(parameters, &format!("{name}.norm"), model.d)? })
    }
}

/// The tokens of a ragged batch.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// For each token its row in `[start; item vectors]`: 0 is the start-of-sequence token, `1 + i` the
    /// vector of the `i`-th item of the set that was encoded.
    pub embedding: Vec<u32>,
    /// Sequence boundaries, times and visible keys.
    pub layout: Arc<AttentionLayout>,
}

impl ClimberPilot {
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

    fn with_values(
        model: &Model,
        sft: &Sft,
        vocabulary: Arc<Vocabulary>,
        values: Values,
        backend: &Backend,
    ) -> Result<Self> {
        let mut parameters = Parameters::new(values, backend.clone());
        let items = ItemEncoder::new(&mut parameters, model, &vocabulary)?;
        let start = parameters.normal("start", &[1, model.d], 0.02)?;
        let positions = match model.architecture {
            Architecture::Sasrec => Some(Positions::new(&mut parameters, model)?),
            Architecture::ClimberPilot | Architecture::Hstu => None,
        };
        let backbone = (0..model.layers)
            .map(|l| Layer::new(&mut parameters, &format!("backbone.{l}"), model))
            .collect::<Result<_>>()?;
        let branches =
            (1..=model.branches).map(|k| Branch::new(&mut parameters, k, model)).collect::<Result<_>>()?;
        let &Model { score_temperature, d, .. } = model;
        let conditions = vocabulary.conditions();
        let instructions = if conditions.is_empty() {
            None
        } else {
            Some(Instructions::new(&mut parameters, sft, conditions.len(), model)?)
        };
        parameters.complete();
        Ok(Self {
            parameters,
            vocabulary,
            items,
            start,
            positions,
            backbone,
            branches,
            instructions,
            score_temperature,
            d,
        })
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
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// `K`.
    pub fn branches(&self) -> usize {
        self.branches.len()
    }

    /// `e_i` of `items` (catalogue indexes): `[items, d]`.
    pub fn item_vectors(&self, items: &[u32]) -> Result<ItemVectors> {
        self.item_vectors_of(&ItemRows::new(&self.vocabulary, items))
    }

    /// The same of items whose rows are known.
    pub fn item_vectors_of(&self, rows: &ItemRows) -> Result<ItemVectors> {
        self.items.forward(rows)
    }

    /// The shared backbone `H`: `[T, d]`.
    pub fn backbone(&self, tokens: &Tokens, items: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let embedded = ragged::gather(&Tensor::cat(&[&self.start, items], 0)?, &tokens.embedding)?;
        // As in the Transformer: embeddings are small, the layers' outputs are not.
        let mut embedded = (embedded * (self.d as f64).sqrt())?;
        if let Some(positions) = &self.positions {
            embedded = positions.add(&embedded, &tokens.layout)?;
        }
        let mut x = ragged::add_dropped(&embedded.zeros_like()?, &embedded, layer::at(dropout, "embedding"))?;
        for layer in &self.backbone {
            x = layer.forward(&x, &tokens.layout, dropout)?;
        }
        Ok(x)
    }

    /// Branch `k` (from 1) on top of the backbone's output, at the token rows `rows`: `[rows, d]`.
    pub fn branch(
        &self,
        k: usize,
        backbone: &Tensor,
        layout: &Arc<AttentionLayout>,
        rows: &[u32],
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let branch = &self.branches[k - 1];
        let hidden = match &branch.layer {
            Some(layer) => ragged::gather(&layer.forward(backbone, layout, dropout)?, rows)?,
            None => ragged::gather(backbone, rows)?,
        };
        self.finish(branch, &hidden)
    }

    /// What is scored, from the rows of a branch's layer.
    fn finish(&self, branch: &Branch, hidden: &Tensor) -> Result<Tensor> {
        let hidden = branch.norm.forward(hidden)?;
        if self.cosines() { ragged::unit_rows(&hidden)? / self.score_temperature } else { Ok(hidden) }
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
