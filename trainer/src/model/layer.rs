//! What the layers of all architectures are made of, and the choice between them.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::{Architecture, Model};

use super::{Parameters, climber, hstu, sasrec};
use crate::ops::{self, AttentionLayout, Dropout};

/// One layer, of the backbone or of a branch: `[T, d]` → `[T, d]`. No row of a sequence depends on a later one.
#[derive(Debug, Clone)]
pub(super) enum Layer {
    Climber(climber::Layer),
    Sasrec(sasrec::Layer),
    Hstu(hstu::Layer),
}

impl Layer {
    /// A layer of `model`'s architecture whose parameters' names begin with `name`.
    pub(super) fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        Ok(match model.architecture {
            Architecture::ClimberPilot => Self::Climber(climber::Layer::new(parameters, name, model)?),
            Architecture::Sasrec => Self::Sasrec(sasrec::Layer::new(parameters, name, model)?),
            Architecture::Hstu => Self::Hstu(hstu::Layer::new(parameters, name, model)?),
        })
    }

    /// `[T, d]` → `[T, d]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layout: &Arc<AttentionLayout>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        match self {
            Self::Climber(layer) => layer.forward(x, layout, dropout),
            Self::Sasrec(layer) => layer.forward(x, layout, dropout),
            Self::Hstu(layer) => layer.forward(x, layout, dropout),
        }
    }
}

/// The dropout of one place in the model, from that of the step.
pub(super) fn at(dropout: Option<Dropout>, place: &str) -> Option<Dropout> {
    dropout.map(|Dropout { p, seed }| Dropout { p, seed: crate::random::derived(seed, place, 0) })
}

/// Standard deviation of the initial weights of a linear map: keeps the variance of what it is given.
pub(super) fn linear_std(inputs: usize) -> f64 {
    (1.0 / inputs as f64).sqrt()
}

/// γ and β of a layer norm.
#[derive(Debug, Clone)]
pub(super) struct Norm {
    pub(super) gamma: Tensor,
    pub(super) beta: Tensor,
}

impl Norm {
    pub(super) fn new(parameters: &mut Parameters, name: &str, d: usize) -> Result<Self> {
        Ok(Self {
            gamma: parameters.constant(&format!("{name}.gamma"), &[d], 1.0)?,
            beta: parameters.constant(&format!("{name}.beta"), &[d], 0.0)?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.gamma, &self.beta)
    }
}

/// `x + W₂ GELU(W₁ norm(x) + b₁) + b₂`, the inner width a multiple of `d`.
#[derive(Debug, Clone)]
pub(super) struct FeedForward {
    name: String,
    norm: Norm,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
}

impl FeedForward {
    /// `name` begins the parameters' names. What is added to the residual stream starts smaller by `residual`.
    pub(super) fn new(parameters: &mut Parameters, name: &str, model: &Model, residual: f64) -> Result<Self> {
        let (d, inner) = (model.d, model.d * model.feed_forward);
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm: Norm::new(parameters, &of("norm"), d)?,
            up: parameters.normal(&of("up"), &[d, inner], linear_std(d))?,
            up_bias: parameters.constant(&of("up_bias"), &[inner], 0.0)?,
            down: parameters.normal(&of("down"), &[inner, d], linear_std(inner) / residual)?,
            down_bias: parameters.constant(&of("down_bias"), &[d], 0.0)?,
            name: name.to_owned(),
        })
    }

    pub(super) fn forward(&self, x: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
        let parameters = ops::FeedForwardParameters {
            gamma: &self.norm.gamma,
            beta: &self.norm.beta,
            up: &self.up,
            up_bias: &self.up_bias,
            down: &self.down,
            down_bias: &self.down_bias,
        };
        ops::feed_forward(x, parameters, at(dropout, &self.name))
    }
}
