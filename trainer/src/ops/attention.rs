//! Causal multi-head attention over ragged rows, with the position and time bias computed on the fly.
//!
//! For one head, row `i` attends to the keys `j` before `keys(i)` with the score
//!
//! ```text
//! s_ij = q_i · k_j / T_h + b_pos(i − j) + b_time(τ_i − τ_j)
//! ```
//!
//! Rows are worked through in blocks: one block of scores is all that is ever held, for one sequence and one
//! head a thread. The backward pass keeps `log Σ exp s` of each row from the forward pass and computes the
//! scores again.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::ragged::{AttentionLayout, Ragged, Scratch, Sequence};
use super::{Mat, cpu_tensor, f32_slice, fused, gemm, reference, vector, with_f32};

/// Attention over a ragged batch of `T` tokens.
///
/// `qkv` is `[T, 3 d]` (queries, keys, values); `bias` is `[H, P]` or `[H, P + TIME_BUCKETS]`, where the first
/// `P = max_distance` columns are `b_pos` (the last one for all larger distances) and the others `b_time`;
/// `log_temperature` is `[H]`, the logarithm of `T_h`. Gives `[T, d]`.
pub fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    log_temperature: &Tensor,
    layout: &Arc<AttentionLayout>,
    max_distance: usize,
) -> Result<Tensor> {
    let ragged = Ragged::new("attention", qkv.dims2()?, bias, layout, max_distance)?;
    if !fused(qkv) {
        return reference::attention(qkv, bias, log_temperature, layout, max_distance);
    }
    qkv.contiguous()?.apply_op3(bias, log_temperature, Attention { ragged, log_sum: OnceLock::new() })
}

struct Attention {
    ragged: Ragged,
    /// `log Σ_j exp s_ij`, `[T, H]`.
    log_sum: OnceLock<Vec<f32>>,
}

impl Attention {
    fn forward(&self, qkv: &[f32], bias: &[f32], log_temperature: &[f32]) -> Vec<f32> {
        let (tokens, heads) = (self.ragged.tokens(), self.ragged.heads);
        let d = qkv.len() / 3 / tokens.max(1);
        let scale = scales(log_temperature);
        let mut out = vec![0f32; tokens * d];
        let mut log_sum = vec![0f32; tokens * heads];
        self.ragged
            .pieces(&mut out, d)
            .into_par_iter()
            .zip(self.ragged.pieces(&mut log_sum, heads))
            .enumerate()
            .for_each_init(Scratch::default, |scratch, (b, (out, log_sum))| {
                forward(&self.ragged.sequence(b, qkv, bias), &scale, scratch, out, log_sum);
            });
        // The op is applied once; a second application would find the first one's sums.
        let _ = self.log_sum.set(log_sum);
        out
    }

    /// Gradients of `qkv`, `bias` and `log_temperature`.
    fn backward(
        &self,
        qkv: &[f32],
        bias: &[f32],
        log_temperature: &[f32],
        out: &[f32],
        dout: &[f32],
    ) -> Result<[Vec<f32>; 3]> {
        let Some(log_sum) = self.log_sum.get() else {
            candle_core::bail!("attention: backward before forward");
        };
        let (tokens, heads) = (self.ragged.tokens(), self.ragged.heads);
        let d = out.len() / tokens.max(1);
        let scale = scales(log_temperature);
        let mut dqkv = vec![0f32; qkv.len()];
        let partial: Vec<(Vec<f32>, Vec<f32>)> = self
            .ragged
            .pieces(&mut dqkv, 3 * d)
            .into_par_iter()
            .enumerate()
            .map_init(Scratch::default, |scratch, (b, dqkv)| {
                let sequence = self.ragged.sequence(b, qkv, bias);
                let rows = |width: usize| sequence.start * width..(sequence.start + sequence.n) * width;
                let forward = Forward { out: &out[rows(d)], log_sum: &log_sum[rows(heads)] };
                let (mut dbias, mut dlog_temperature) = (vec![0f32; bias.len()], vec![0f32; heads]);
                let gradients =
                    Gradients { qkv: dqkv, bias: &mut dbias, log_temperature: &mut dlog_temperature };
                backward(&sequence, &scale, scratch, forward, &dout[rows(d)], gradients);
                (dbias, dlog_temperature)
            })
            .collect();
        let mut dbias = vec![0f32; bias.len()];
        let mut dlog_temperature = vec![0f32; heads];
        for (b, t) in &partial {
            vector::add_scaled(&mut dbias, 1.0, b);
            vector::add_scaled(&mut dlog_temperature, 1.0, t);
        }
        Ok([dqkv, dbias, dlog_temperature])
    }
}

/// `1 / T_h` of every head.
pub(super) fn scales(log_temperature: &[f32]) -> Vec<f32> {
    log_temperature.iter().map(|t| (-t).exp()).collect()
}

