//! SASRec (Kang and McAuley 2018, "Self-Attentive Sequential Recommendation"), for comparison: learned absolute positions and
//! plain Transformer layers.
//!
//! Like strong reimplementations, it departs from the original: pre-norm layers on an unnormalised residual stream, a GELU
//! feed-forward of width `[model] feed_forward` times `d`, several heads.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use ragged::{AttentionLayout, Dropout};
use schemas::config::Model;

use super::Parameters;
use super::encoder::Encoder;
use super::layers::{FeedForward, Norm, SelfAttention};
use crate::data::{Token, as_u32s};

/// Positions, layers, and a final norm in place of branches.
#[derive(Debug)]
pub(super) struct Sasrec {
    positions: Positions,
    layers: Vec<Layer>,
    norm: Norm,
}

impl Sasrec {
    pub(super) fn new(parameters: &mut Parameters, model: &Model) -> Result<Self> {
        let positions = Positions::new(parameters, model)?;
        let layers = (0..model.layers)
            .map(|l| Layer::new(parameters, &format!("backbone.{l}"), model))
            .collect::<Result<_>>()?;
        Ok(Self { positions, layers, norm: Norm::new(parameters, "branch.1.norm", model.d)? })
    }
}

impl Encoder for Sasrec {
    fn embed(&self, x: Tensor, layout: &AttentionLayout) -> Result<Tensor> {
        self.positions.add(&x, layout)
    }

    fn backbone(&self, x: Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor> {
        self.layers.iter().try_fold(x, |x, layer| layer.forward(&x, layout, dropout))
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

/// The learned vector of each position in a row.
///
/// Positions count from the start-of-sequence token, at 0, so a token has the same position in training and in evaluation,
/// whatever follows it. Position `max_positions − 1` stands for all later ones. A row of `sequences.max_len` events reaches at
/// most that position, since its last event is never context.
#[derive(Debug, Clone)]
struct Positions {
    /// `[max_positions, d]`.
    table: Tensor,
}

impl Positions {
    fn new(parameters: &mut Parameters, model: &Model) -> Result<Self> {
        // As small as the items' embeddings before scaling, so that items dominate at first.
        Ok(Self { table: parameters.normal("positions", &[model.max_positions, model.d], 0.02)? })
    }

    /// Adds to each token of `x` `[T, d]` the vector of its position.
    fn add(&self, x: &Tensor, layout: &AttentionLayout) -> Result<Tensor> {
        let last = self.table.dim(0)? - 1;
        let rows: Vec<u32> = layout.positions().map(|position| position.min(last) as u32).collect();
        x + ragged::gather(&self.table, &rows)?
    }
}

/// `x + attention(norm(x))`, then `x + feed-forward(norm(x))`, with plain scores `q·k / √d_k`.
#[derive(Debug, Clone)]
struct Layer {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

impl Layer {
    fn new(parameters: &mut Parameters, name: &str, model: &Model) -> Result<Self> {
        // The more layers add to the residual stream, the smaller their outputs start.
        let residual = (2.0 * model.layers as f64).sqrt();
        Ok(Self {
            attention: SelfAttention::plain(parameters, &format!("{name}.attention"), model, residual)?,
            feed_forward: FeedForward::new(parameters, &format!("{name}.feed_forward"), model, residual)?,
        })
    }

    /// Applies the layer: `[T, d]` → `[T, d]`.
    fn forward(&self, x: &Tensor, layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor> {
        self.feed_forward.forward(&self.attention.forward(x, layout, dropout)?, dropout)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::device::Backend;
    use crate::models::Values;

    #[test]
    fn late_positions_share_the_last_row() {
        let mut parameters = Parameters::new(Values::Seed(1), Backend::CPU);
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
