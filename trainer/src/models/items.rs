//! The item representation (§3.2.1): `e_i = W [ id(i) ; a_1(i) ; … ]`, with one learned table for ids and one per categorical
//! attribute. An item with several values of an attribute takes the mean of their rows.
//!
//! `e_i` is both an input to the backbone and a target of `φ(h, e)`.

use std::sync::Arc;

use candle_core::{Result, Tensor, Var};
use ragged::Bags;
use schemas::config::{Model, Precision};

use super::Parameters;
use crate::data::vocabulary::Vocabulary;
use crate::data::{IdRow, IdSet, ItemIndex};

/// Standard deviation of the embeddings' initial values.
const EMBEDDING_STD: f64 = 0.02;

/// The id table, which grows with the catalogue, so a step touches only the rows it needs.
///
/// The table itself is not differentiated: a step gathers its rows into a [`Var`], and the optimiser writes only those back.
#[derive(Debug, Clone)]
pub struct IdTable {
    /// `[rows, d]`.
    pub weight: Tensor,
}

/// Rows of the id table, ascending; cheap to clone.
#[derive(Debug, Clone)]
pub struct IdRows(Arc<Vec<u32>>);

impl IdRows {
    fn new(rows: Vec<IdRow>) -> Self {
        Self(Arc::new(rows.into_iter().map(IdRow::get).collect()))
    }

    /// Iterates over the rows.
    pub fn iter(&self) -> impl Iterator<Item = IdRow> + '_ {
        self.0.iter().copied().map(IdRow::new)
    }

    /// Returns the row numbers, for operations that write to the rows.
    pub fn numbers(&self) -> Arc<Vec<u32>> {
        self.0.clone()
    }
}

/// Rows of the id table that one step uses.
#[derive(Debug, Clone)]
pub struct TouchedRows {
    /// Row numbers.
    pub rows: IdRows,
    /// Values of the rows, `[rows, d]`; they receive the gradients.
    pub values: Var,
}

impl IdTable {
    fn gather(&self, rows: &IdRows) -> Result<TouchedRows> {
        let values = Var::from_tensor(&ragged::gather(&self.weight, &rows.0)?)?;
        Ok(TouchedRows { rows: rows.clone(), values })
    }
}

/// Rows of the embedding tables that a set of items needs.
#[derive(Debug, Clone)]
pub struct ItemRows {
    /// Rows of the id table, each once.
    ids: IdRows,
    /// Positions in `ids`, per item.
    of_ids: Arc<Bags>,
    /// Rows of each attribute's table, per item.
    of_attributes: Vec<Arc<Bags>>,
}

impl ItemRows {
    /// Returns the number of items.
    pub fn items(&self) -> usize {
        self.of_ids.len()
    }

    /// Looks up the rows of `items`.
    pub fn new(vocabulary: &Vocabulary, items: &[ItemIndex]) -> Self {
        let Bags { rows, offsets } = vocabulary.id_bags(items);
        let ids = IdSet::new(vocabulary.id_rows(), rows.iter().copied().map(IdRow::new));
        let of_ids = Bags { rows: rows.iter().map(|&row| ids.rank(row.into())).collect(), offsets };
        let attributes = 0..vocabulary.attributes().len();
        Self {
            of_ids: Arc::new(of_ids),
            of_attributes: attributes.map(|a| Arc::new(vocabulary.attribute_bags(a, items))).collect(),
            ids: IdRows::new(ids.to_vec()),
        }
    }
}

/// Parameters that produce `e_i`.
#[derive(Debug, Clone)]
pub(super) struct ItemEncoder {
    pub(super) ids: IdTable,
    attributes: Vec<Tensor>,
    /// `W`, `[d (1 + attributes), d]`; absent without attributes.
    fuse: Option<Tensor>,
    precision: Precision,
}

/// Vectors of a set of items.
#[derive(Debug, Clone)]
pub struct ItemVectors {
    /// `[items, d]`, in the order of the request.
    pub vectors: Tensor,
    /// Rows of the id table that the optimiser writes back.
    pub touched: TouchedRows,
}

impl ItemEncoder {
    pub(super) fn new(parameters: &mut Parameters, model: &Model, vocabulary: &Vocabulary) -> Result<Self> {
        let d = model.d;
        let ids = parameters.values(ID_TABLE, &[vocabulary.id_rows(), d], EMBEDDING_STD)?;
        let attributes = vocabulary
            .attributes()
            .iter()
            .map(|a| parameters.normal(&attribute_table(&a.name), &[a.values.len().max(1), d], EMBEDDING_STD))
            .collect::<Result<Vec<_>>>()?;
        let fuse = if attributes.is_empty() {
            None
        } else {
            let inputs = d * (1 + attributes.len());
            Some(parameters.normal("items.fuse", &[inputs, d], (1.0 / d as f64).sqrt())?)
        };
        Ok(Self { ids: IdTable { weight: ids }, attributes, fuse, precision: parameters.precision() })
    }

    /// Computes `e_i` of each item from its `rows`.
    pub(super) fn forward(&self, rows: &ItemRows) -> Result<ItemVectors> {
        let touched = self.ids.gather(&rows.ids)?;
        let ids = ragged::bag_mean(touched.values.as_tensor(), &rows.of_ids)?;
        let vectors = match &self.fuse {
            None => ids,
            Some(fuse) => {
                let mut parts = vec![ids];
                for (table, bags) in self.attributes.iter().zip(&rows.of_attributes) {
                    parts.push(ragged::bag_mean(table, bags)?);
                }
                ragged::linear(&Tensor::cat(&parts, 1)?, fuse, None, self.precision)?
            }
        };
        Ok(ItemVectors { vectors, touched })
    }
}

/// Returns the name of an attribute's table in checkpoints.
pub(super) fn attribute_table(attribute: &str) -> String {
    format!("items.{attribute}")
}

/// Name of the id table in checkpoints.
pub const ID_TABLE: &str = "items.id";
