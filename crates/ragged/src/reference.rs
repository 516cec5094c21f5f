//! The operations from stock ones that keep gradients: the oracle of the fused operations, and the path of devices without them.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use candle_nn::ops::softmax;

use super::arguments::{Bags, Candidates, NORM_EPSILON, Targets, UNIT_EPSILON};
use super::ragged::{AttentionLayout, TIME_BUCKETS, time_bucket};

/// See [`super::layer_norm`]. Candle's fused one cuts the gradient.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    candle_nn::ops::layer_norm_slow(x, gamma, beta, NORM_EPSILON)
}

/// See [`super::unit_rows`].
pub fn unit_rows(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + f64::from(UNIT_EPSILON))?.sqrt()?)
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

/// Returns the attention of [`super::self_attention()`] over `qkv` `[T, 3 d]`: one dense attention for each sequence.
pub fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    log_temperature: &Tensor,
    layout: &AttentionLayout,
    max_distance: usize,
) -> Result<Tensor> {
    let scale = log_temperature.neg()?.exp()?.reshape(((), 1, 1))?;
    dense(qkv, bias, layout, max_distance, |products, bias, keys| {
        let n = keys.len();
        let mask = by_key(keys, |visible| if visible { 0.0 } else { f32::NEG_INFINITY });
        let scores = products.broadcast_mul(&scale)?.add(bias)?;
        softmax(&scores.broadcast_add(&Tensor::from_vec(mask, (1, n, n), qkv.device())?)?, 2)
    })
}

/// See [`super::query_attention()`]: one query at a time. `seen` holds each query's sequence and the positions of its keys there.
pub(super) fn query_attention(
    q: &Tensor,
    kv: &Tensor,
    bias: &Tensor,
    log_temperature: &Tensor,
    (tokens, seen): (&[u32], &[(usize, Vec<u32>)]),
    layout: &AttentionLayout,
    max_distance: usize,
) -> Result<Tensor> {
    let device = q.device();
    let (heads, columns) = bias.dims2()?;
    let d = q.dim(1)?;
    let scale = log_temperature.neg()?.exp()?.reshape((heads, 1))?;
    let mut outputs = Vec::new();
    for (r, (sequence, keys)) in seen.iter().enumerate() {
        let (start, n) = (layout.offsets[*sequence], keys.len());
        let i = tokens[r] as usize - start;
        let index = |rows: Vec<u32>| Tensor::from_vec(rows, n, device);
        let rows = kv.index_select(&index(keys.iter().map(|j| start as u32 + j).collect())?, 0)?;
        let part = |which: usize| {
            rows.narrow(1, which * d, d)?.reshape((n, heads, d / heads))?.transpose(0, 1)?.contiguous()
        };
        let (k, v) = (part(0)?, part(1)?);
        let query = q.narrow(0, r, 1)?.reshape((heads, 1, d / heads))?;
        let distance = |&j: &u32| (i - j as usize).min(max_distance - 1) as u32;
        let mut biases = bias.contiguous()?.index_select(&index(keys.iter().map(distance).collect())?, 1)?;
        if columns > max_distance {
            let times = &layout.times[start..];
            let bucket = |&j: &u32| match j {
                0 => max_distance as u32,
                j => max_distance as u32 + u32::from(time_bucket(times[i], times[j as usize])),
            };
            biases =
                (biases + bias.contiguous()?.index_select(&index(keys.iter().map(bucket).collect())?, 1)?)?;
        }
        let scores = query.matmul(&k.t()?)?.reshape((heads, n))?.broadcast_mul(&scale)?.add(&biases)?;
        outputs.push(softmax(&scores, 1)?.reshape((heads, 1, n))?.matmul(&v)?.reshape((1, d))?);
    }
    if outputs.is_empty() {
        return Tensor::zeros((0, d), DType::F32, device);
    }
    Tensor::cat(&outputs, 0)
}

/// See [`super::pointwise_attention`]: one dense attention for each sequence.
pub fn pointwise_attention(
    qkv: &Tensor,
    bias: &Tensor,
    layout: &AttentionLayout,
    max_distance: usize,
) -> Result<Tensor> {
    dense(qkv, bias, layout, max_distance, |products, bias, keys| {
        let n = keys.len();
        let mask = by_key(keys, |visible| if visible { 1.0 } else { 0.0 });
        let share: Vec<f32> = keys.iter().map(|&visible| 1.0 / visible as f32).collect();
        products
            .add(bias)?
            .silu()?
            .broadcast_mul(&Tensor::from_vec(mask, (1, n, n), qkv.device())?)?
            .broadcast_mul(&Tensor::from_vec(share, (1, n, 1), qkv.device())?)
    })
}

