//! SASRec (Kang and McAuley 2018, "Self-Attentive Sequential Recommendation") for comparison: learned absolute
//! positions and plain Transformer layers.
//!
//! Like its strong reimplementations it differs from the original: pre-norm layers on a residual stream that is
//! itself not normalised, a GELU feed-forward of `[model] feed_forward` times `d`, several heads.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use schemas::config::Model;

use super::Parameters;
use super::layer::{FeedForward, Norm, at, linear_std};
use crate::ops::{self, AttentionLayout, Dropout};

/// The learned vector of each position in a row.
///
/// Positions count from the row's start-of-sequence token, which has position 0, so that a row's tokens have the same
/// ones in training and in evaluation, whatever follows. Position `max_positions − 1` stands for all later ones: no
/// row of `sequences.max_len` events reaches beyond it, since its last event is never context.
#[derive(Debug, Clone)]
pub(super) struct Positions {
    /// `[max_positions, d]`.
    table: Tensor,
}

impl Positions {
    pub(super) fn new(parameters: &mut Parameters, model: &Model) -> Result<Self> {
        // As small as the items' embeddings before they are scaled, so that items dominate at first.
        Ok(Self { table: parameters.normal("positions", &[model.max_positions, model.d], 0.02)? })
    }

    /// Adds to each token of `x` (`[T, d]`) the vector of its position.
    pub(super) fn add(&self, x: &Tensor, layout: &AttentionLayout) -> Result<Tensor> {
        let last = self.table.dim(0)? - 1;
        let rows: Vec<u32> = layout.positions().map(|position| position.min(last) as u32).collect();
        let rows = Tensor::from_vec(rows, x.dim(0)?, x.device())?;
        x + self.table.index_select(&rows, 0)?
    }
}

/// `x + attention(norm(x))`, then `x + feed-forward(norm(x))`; the scores are `q·k / √d_k` and nothing else.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    name: String,
    norm: Norm,
    /// Queries, keys and values in one product, `[d, 3 d]`.
    qkv: Tensor,
    /// No bias, `[H, 1]`, and the fixed `log √d_k`, `[H]`: not learned.
    bias: Tensor,
    log_temperature: Tensor,
    out: Tensor,
    feed_forward: FeedForward,
}

impl Layer {
    pub(super) fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        let (d, heads) = (model.d, model.heads);
        // What is added to the residual stream starts smaller the more layers add to it.
        let residual = (2.0 * model.layers as f64).sqrt();
        let of = |part: &str| format!("{name}.{part}");
        let qkv = parameters.normal(&of("attention.qkv"), &[d, 3 * d], linear_std(d))?;
        let log_temperature = (((d / heads) as f64).sqrt().ln()) as f32;
        Ok(Self {
            norm: Norm::new(parameters, &of("attention.norm"), d)?,
            bias: Tensor::full(0f32, (heads, 1), qkv.device())?,
            log_temperature: Tensor::full(log_temperature, heads, qkv.device())?,
            qkv,
            out: parameters.normal(&of("attention.out"), &[d, d], linear_std(d) / residual)?,
            feed_forward: FeedForward::new(parameters, &of("feed_forward"), model, residual)?,
            name: name.to_owned(),
        })
    }

    /// `[T, d]` → `[T, d]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        layout: &Arc<AttentionLayout>,
        dropout: Option<Dropout>,
    ) -> Result<Tensor> {
        let parameters = ops::SelfAttentionParameters {
            gamma: &self.norm.gamma,
            beta: &self.norm.beta,
            qkv: &self.qkv,
            out: &self.out,
            bias: &self.bias,
            log_temperature: &self.log_temperature,
            // One shared column of zeros is the bias of every distance.
            max_distance: 1,
        };
        let x = ops::self_attention(x, parameters, layout, at(dropout, &format!("{}.attention", self.name)))?;
        self.feed_forward.forward(&x, dropout)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn late_positions_share_the_last_row() {
        let mut parameters = Parameters::new(1, Device::Cpu);
        let model = Model { d: 2, max_positions: 3, ..Model::default() };
        let positions = Positions::new(&mut parameters, &model).unwrap();
        let layout = AttentionLayout { offsets: vec![0, 5, 7], ..AttentionLayout::default() };
        let x = Tensor::zeros((7, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let rows = positions.add(&x, &layout).unwrap().to_vec2::<f32>().unwrap();
        let table = positions.table.to_vec2::<f32>().unwrap();
        let expected: Vec<_> = [0, 1, 2, 2, 2, 0, 1].iter().map(|&p: &usize| table[p].clone()).collect();
        assert_eq!(rows, expected);
    }
}
