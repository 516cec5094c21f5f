//! Grows a model with its vocabulary: existing rows keep their values, new rows start at the mean of similar ones.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use schemas::config::{Model, Sft};

use super::items::attribute_table;
use super::{ID_TABLE, SequenceModel};
use crate::data::ItemIndex;
use crate::data::vocabulary::Vocabulary;

impl SequenceModel {
    /// Returns the model with rows added for `vocabulary`, a [grown](Vocabulary::grown) version of its own.
    ///
    /// A new item's row is the mean over its attribute values of each value's mean row, taken over the items that had a row and
    /// carry the value. An item that shares no value with them starts at the mean of all rows; so does a new value in its
    /// attribute's table.
    ///
    /// # Errors
    ///
    /// A tensor operation failed, or `vocabulary` does not fit the model.
    pub fn grown(&self, model: &Model, sft: &Sft, vocabulary: Arc<Vocabulary>) -> Result<Self> {
        let mut tensors = self.tensors();
        let mut grow = |name: &str, rows: usize, new: &dyn Fn(&Tensor, usize) -> Result<Tensor>| {
            // The new model reports missing parameters.
            let Some(known) = tensors.get(name) else { return Ok(()) };
            if let Some(more) = rows.checked_sub(known.dim(0)?).filter(|&more| more > 0) {
                let all = Tensor::cat(&[known, &new(known, more)?], 0)?;
                tensors.insert(name.to_owned(), all);
            }
            Ok::<_, candle_core::Error>(())
        };
        grow(ID_TABLE, vocabulary.id_rows(), &|known, _| {
            self.new_id_rows(&vocabulary)?.to_device(known.device())
        })?;
        for attribute in vocabulary.attributes() {
            let mean = |known: &Tensor, more| known.mean_keepdim(0)?.repeat((more, 1));
            grow(&attribute_table(&attribute.name), attribute.values.len(), &mean)?;
        }
        Self::saved(model, sft, vocabulary, tensors.into(), self.parameters.backend())
    }

    /// Computes initial values for the rows that `vocabulary` adds: `[new rows, d]`.
    fn new_id_rows(&self, vocabulary: &Vocabulary) -> Result<Tensor> {
        let d = self.d;
        let weight = self.ids().weight.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
        let rows = vocabulary.items_by_row();
        let items: Vec<ItemIndex> = rows.iter().map(|&(_, item)| item).collect();
        let (known, new) = rows.split_at(self.vocabulary.own_items());
        let row = |i: usize| &weight[known[i].0.index() * d..][..d];
        let mut all = Mean::new(d);
        (0..known.len()).for_each(|i| all.add(row(i)));
        let mut starts = vec![Mean::new(d); new.len()];
        for (a, attribute) in vocabulary.attributes().iter().enumerate() {
            let values = vocabulary.attribute_bags(a, &items);
            let mut by_value = vec![Mean::new(d); attribute.values.len()];
            for i in 0..known.len() {
                values.get(i).iter().for_each(|&value| by_value[value as usize].add(row(i)));
            }
            for (i, start) in (known.len()..).zip(&mut starts) {
                let means = values.get(i).iter().filter_map(|&value| by_value[value as usize].value());
                means.for_each(|mean| start.add(&mean));
            }
        }
        let zero = vec![0.0; d];
        let overall = all.value().unwrap_or(zero);
        let starts: Vec<f32> =
            starts.iter().flat_map(|start| start.value().unwrap_or_else(|| overall.clone())).collect();
        Tensor::from_vec(starts, (new.len(), d), &Device::Cpu)
    }
}

/// Running mean of vectors of length `d`, summed in 64 bits.
#[derive(Clone)]
struct Mean {
    sum: Vec<f64>,
    n: u64,
}

impl Mean {
    fn new(d: usize) -> Self {
        Self { sum: vec![0.0; d], n: 0 }
    }

    fn add(&mut self, vector: &[f32]) {
        self.n += 1;
        self.sum.iter_mut().zip(vector).for_each(|(sum, &x)| *sum += f64::from(x));
    }

    /// Returns the mean, `None` if nothing was added.
    fn value(&self) -> Option<Vec<f32>> {
        (self.n > 0).then(|| self.sum.iter().map(|sum| (sum / self.n as f64) as f32).collect())
    }
}
