//! The Climber-Pilot model (§3): item representation, causal backbone, TAMIP branches.
//!
//! ```text
//! items i_1 … i_n ─► e_1 … e_n            items.rs    id and attribute embeddings, fused
//!          [start] + e ─► H                block.rs    L causal layers, position and time bias
//!                      ├─► branch 1 ─► h¹  block.rs    one layer each, then a norm
//!                      └─► branch K ─► hᴷ              φ(h, e) = hᵀe
//! ```
//!
//! Each sequence begins with a learned start-of-sequence token, so that row `p` of a sequence represents its
//! first `p` items, and row 0 a user of whom nothing is visible.

mod block;
mod items;
mod parameters;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use schemas::config::Model;

pub use items::{ID_TABLE, IdTable, ItemVectors, TouchedRows};
pub use parameters::Parameters;

use crate::ops::{self, AttentionLayout, Dropout};
use crate::vocabulary::Vocabulary;
use block::{Block, Norm};
use items::ItemEncoder;

/// The model with its parameters.
#[derive(Debug, Clone)]
pub struct ClimberPilot {
    parameters: Parameters,
    vocabulary: Arc<Vocabulary>,
    items: ItemEncoder,
    start: Tensor,
    backbone: Vec<Block>,
    branches: Vec<(Block, Norm)>,
    d: usize,
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
    /// A new model; its values follow from `seed`.
    pub fn new(model: &Model, vocabulary: Arc<Vocabulary>, seed: u64, device: &Device) -> Result<Self> {
        let mut parameters = Parameters::new(seed, device.clone());
        let items = ItemEncoder::new(&mut parameters, model, &vocabulary, seed, device)?;
        let start = parameters.normal("start", &[1, model.d], 0.02)?;
        let backbone = (0..model.layers)
            .map(|l| Block::new(&mut parameters, &format!("backbone.{l}"), model))
            .collect::<Result<_>>()?;
        let branches = (0..model.branches)
            .map(|k| {
                let name = format!("branch.{}", k + 1);
                Ok((
                    Block::new(&mut parameters, &name, model)?,
                    Norm::new(&mut parameters, &format!("{name}.norm"), model.d)?,
                ))
            })
            .collect::<Result<_>>()?;
        Ok(Self { parameters, vocabulary, items, start, backbone, branches, d: model.d })
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
        self.items.forward(&self.vocabulary, items)
    }

    /// The shared backbone `H`: `[T, d]`.
    pub fn backbone(&self, tokens: &Tokens, items: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let index = Tensor::from_slice(&tokens.embedding, tokens.embedding.len(), items.device())?;
        let embedded = Tensor::cat(&[&self.start, items], 0)?.index_select(&index, 0)?;
        // As in the Transformer: embeddings are small, the layers' outputs are not.
        let embedded = (embedded * (self.d as f64).sqrt())?;
        let mut x = ops::add_dropped(&embedded.zeros_like()?, &embedded, block::at(dropout, "embedding"))?;
        for block in &self.backbone {
            x = block.forward(&x, &tokens.layout, dropout)?;
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
        let (block, norm) = &self.branches[k - 1];
        let hidden = block.forward(backbone, layout, dropout)?;
        let rows = Tensor::from_slice(rows, rows.len(), hidden.device())?;
        norm.forward(&hidden.index_select(&rows, 0)?)
    }

    /// All values by name, the id table included.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        let mut tensors: HashMap<_, _> =
            self.parameters.iter().map(|(name, var)| (name.to_owned(), var.as_tensor().clone())).collect();
        tensors.insert(ID_TABLE.to_owned(), self.items.ids.weight.clone());
        tensors
    }

    /// Replaces every value by that of the same name.
    pub fn load(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.parameters.load(tensors)?;
        match tensors.get(ID_TABLE) {
            Some(ids) if ids.shape() == self.items.ids.weight.shape() => {
                // A copy of its own: the optimiser writes into it.
                self.items.ids.weight = ids.copy()?;
                Ok(())
            }
            Some(ids) => candle_core::bail!(
                "parameter `{ID_TABLE}` is {:?} in the checkpoint and {:?} in the model",
                ids.shape(),
                self.items.ids.weight.shape()
            ),
            None => candle_core::bail!("the checkpoint has no parameter `{ID_TABLE}`"),
        }
    }
}