/// Returns `weights(q kᵀ, bias, keys) v` of each sequence; the arguments are `[H, n, n]`, `[H, n, n]` and the number of keys of
/// each row.
fn dense(
    qkv: &Tensor,
    bias: &Tensor,
    layout: &AttentionLayout,
    max_distance: usize,
    weights: impl Fn(&Tensor, &Tensor, &[usize]) -> Result<Tensor>,
) -> Result<Tensor> {
    let device = qkv.device();
    let (heads, columns) = bias.dims2()?;
    let d = qkv.dim(1)? / 3;
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
        let (mut distances, mut buckets) = (Vec::new(), Vec::new());
        for i in 0..n {
            for j in 0..n {
                distances.push((i.saturating_sub(j)).min(max_distance - 1) as u32);
                let bucket =
                    if j == 0 { 0 } else { time_bucket(layout.times[start + i], layout.times[start + j]) };
                buckets.push(max_distance as u32 + u32::from(bucket));
            }
        }
        let lookup = |columns: Vec<u32>| {
            bias.contiguous()?
                .index_select(&Tensor::from_vec(columns, n * n, device)?, 1)?
                .reshape((heads, n, n))
        };
        let mut biases = lookup(distances)?;
        if columns == max_distance + TIME_BUCKETS {
            biases = biases.add(&lookup(buckets)?)?;
        }
        let keys: Vec<usize> = (0..n).map(|i| layout.keys(start, i)).collect();
        let out = weights(&q.matmul(&k.t()?)?, &biases, &keys)?.matmul(&v)?;
        outputs.push(out.transpose(0, 1)?.reshape((n, d))?);
    }
    if outputs.is_empty() {
        return Tensor::zeros((0, d), DType::F32, device);
    }
    Tensor::cat(&outputs, 0)
}

/// Returns, for each row and key, `value` of whether the row may attend to the key.
fn by_key(keys: &[usize], value: impl Fn(bool) -> f32) -> Vec<f32> {
    keys.iter().flat_map(|&visible| (0..keys.len()).map(move |j| j < visible)).map(value).collect()
}

/// See [`super::add_dropped`]; `factors` holds the factor of each element of `y`.
pub(super) fn add_dropped(x: &Tensor, y: &Tensor, factors: Vec<f32>) -> Result<Tensor> {
    let factors = Tensor::from_vec(factors, y.shape(), y.device())?;
    x + (y * factors)?
}

/// Maximum logits in one tensor of [`cross_entropy`], 64 MiB, unless one row has more.
const LOGITS: usize = 1 << 24;

/// See [`super::cross_entropy`]: [`LOGITS`] at a time, all of which are kept for the backward pass.
pub fn cross_entropy(
    hidden: &Tensor,
    items: &Tensor,
    targets: &Targets,
    candidates: &Candidates,
    label_smoothing: f64,
) -> Result<Tensor> {
    let (rows, columns) = (hidden.dim(0)?, items.dim(0)?);
    let mut total = Tensor::zeros((), DType::F32, hidden.device())?;
    let chunk = (LOGITS / columns.max(1)).max(1);
    for from in (0..rows).step_by(chunk) {
        let chunk = from..(from + chunk).min(rows);
        let logits = hidden.narrow(0, from, chunk.len())?.matmul(&items.t()?)?;
        total = (total + chunk_loss(logits, chunk, targets, candidates, label_smoothing)?)?;
    }
    Ok(total)
}

/// Returns `Σ w (log Σ exp s − (1 − ε) s_target − ε mean s)` over the targets of `rows`, whose logits are `logits`.
fn chunk_loss(
    mut logits: Tensor,
    rows: Range<usize>,
    targets: &Targets,
    candidates: &Candidates,
    label_smoothing: f64,
) -> Result<Tensor> {
    let device = logits.device().clone();
    let (n, columns) = logits.dims2()?;
    if let Some(shifts) = candidates.shifts(rows.clone(), columns, targets) {
        logits = (logits + Tensor::from_vec(shifts, (n, columns), &device)?)?;
    }
    // Each row's targets side by side, padded with targets of weight 0.
    let most = rows.clone().map(|row| targets.row(row).count()).max().unwrap_or(0).max(1);
    let (mut index, mut weights) = (vec![0u32; n * most], vec![0f32; n * most]);
    for (i, row) in rows.enumerate() {
        for (j, (target, weight)) in targets.row(row).enumerate() {
            (index[i * most + j], weights[i * most + j]) = (target, weight);
        }
    }
    let own = logits.gather(&Tensor::from_vec(index, (n, most), &device)?, 1)?;
    let weights = Tensor::from_vec(weights, (n, most), &device)?;
    // The shift that keeps exponents in range needs no gradient: it cancels out.
    let max = logits.detach().max_keepdim(1)?;
    let log_sum = (logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()? + max)?;
    let mut expected = (own * (1.0 - label_smoothing))?;
    if label_smoothing > 0.0 {
        expected = expected.broadcast_add(&(logits.mean_keepdim(1)? * label_smoothing)?)?;
    }
    (log_sum.broadcast_sub(&expected)? * weights)?.sum_all()
}
