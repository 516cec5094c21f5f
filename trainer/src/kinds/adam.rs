//! Adam (Kingma and Ba, 2015) with accessible moments, which every checkpoint saves.
//!
//! Dense parameters are updated whole; in the id table, only the rows that a step touched. The other rows' moments do not decay,
//! and the bias correction follows the global step. Memory: 8 bytes a parameter.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{DType, Result, Tensor};
use ragged::adam::{Clipping, GradientNorm, Update, matrix};
use schemas::config::Pretrain;

use super::SavedLearner;
use crate::models::{CONDITION_PREFIX, ID_TABLE, SequenceModel, TouchedRows};

/// Moments of every parameter, and the number of steps taken.
#[derive(Debug, Clone)]
pub struct Adam {
    /// For each parameter of `n` rows and `c` columns, `[n, 2 c]`: first moments, then second.
    moments: BTreeMap<String, Tensor>,
    steps: u64,
    settings: AdamSettings,
}

/// Settings of a step besides its learning rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamSettings {
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Maximum norm of the gradient; larger gradients are scaled down to it.
    pub clip_norm: f64,
}

impl From<&Pretrain> for AdamSettings {
    fn from(&Pretrain { weight_decay, clip_norm, .. }: &Pretrain) -> Self {
        Self { weight_decay, clip_norm }
    }
}

/// Learning rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// Rate of the parameters that pre-training learns.
    pub pretrained: f64,
    /// Rate of the instruction parameters.
    pub conditions: f64,
}

impl From<f64> for LearningRates {
    fn from(rate: f64) -> Self {
        Self { pretrained: rate, conditions: rate }
    }
}

impl Adam {
    /// Creates the state for a new model, with zero moments.
    ///
    /// # Errors
    ///
    /// A tensor operation failed.
    pub fn new(model: &SequenceModel, settings: AdamSettings) -> Result<Self> {
        let moments = model
            .tensors()
            .into_iter()
            .map(|(name, value)| {
                let (rows, columns) = matrix(&value);
                Ok((name, Tensor::zeros((rows, 2 * columns), DType::F32, value.device())?))
            })
            .collect::<Result<_>>()?;
        Ok(Self { moments, steps: 0, settings })
    }

    /// Restores the state that was `saved` with `model`.
    ///
    /// # Errors
    ///
    /// The moments of a parameter are missing or have another shape.
    pub fn restored(model: &SequenceModel, saved: SavedLearner<'_>, settings: AdamSettings) -> Result<Self> {
        let restore = |(name, value): (String, Tensor)| {
            let (rows, columns) = matrix(&value);
            let moments = saved.values.copied(&name, &[rows, 2 * columns], value.device());
            Ok((name, moments.map_err(|e| e.context("the saved optimiser does not fit the model"))?))
        };
        let moments = model.tensors().into_iter().map(restore).collect::<Result<_>>()?;
        Ok(Self { moments, steps: saved.steps, settings })
    }

    /// Extends the state to a [grown](SequenceModel::grown) model; new rows start with zero moments.
    ///
    /// # Errors
    ///
    /// A parameter of `model` has no moments or fewer rows than them.
    pub fn grown(mut self, model: &SequenceModel) -> Result<Self> {
        for (name, value) in model.tensors() {
            let Some(moments) = self.moments.get_mut(&name) else {
                candle_core::bail!("no moments for parameter `{name}`");
            };
            let ((rows, columns), known) = (matrix(&value), moments.dim(0)?);
            match rows.checked_sub(known) {
                Some(0) => {}
                Some(new) => {
                    let zeros = Tensor::zeros((new, 2 * columns), DType::F32, moments.device())?;
                    *moments = Tensor::cat(&[&*moments, &zeros], 0)?;
                }
                None => candle_core::bail!("parameter `{name}` has become smaller"),
            }
        }
        Ok(self)
    }

    /// Returns the number of steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Returns the moments by parameter name.
    pub fn tensors(&self) -> HashMap<String, Tensor> {
        self.moments.iter().map(|(name, tensor)| (name.clone(), tensor.clone())).collect()
    }

    /// Takes one step: `weights -= rate · m̂ / (√v̂ + ε)`, with the gradient scaled down to `clip_norm`. Returns the gradient's
    /// norm before clipping.
    ///
    /// A parameter without a gradient (a branch without targets in this batch) stays as it is. A non-finite gradient changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// A tensor operation failed. On the CPU, the gradient is not finite; on a GPU, that error appears when its norm is read.
    pub fn step(
        &mut self,
        model: &SequenceModel,
        touched: &TouchedRows,
        gradients: &GradStore,
        rates: LearningRates,
    ) -> Result<GradientNorm> {
        let mut updates = Vec::new();
        for (name, var) in model.parameters().iter() {
            if let Some(gradient) = gradients.get(var) {
                updates.push((name, var.as_tensor(), gradient.contiguous()?, None));
            }
        }
        if let Some(gradient) = gradients.get(&touched.values) {
            updates.push((
                ID_TABLE,
                &model.ids().weight,
                gradient.contiguous()?,
                Some(touched.rows.numbers()),
            ));
        }
        let all: Vec<&Tensor> = updates.iter().map(|(_, _, gradient, _)| gradient).collect();
        let clipping = Clipping::of(&all, self.settings.clip_norm)?;
        self.steps += 1;
        for (name, weight, gradient, rows) in updates {
            let Some(moments) = self.moments.get(name) else {
                candle_core::bail!("no moments for parameter `{name}`");
            };
            let rate = if name.starts_with(CONDITION_PREFIX) { rates.conditions } else { rates.pretrained };
            Update::new(self.steps, rate, self.settings.weight_decay).apply(
                &clipping,
                (weight, moments),
                &gradient,
                rows,
            )?;
        }
        Ok(clipping.norm)
    }
}
