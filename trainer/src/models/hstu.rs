//! HSTU (Zhai et al. 2024, "Actions Speak Louder than Words", §3.1 and 3.2), for comparison: hierarchical sequential transduction
//! units.
//!
//! ```text
//! U, V, Q, K = SiLU(f₁(norm(X)))                                    Eq. 1
//! A V        = SiLU(Q Kᵀ + rab_pos + rab_time) / n · V               Eq. 2
//! Y          = X + f₂(norm(A V) ∘ U)                                 Eq. 3
//! ```
//!
//! `rab_pos` and `rab_time` are tables like those of Climber-Pilot's layer: over clipped distances, and over half octaves of the
//! time between two events. `n` is the number of keys that a row attends to (see [`ragged::pointwise_attention`]). There are no
//! feed-forward layers.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{AttentionLayout, Dropout, TIME_BUCKETS};
use schemas::config::{Model, Precision};

use super::Parameters;
use super::encoder::Encoder;
use super::layers::{Norm, at, linear_std};
use crate::data::{Token, as_u32s};

/// Units, and a final norm in place of branches.
#[derive(Debug)]
pub(super) struct Hstu {
    units: Vec<Unit>,
    norm: Norm,
}

impl Hstu {
    pub(super) fn new(parameters: &mut Parameters, model: &Model) -> Result<Self> {
        let units = (0..model.layers)
            .map(|l| Unit::new(parameters, &format!("backbone.{l}"), model))
            .collect::<Result<_>>()?;
        Ok(Self { units, norm: Norm::new(parameters, "branch.1.norm", model.d)? })
    }
}

impl Encoder for Hstu {
    fn backbone(&self, x: Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor> {
        self.units.iter().try_fold(x, |x, unit| unit.forward(&x, layout, dropout))
    }

    fn branch(
        &self,
        _k: usize,
        backbone: &Tensor,
        _layout: &Arc<AttentionLayout>,
        rows: &[Token],
        _dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        self.norm.forward(&ragged::gather(backbone, as_u32s(rows))?)
    }
}

/// One transduction unit, Eq. 1 to 3.
#[derive(Debug, Clone)]
struct Unit {
    name: String,
    norm: Norm,
    /// `f₁` in two parts: `[d, d]` for the gates `U`, `[d, 3 d]` for queries, keys and values.
    gate: Tensor,
    qkv: Tensor,
    /// `rab_pos` and, if configured, `rab_time`: `[heads, distances + time buckets]`.
    bias: Tensor,
    attended_norm: Norm,
    /// `f₂`: `[d, d]` and `[d]`.
    out: Tensor,
    out_bias: Tensor,
    max_distance: usize,
    precision: Precision,
}

impl Unit {
    fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        let (d, heads) = (model.d, model.heads);
        // The more layers add to the residual stream, the smaller their outputs start.
        let residual = (model.layers as f64).sqrt();
        let columns = model.max_distance + if model.time_bias { TIME_BUCKETS } else { 0 };
        let of = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm: Norm::new(parameters, &of("norm"), d)?,
            gate: parameters.normal(&of("gate"), &[d, d], linear_std(d))?,
            qkv: parameters.normal(&of("attention.qkv"), &[d, 3 * d], linear_std(d))?,
            bias: parameters.constant(&of("attention.bias"), &[heads, columns], 0.0)?,
            attended_norm: Norm::new(parameters, &of("attention.norm"), d)?,
            out: parameters.normal(&of("out"), &[d, d], linear_std(d) / residual)?,
            out_bias: parameters.constant(&of("out_bias"), &[d], 0.0)?,
            max_distance: model.max_distance,
            precision: parameters.precision(),
            name: name.to_owned(),
        })
    }

    /// Applies the unit: `[T, d]` → `[T, d]`.
    fn forward(&self, x: &Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor> {
        let normal = self.norm.forward(x)?;
        let gate = ragged::silu(&ragged::linear(&normal, &self.gate, None, self.precision)?)?;
        let qkv = ragged::silu(&ragged::linear(&normal, &self.qkv, None, self.precision)?)?;
        let attended = ragged::pointwise_attention(&qkv, &self.bias, layout, self.max_distance)?;
        let gated = (self.attended_norm.forward(&attended)? * gate)?;
        let outer = ragged::linear(&gated, &self.out, Some(&self.out_bias), self.precision)?;
        ragged::add_dropped(x, &outer, at(dropout, &self.name))
    }
}
