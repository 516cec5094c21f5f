//! The trainable parameters, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use rand_distr::{Distribution, Normal};
use schemas::config::Precision;

use super::SavedValues;
use crate::device::Backend;
use crate::random;

/// Dense parameters by name. Names are those of the checkpoint.
#[derive(Debug, Clone)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
    from: Values,
    backend: Backend,
}

/// Where new parameters have their values from.
#[derive(Debug, Clone)]
pub enum Values {
    /// Initial ones, which follow from a seed and each parameter's name.
    Seed(u64),
    /// Those that were saved under the same names. Nothing is drawn.
    Saved(Arc<SavedValues>),
}

impl Parameters {
    /// No parameters yet.
    pub fn new(from: Values, backend: Backend) -> Self {
        Self { vars: BTreeMap::new(), from, backend }
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

    /// A new parameter with initial values from `N(0, std²)`.
    pub fn normal(&mut self, name: &str, shape: &[usize], std: f64) -> Result<Tensor> {
        let values = self.values(name, shape, std)?;
        self.insert(name, values)
    }

    /// Values with this name and these initial values that are no parameter.
    pub fn values(&self, name: &str, shape: &[usize], std: f64) -> Result<Tensor> {
        match &self.from {
            Values::Seed(seed) => {
                let values = normal(*seed, name, shape.iter().product(), std)?;
                Tensor::from_vec(values, shape, self.device())
            }
            Values::Saved(saved) => saved.copied(name, shape, self.device()),
        }
    }

    /// A new parameter with one initial value everywhere.
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f32) -> Result<Tensor> {
        let values = match &self.from {
            Values::Seed(_) => Tensor::full(value, shape, self.device())?,
            Values::Saved(saved) => saved.copied(name, shape, self.device())?,
        };
        self.insert(name, values)
    }

    /// Lets go of saved values: all parameters are made.
    pub(super) fn complete(&mut self) {
        self.from = Values::Seed(0);
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
}

/// `n` values from `N(0, std²)` that follow from `seed` and `name`.
pub(crate) fn normal(seed: u64, name: &str, n: usize, std: f64) -> Result<Vec<f32>> {
    let mut generator = random::generator(seed, name, 0);
    let distribution = Normal::new(0.0, std).map_err(candle_core::Error::wrap)?;
    Ok((0..n).map(|_| distribution.sample(&mut generator) as f32).collect())
}