/// Scores of a block without bias: `scaled` gets `q·k / T_h`, rows `keys` apart.
fn scaled_products(
    sequence: &Sequence<'_>,
    scaled: &mut [f32],
    scale: f32,
    head: usize,
    (from, to, keys): (usize, usize, usize),
) {
    sequence.products(scaled, head, from, to, keys);
    vector::widest(
        #[inline(always)]
        || vector::scale(&mut scaled[..(to - from) * keys], scale),
    );
}

/// Attention of one sequence: fills `out`, `[n, d]`, and `log_sum`, `[n, H]`.
pub(super) fn forward(
    sequence: &Sequence<'_>,
    scale: &[f32],
    scratch: &mut Scratch,
    out: &mut [f32],
    log_sum: &mut [f32],
) {
    scratch.fit(sequence.n);
    let (heads, d) = (scale.len(), scale.len() * sequence.width);
    for (from, to, keys) in sequence.blocks() {
        sequence.time_buckets(&mut scratch.buckets, from, to, keys);
        for head in 0..heads {
            sequence.position_biases(&mut scratch.positions, head);
            let time = sequence.time_biases(head);
            scaled_products(sequence, &mut scratch.scores, scale[head], head, (from, to, keys));
            let Scratch { scores, positions, buckets, .. } = scratch;
            vector::widest(
                #[inline(always)]
                || {
                    for i in from..to {
                        let at = (i - from) * keys;
                        let (row, hidden) = scores[at..at + keys].split_at_mut(sequence.visible(i));
                        sequence.add_bias(row, i, positions, time, &buckets[at..at + keys]);
                        let max = vector::max(row);
                        let sum = vector::exp_shifted(row, max);
                        vector::scale(row, 1.0 / sum);
                        hidden.fill(0.0);
                        log_sum[i * heads + head] = max + sum.ln();
                    }
                },
            );
            let weights = Mat::new(&scratch.scores, to - from, keys, keys);
            let out = &mut out[from * d + head * sequence.width..];
            gemm(out, d, false, weights, sequence.part(2, head, 0, keys));
        }
    }
}

/// What the forward pass left of one sequence: `[n, d]` and `[n, H]`.
pub(super) struct Forward<'a> {
    pub(super) out: &'a [f32],
    pub(super) log_sum: &'a [f32],
}

/// Where the gradients of one sequence go.
pub(super) struct Gradients<'a> {
    /// `[n, 3 d]`, zeros at first.
    pub(super) qkv: &'a mut [f32],
    /// Added to.
    pub(super) bias: &'a mut [f32],
    /// Added to.
    pub(super) log_temperature: &'a mut [f32],
}

