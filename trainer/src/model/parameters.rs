//! The trainable parameters, by name.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Result, Tensor, Var};
use rand_distr::{Distribution, Normal};
use schemas::config::Precision;

use crate::device::Backend;
use crate::random;

/// Dense parameters by name. Names are those of the checkpoint.
#[derive(Debug, Clone)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
    seed: u64,
    backend: Backend,
}

impl Parameters {
    /// No parameters yet. Initial values follow from `seed` and each parameter's name.
    pub fn new(seed: u64, backend: Backend) -> Self {
        Self { vars: BTreeMap::new(), seed, backend }
    }

    /// Where the values are.
    pub fn device(&self) -> &Device {
        &self.backend.device
    }

    /// Where and how they compute.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// The numbers that they are multiplied as.
    pub fn precision(&self) -> Precision {
        self.backend.precision
    }

    /// A new parameter with values from `N(0, std²)`.
    pub fn normal(&mut self, name: &str, shape: &[usize], std: f64) -> Result<Tensor> {
        let values = normal(self.seed, name, shape.iter().product(), std)?;
        self.insert(name, Tensor::from_vec(values, shape, self.device())?)
    }

    /// A new parameter with one value everywhere.
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f32) -> Result<Tensor> {
        self.insert(name, Tensor::full(value, shape, self.device())?)
    }

    fn insert(&mut self, name: &str, value: Tensor) -> Result<Tensor> {
        let var = Var::from_tensor(&value)?;
        let tensor = var.as_tensor().clone();
        if self.vars.insert(name.to_owned(), var).is_some() {
            candle_core::bail!("two parameters are named {name}");
        }
        Ok(tensor)
    }

    /// All parameters in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Replaces every value by that of the same name, which must be there and have the same shape.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        for (name, var) in &self.vars {
            let Some(value) = tensors.get(name) else {
                candle_core::bail!("the checkpoint has no parameter `{name}`");
            };
            if value.shape() != var.shape() {
                candle_core::bail!(
                    "parameter `{name}` is {:?} in the checkpoint and {:?} in the model",
                    value.shape(),
                    var.shape()
                );
            }
            var.set(&value.to_device(var.device())?)?;
        }
        Ok(())
    }
}

/// `n` values from `N(0, std²)` that follow from `seed` and `name`.
pub(crate) fn normal(seed: u64, name: &str, n: usize, std: f64) -> Result<Vec<f32>> {
    let mut generator = random::generator(seed, name, 0);
    let distribution = Normal::new(0.0, std).map_err(candle_core::Error::wrap)?;
    Ok((0..n).map(|_| distribution.sample(&mut generator) as f32).collect())
}
