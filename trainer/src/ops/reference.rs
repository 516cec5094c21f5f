//! The same operations from stock ones that keep gradients: the oracle of the fused operations, and the path
//! on devices that have none.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax;

use super::attention::{AttentionLayout, TIME_BUCKETS, time_bucket};
use super::bag::Bags;
use super::cross_entropy::{Candidates, Targets};
use super::layer_norm::EPSILON;

/// See [`super::layer_norm`]. Candle's fused one cuts the gradient.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    candle_nn::ops::layer_norm_slow(x, gamma, beta, EPSILON)
}

/// See [`super::bag_mean`].
pub fn bag_mean(table: &Tensor, bags: &Arc<Bags>) -> Result<Tensor> {
    let device = table.device();
    let (mut segments, mut weights) = (Vec::new(), Vec::new());
    for b in 0..bags.len() {
        let n = bags.get(b).len();
        segments.extend(std::iter::repeat_n(b as u32, n));
        weights.extend(std::iter::repeat_n(1.0 / n as f32, n));
    }
    let out = Tensor::zeros((bags.len(), table.dim(1)?), table.dtype(), device)?;
    if segments.is_empty() {
        return Ok(out);
    }
    let n = segments.len();
    let rows = table.index_select(&Tensor::from_slice(&bags.rows, n, device)?, 0)?;
    let rows = rows.broadcast_mul(&Tensor::from_vec(weights, (n, 1), device)?)?;
    out.index_add(&Tensor::from_vec(segments, n, device)?, &rows, 0)
}

/// See [`super::attention`]: one dense attention for each sequence.
pub fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    log_temperature: &Tensor,
    layout: &AttentionLayout,
    max_distance: usize,
) -> Result<Tensor> {
    let device = qkv.device();
    let (heads, columns) = bias.dims2()?;
    let d = qkv.dim(1)? / 3;
    let scale = log_temperature.neg()?.exp()?.reshape((heads, 1, 1))?;
    let mut outputs = Vec::new();
    for ends in layout.offsets.windows(2) {
        let (start, n) = (ends[0], ends[1] - ends[0]);
        if n == 0 {
            continue;
        }
        let rows = qkv.narrow(0, start, n)?;
        let part = |which: usize| {
            rows.narrow(1, which * d, d)?.reshape((n, heads, d / heads))?.transpose(0, 1)?.contiguous()
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let (mut distances, mut buckets, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..n {
            for j in 0..n {
                distances.push((i.saturating_sub(j)).min(max_distance - 1) as u32);
                let bucket =
                    if j == 0 { 0 } else { time_bucket(layout.times[start + i], layout.times[start + j]) };
                buckets.push(max_distance as u32 + u32::from(bucket));
                mask.push(if j < layout.keys(start, i) { 0.0 } else { f32::NEG_INFINITY });
            }
        }
        let lookup = |columns: Vec<u32>| {
            bias.contiguous()?
                .index_select(&Tensor::from_vec(columns, n * n, device)?, 1)?
                .reshape((heads, n, n))
        };
        let mut scores = q.matmul(&k.t()?)?.broadcast_mul(&scale)?.add(&lookup(distances)?)?;
        if columns == max_distance + TIME_BUCKETS {
            scores = scores.add(&lookup(buckets)?)?;
        }
        let scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, n, n), device)?)?;
        let out = softmax(&scores, 2)?.matmul(&v)?;
        outputs.push(out.transpose(0, 1)?.reshape((n, d))?);
    }
    if outputs.is_empty() {
        return Tensor::zeros((0, d), DType::F32, device);
    }
    Tensor::cat(&outputs, 0)
}

/// See [`super::cross_entropy`], with the whole matrix of logits in memory.
pub fn cross_entropy(
    hidden: &Tensor,
    items: &Tensor,
    targets: &Targets,
    candidates: &Candidates,
    label_smoothing: f64,
) -> Result<Tensor> {
    let device = hidden.device();
    let (rows, columns) = (hidden.dim(0)?, items.dim(0)?);
    let logits = hidden.matmul(&items.t()?)?;
    let mut total = Tensor::zeros((), DType::F32, device)?;
    for row in 0..rows {
        for (target, weight) in targets.row(row) {
            // Each target has its own set of competitors: everything, or the negatives and itself.
            let shift: Vec<f32> = (0..columns).map(|c| candidates.shift(row, c as u32, target)).collect();
            let logits = (logits.get(row)? + Tensor::from_vec(shift, columns, device)?)?;
            let log_p = candle_nn::ops::log_softmax(&logits, 0)?;
            let smoothed = if label_smoothing > 0.0 {
                ((log_p.get(target as usize)? * (1.0 - label_smoothing))?
                    + (log_p.mean_all()? * label_smoothing)?)?
            } else {
                log_p.get(target as usize)?
            };
            total = (total - (smoothed * f64::from(weight))?)?;
        }
    }
    Ok(total)
}