/// The gradients of one sequence.
pub(super) fn backward(
    sequence: &Sequence<'_>,
    scale: &[f32],
    scratch: &mut Scratch,
    Forward { out, log_sum }: Forward<'_>,
    dout: &[f32],
    Gradients { qkv: dqkv, bias: dbias, log_temperature: dlog_temperature }: Gradients<'_>,
) {
    scratch.fit(sequence.n);
    let (heads, width) = (scale.len(), sequence.width);
    let (d, columns) = (heads * width, sequence.columns());
    for head in 0..heads {
        sequence.position_biases(&mut scratch.positions, head);
        let time = sequence.time_biases(head);
        scratch.gradient.clear(sequence.n);
        for (from, to, keys) in sequence.blocks() {
            let rows = to - from;
            sequence.time_buckets(&mut scratch.buckets, from, to, keys);
            // The attention weights again, from the kept normalisers.
            scaled_products(sequence, &mut scratch.weights, scale[head], head, (from, to, keys));
            let Scratch { weights, positions, buckets, .. } = scratch;
            vector::widest(
                #[inline(always)]
                || {
                    for i in from..to {
                        let at = (i - from) * keys;
                        let (row, hidden) = weights[at..at + keys].split_at_mut(sequence.visible(i));
                        sequence.add_bias(row, i, positions, time, &buckets[at..at + keys]);
                        vector::exp_shifted(row, log_sum[i * heads + head]);
                        hidden.fill(0.0);
                    }
                },
            );
            let weights = Mat::new(&scratch.weights, rows, keys, keys);
            let dout_block = Mat::new(&dout[from * d + head * width..], rows, width, d);
            gemm(&mut dqkv[2 * d + head * width..], 3 * d, true, weights.t(), dout_block);

            // dS = P ∘ (dP − rowsum(dO ∘ O)), into `scores`.
            gemm(&mut scratch.scores, keys, false, dout_block, sequence.part(2, head, 0, keys).t());
            let Scratch { weights, scores, buckets, gradient, .. } = scratch;
            vector::widest(
                #[inline(always)]
                || {
                    for i in from..to {
                        let at = (i - from) * keys;
                        let of_row = i * d + head * width..i * d + (head + 1) * width;
                        let mean = vector::dot(&dout[of_row.clone()], &out[of_row]);
                        let dscores = &mut scores[at..at + keys];
                        for (ds, &p) in dscores.iter_mut().zip(&weights[at..at + keys]) {
                            *ds = p * (*ds - mean);
                        }
                        let visible = sequence.visible(i);
                        gradient.add(sequence, i, &dscores[..visible], &buckets[at..at + visible]);
                    }
                },
            );
            let dscores = Mat::new(&scratch.scores, rows, keys, keys);
            let dqueries = &mut dqkv[from * 3 * d + head * width..];
            gemm(dqueries, 3 * d, false, dscores, sequence.part(1, head, 0, keys));
            let dkeys = &mut dqkv[d + head * width..];
            gemm(dkeys, 3 * d, true, dscores.t(), sequence.part(0, head, from, rows));
        }
        scratch.gradient.store(sequence, &mut dbias[head * columns..(head + 1) * columns]);
        // Scores are (q · k) / T_h: so far the gradients of q and k lack the factor 1/T_h, and
        // Σ q · dq of the finished ones is −∂/∂ log T_h.
        for i in 0..sequence.n {
            let token = &mut dqkv[i * 3 * d..(i + 1) * 3 * d];
            for part in [0, d] {
                vector::scale(&mut token[part + head * width..][..width], scale[head]);
            }
            dlog_temperature[head] -= vector::dot(&token[head * width..][..width], sequence.query(head, i));
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "ragged-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(f32_slice(s1, l1)?, f32_slice(s2, l2)?, f32_slice(s3, l3)?);
        let (tokens, width) = l1.shape().dims2()?;
        Ok((CpuStorage::F32(out), (tokens, width / 3).into()))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        bias: &Tensor,
        log_temperature: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dqkv, dbias, dlog_temperature] = with_f32(qkv, |qkv| {
            with_f32(bias, |bias| {
                with_f32(log_temperature, |log_temperature| {
                    with_f32(out, |out| {
                        with_f32(dout, |dout| self.backward(qkv, bias, log_temperature, out, dout))
                    })
                })
            })
        })?;
        Ok((
            Some(cpu_tensor(dqkv, qkv.shape())?),
            Some(cpu_tensor(dbias, bias.shape())?),
            Some(cpu_tensor(dlog_temperature, log_temperature.shape())?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::TIME_BUCKETS;
    use super::super::check::{self, layout};
    use super::*;

    fn inputs(tokens: usize, heads: usize, columns: usize) -> [Tensor; 3] {
        [
            check::random((tokens, 3 * heads * 4), 1),
            check::random((heads, columns), 2),
            check::random(heads, 3),
        ]
    }

    #[test]
    fn agrees_with_stock_operations() {
        // Longer than a block, of length one, and empty.
        let layout = layout(&[70, 1, 0, 9, 130], None);
        for columns in [8, 8 + TIME_BUCKETS] {
            let [qkv, bias, temperature] = inputs(210, 2, columns);
            let fused = attention(&qkv, &bias, &temperature, &layout, 8).unwrap();
            let stock = reference::attention(&qkv, &bias, &temperature, &layout, 8).unwrap();
            assert!(check::distance(&fused, &stock) < 1e-5);
        }
    }

    #[test]
    fn gradients_agree_with_stock_operations() {
        let keys = (0..140).map(|i| if i < 70 { (i / 3 + 1).min(i + 1) } else { (i - 70) / 2 + 1 }).collect();
        for layout in [layout(&[70, 70], None), layout(&[70, 70], Some(keys))] {
            let inputs =
                inputs(140, 2, 16 + TIME_BUCKETS).map(|t| candle_core::Var::from_tensor(&t).unwrap());
            let [qkv, bias, temperature] = &inputs;
            let weight = check::random((140, 8), 5);
            let fused = (attention(qkv, bias, temperature, &layout, 16).unwrap() * &weight).unwrap();
            let stock =
                (reference::attention(qkv, bias, temperature, &layout, 16).unwrap() * &weight).unwrap();
            let (fused, stock) = (fused.backward().unwrap(), stock.backward().unwrap());
            for input in &inputs {
                let (a, b) = (fused.get(input).unwrap(), stock.get(input).unwrap());
                assert!(check::distance(a, b) < 1e-4, "{}", check::distance(a, b));
            }
        }
    }

    #[test]
    fn gradients_are_finite_differences() {
        for keys in [None, Some(vec![1, 1, 2, 2, 5, 1, 2, 1])] {
            let layout = layout(&[5, 3], keys);
            let weight = check::random((8, 8), 4);
            check::gradients(&inputs(8, 2, 4 + TIME_BUCKETS), |t| {
                (attention(&t[0], &t[1], &t[2], &layout, 4)? * &weight)?.sum_all()
            });
        }
    }

    #[test]
    fn what_follows_cannot_change_a_row() {
        let layout = layout(&[100], None);
        let [qkv, bias, temperature] = inputs(100, 2, 8 + TIME_BUCKETS);
        let other = Tensor::cat(&[qkv.narrow(0, 0, 60).unwrap(), check::random((40, 24), 9)], 0).unwrap();
        let rows = |qkv: &Tensor| {
            attention(qkv, &bias, &temperature, &layout, 8)
                .unwrap()
                .narrow(0, 0, 60)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
        };
        assert_eq!(rows(&qkv), rows(&other));
    }
}
