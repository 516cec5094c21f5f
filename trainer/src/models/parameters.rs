//! The trainable parameters by name, and their initial values.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, Var};
use rand_distr::{Distribution, Normal};
use schemas::config::Precision;

use super::SavedValues;
use crate::device::Backend;
use crate::random;

/// Dense parameters by name, as in checkpoints.
#[derive(Debug, Clone)]
pub struct Parameters {
    vars: BTreeMap<String, Var>,
    from: Values,
    backend: Backend,
}

/// Source of the values of new parameters.
#[derive(Debug, Clone)]
pub enum Values {
    /// Initial values that follow from this seed and each parameter's name.
    Seed(u64),
    /// Values saved under the same names; none is drawn.
    Saved(Arc<SavedValues>),
}

impl Parameters {
    /// Creates an empty set.
    pub fn new(from: Values, backend: Backend) -> Self {
        Self { vars: BTreeMap::new(), from, backend }
    }

    /// Returns the device that holds the values.
    pub fn device(&self) -> &Device {
        &self.backend.device
    }

    /// Returns the device and the precision.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Returns the number format of matrix products.
    pub fn precision(&self) -> Precision {
        self.backend.precision
    }

    /// Adds a parameter with initial values from `N(0, std²)`, or its saved values.
    ///
    /// # Errors
    ///
    /// The name is taken, or the saved value is missing or has another shape.
    pub fn normal(&mut self, name: &str, shape: &[usize], std: f64) -> Result<Tensor> {
        let values = self.values(name, shape, std)?;
        self.insert(name, values)
    }

    /// Returns values for `name` as [`normal`](Self::normal) does, without adding a parameter.
    ///
    /// # Errors
    ///
    /// The saved value is missing or has another shape.
    pub fn values(&self, name: &str, shape: &[usize], std: f64) -> Result<Tensor> {
        match &self.from {
            Values::Seed(seed) => {
                let values = normal(*seed, name, shape.iter().product(), std)?;
                Tensor::from_vec(values, shape, self.device())
            }
            Values::Saved(saved) => saved.copied(name, shape, self.device()),
        }
    }

    /// Adds a parameter with `value` everywhere, or its saved values.
    ///
    /// # Errors
    ///
    /// The name is taken, or the saved value is missing or has another shape.
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f32) -> Result<Tensor> {
        let values = match &self.from {
            Values::Seed(_) => Tensor::full(value, shape, self.device())?,
            Values::Saved(saved) => saved.copied(name, shape, self.device())?,
        };
        self.insert(name, values)
    }

    /// Releases the saved values, once all parameters exist.
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

    /// Iterates over the parameters in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }
}

/// Draws `n` values from `N(0, std²)` that follow from `seed` and `name`.
pub(crate) fn normal(seed: u64, name: &str, n: usize, std: f64) -> Result<Vec<f32>> {
    let mut generator = random::generator(seed, name, 0);
    let distribution = Normal::new(0.0, std).map_err(candle_core::Error::wrap)?;
    Ok((0..n).map(|_| distribution.sample(&mut generator) as f32).collect())
}
