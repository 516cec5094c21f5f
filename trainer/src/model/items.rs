//! The item representation (§3.2.1): `e_i = W [ id(i) ; a_1(i) ; … ]`, one learned table for the ids and one
//! for each categorical attribute, the mean over the values of a multi-valued one.
//!
//! The same `e_i` is an input to the backbone and a target of `φ(h, e)`.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use schemas::config::Model;

use super::Parameters;
use super::parameters::normal;
use crate::ops::{self, Bags};
use crate::vocabulary::Vocabulary;

/// Standard deviation of an embedding's initial values.
const EMBEDDING_STD: f64 = 0.02;

/// The id table: as large as the catalogue, so a step touches only the rows it needs.
///
/// The table itself takes no part in differentiation. A step gathers its rows into a [`Var`] of their own,
/// and the optimiser writes just those back.
#[derive(Debug, Clone)]
pub struct IdTable {
    /// `[rows, d]`.
    pub weight: Tensor,
}

/// The rows of the id table that one step works with.
#[derive(Debug, Clone)]
pub struct TouchedRows {
    /// Row numbers, ascending.
    pub rows: Arc<Vec<u32>>,
    /// Their values, `[rows, d]`; gradients arrive here.
    pub values: Var,
}

impl IdTable {
    fn gather(&self, rows: Vec<u32>) -> Result<TouchedRows> {
        let index = Tensor::from_slice(&rows, rows.len(), self.weight.device())?;
        let values = Var::from_tensor(&self.weight.index_select(&index, 0)?)?;
        Ok(TouchedRows { rows: Arc::new(rows), values })
    }
}

/// The parameters behind `e_i`.
#[derive(Debug, Clone)]
pub(super) struct ItemEncoder {
    pub(super) ids: IdTable,
    attributes: Vec<Tensor>,
    /// `W`, `[d (1 + attributes), d]`; absent where the id is all there is.
    fuse: Option<Tensor>,
}

/// The vectors of a set of items.
#[derive(Debug, Clone)]
pub struct ItemVectors {
    /// `[items, d]`, in the order asked for.
    pub vectors: Tensor,
    /// What the optimiser has to write back.
    pub touched: TouchedRows,
}

impl ItemEncoder {
    pub(super) fn new(
        parameters: &mut Parameters,
        model: &Model,
        vocabulary: &Vocabulary,
        seed: u64,
        device: &Device,
    ) -> Result<Self> {
        let d = model.d;
        let rows = vocabulary.id_rows();
        let ids = Tensor::from_vec(normal(seed, ID_TABLE, rows * d, EMBEDDING_STD)?, (rows, d), device)?;
        let attributes = vocabulary
            .attributes()
            .iter()
            .map(|a| {
                parameters.normal(&format!("items.{}", a.name), &[a.values.len().max(1), d], EMBEDDING_STD)
            })
            .collect::<Result<Vec<_>>>()?;
        let fuse = if attributes.is_empty() {
            None
        } else {
            let inputs = d * (1 + attributes.len());
            Some(parameters.normal("items.fuse", &[inputs, d], (1.0 / d as f64).sqrt())?)
        };
        Ok(Self { ids: IdTable { weight: ids }, attributes, fuse })
    }

    /// `e_i` for each of `items` (catalogue indexes).
    pub(super) fn forward(&self, vocabulary: &Vocabulary, items: &[u32]) -> Result<ItemVectors> {
        let bags = vocabulary.id_bags(items);
        let mut rows = bags.rows.clone();
        rows.sort_unstable();
        rows.dedup();
        let local = Bags {
            rows: bags.rows.iter().map(|row| rows.partition_point(|r| r < row) as u32).collect(),
            offsets: bags.offsets,
        };
        let touched = self.ids.gather(rows)?;
        let ids = ops::bag_mean(touched.values.as_tensor(), &Arc::new(local))?;
        let vectors = match &self.fuse {
            None => ids,
            Some(fuse) => {
                let mut parts = vec![ids];
                for (a, table) in self.attributes.iter().enumerate() {
                    parts.push(ops::bag_mean(table, &Arc::new(vocabulary.attribute_bags(a, items)))?);
                }
                ops::linear(&Tensor::cat(&parts, 1)?, fuse, None)?
            }
        };
        Ok(ItemVectors { vectors, touched })
    }
}

/// The name of the id table in checkpoints.
pub const ID_TABLE: &str = "items.id";
