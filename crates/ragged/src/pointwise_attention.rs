//! Pointwise aggregated attention over ragged rows (HSTU, Zhai et al. 2024, Eq. 2), with position and time biases computed on the
//! fly.
//!
//! For one head, row `i` attends to the keys `j < keys(i)` with
//!
//! ```text
//! s_ij = q_i · k_j + b_pos(i − j) + b_time(τ_i − τ_j)        a_ij = SiLU(s_ij) / keys(i)
//! ```
//!
//! Nothing is normalised over the keys, so that the strength of an interest survives. The paper divides by a constant `n`, the
//! padded length; here the divisor is the number of keys of the row, because there is no padding. A row thus depends on nothing
//! that follows it.
//!
//! A thread holds two blocks of scores, `[64, n]` for a sequence of `n` tokens, of one head at a time. The backward pass
//! recomputes the scores and holds one gradient of the biases for each sequence.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::ragged::{AttentionLayout, Ragged, Scratch, Sequence};
use super::{Mat, cpu_tensor, f32_slice, fused, gemm, reference, vector, with_f32};

/// Returns the pointwise attention over a ragged batch of `T` tokens, `[T, d]`.
///
/// `qkv` is `[T, 3 d]` (queries, keys, values); `bias` is `[H, P]` or `[H, P + TIME_BUCKETS]`: the first `P = max_distance`
/// columns are `b_pos` (the last of them for all larger distances), the others `b_time`.
///
/// # Errors
///
/// Tensors and a layout that do not fit each other.
pub fn pointwise_attention(
    qkv: &Tensor,
    bias: &Tensor,
    layout: &Arc<AttentionLayout>,
    max_distance: usize,
) -> Result<Tensor> {
    let ragged = Ragged::new("pointwise attention", qkv.dims2()?, bias, layout, max_distance)?;
    if !fused(qkv) {
        return reference::pointwise_attention(qkv, bias, layout, max_distance);
    }
    qkv.contiguous()?.apply_op2(bias, PointwiseAttention { ragged })
}

struct PointwiseAttention {
    ragged: Ragged,
}

impl PointwiseAttention {
    fn forward(&self, qkv: &[f32], bias: &[f32]) -> Vec<f32> {
        let tokens = self.ragged.tokens();
        let d = qkv.len() / 3 / tokens.max(1);
        let mut out = vec![0f32; tokens * d];
        self.ragged.pieces(&mut out, d).into_par_iter().enumerate().for_each_init(
            Scratch::default,
            |scratch, (b, out)| {
                forward(&self.ragged.sequence(b, qkv, bias), self.ragged.heads, scratch, out);
            },
        );
        out
    }

    /// Returns the gradients of `qkv` and `bias`.
    fn backward(&self, qkv: &[f32], bias: &[f32], dout: &[f32]) -> [Vec<f32>; 2] {
        let d = qkv.len() / 3 / self.ragged.tokens().max(1);
        let mut dqkv = vec![0f32; qkv.len()];
        let partial: Vec<Vec<f32>> = self
            .ragged
            .pieces(&mut dqkv, 3 * d)
            .into_par_iter()
            .enumerate()
            .map_init(Scratch::default, |scratch, (b, dqkv)| {
                let sequence = self.ragged.sequence(b, qkv, bias);
                let dout = &dout[sequence.start * d..(sequence.start + sequence.n) * d];
                backward(&sequence, self.ragged.heads, scratch, dout, dqkv)
            })
            .collect();
        let mut dbias = vec![0f32; bias.len()];
        for b in &partial {
            vector::add_scaled(&mut dbias, 1.0, b);
        }
        [dqkv, dbias]
    }
}

fn forward(sequence: &Sequence<'_>, heads: usize, scratch: &mut Scratch, out: &mut [f32]) {
    scratch.fit(sequence.n);
    let d = heads * sequence.width;
    for (from, to, keys) in sequence.blocks() {
        sequence.time_buckets(&mut scratch.buckets, from, to, keys);
        for head in 0..heads {
            sequence.position_biases(&mut scratch.positions, head);
            let time = sequence.time_biases(head);
            sequence.products(&mut scratch.scores, head, from, to, keys);
            for i in from..to {
                let at = (i - from) * keys;
                let (row, hidden) = scratch.scores[at..at + keys].split_at_mut(sequence.visible(i));
                sequence.add_bias(row, i, &scratch.positions, time, &scratch.buckets[at..at + keys]);
                let share = 1.0 / row.len() as f32;
                for s in row {
                    *s *= share * vector::sigmoid(*s);
                }
                hidden.fill(0.0);
            }
            let weights = Mat::new(&scratch.scores, to - from, keys, keys);
            let out = &mut out[from * d + head * sequence.width..];
            gemm(out, d, false, weights, sequence.part(2, head, 0, keys));
        }
    }
}

/// Fills `dqkv` and returns this sequence's share of the gradient of the biases.
fn backward(
    sequence: &Sequence<'_>,
    heads: usize,
    scratch: &mut Scratch,
    dout: &[f32],
    dqkv: &mut [f32],
) -> Vec<f32> {
    scratch.fit(sequence.n);
    let width = sequence.width;
    let (d, columns) = (heads * width, sequence.columns());
    let mut dbias = vec![0f32; heads * columns];
    for head in 0..heads {
        sequence.position_biases(&mut scratch.positions, head);
        let time = sequence.time_biases(head);
        scratch.gradient.clear(sequence.n);
        for (from, to, keys) in sequence.blocks() {
            let rows = to - from;
            sequence.time_buckets(&mut scratch.buckets, from, to, keys);
            // Recomputes the weights a into `weights`, and from the same sigmoids the slopes da/ds into `scores`.
            sequence.products(&mut scratch.scores, head, from, to, keys);
            for i in from..to {
                let at = (i - from) * keys;
                let (slopes, hidden) = scratch.scores[at..at + keys].split_at_mut(sequence.visible(i));
                let (weights, hidden_weights) =
                    scratch.weights[at..at + keys].split_at_mut(sequence.visible(i));
                sequence.add_bias(slopes, i, &scratch.positions, time, &scratch.buckets[at..at + keys]);
                let share = 1.0 / slopes.len() as f32;
                for (s, weight) in slopes.iter_mut().zip(weights) {
                    let gate = vector::sigmoid(*s);
                    *weight = share * *s * gate;
                    *s = share * gate * (*s * (1.0 - gate) + 1.0);
                }
                hidden.fill(0.0);
                hidden_weights.fill(0.0);
            }
            let weights = Mat::new(&scratch.weights, rows, keys, keys);
            let dout_block = Mat::new(&dout[from * d + head * width..], rows, width, d);
            gemm(&mut dqkv[2 * d + head * width..], 3 * d, true, weights.t(), dout_block);

            // dS = slope ∘ dA, into `scores`.
            gemm(&mut scratch.weights, keys, false, dout_block, sequence.part(2, head, 0, keys).t());
            let block = rows * keys;
            for (slope, &da) in scratch.scores[..block].iter_mut().zip(&scratch.weights[..block]) {
                *slope *= da;
            }
            for i in from..to {
                let row = (i - from) * keys..(i - from) * keys + sequence.visible(i);
                scratch.gradient.add(sequence, i, &scratch.scores[row.clone()], &scratch.buckets[row]);
            }
            let dscores = Mat::new(&scratch.scores, rows, keys, keys);
            let dqueries = &mut dqkv[from * 3 * d + head * width..];
            gemm(dqueries, 3 * d, false, dscores, sequence.part(1, head, 0, keys));
            let dkeys = &mut dqkv[d + head * width..];
            gemm(dkeys, 3 * d, true, dscores.t(), sequence.part(0, head, from, rows));
        }
        scratch.gradient.store(sequence, &mut dbias[head * columns..(head + 1) * columns]);
    }
    dbias
}

impl CustomOp2 for PointwiseAttention {
    fn name(&self) -> &'static str {
        "ragged-pointwise-attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(f32_slice(s1, l1)?, f32_slice(s2, l2)?);
        let (tokens, width) = l1.shape().dims2()?;
        Ok((CpuStorage::F32(out), (tokens, width / 3).into()))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        bias: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dqkv, dbias] = with_f32(qkv, |qkv| {
            with_f32(bias, |bias| with_f32(dout, |dout| Ok(self.backward(qkv, bias, dout))))
        })?;
        Ok((Some(cpu_tensor(dqkv, qkv.shape())?), Some(cpu_tensor(dbias, bias.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::TIME_BUCKETS;
    use super::super::check::{self, layout};
    use super::*;

    fn inputs(tokens: usize, heads: usize, columns: usize) -> [Tensor; 2] {
        [check::random((tokens, 3 * heads * 4), 1), check::random((heads, columns), 2)]
    }

    #[test]
    fn agrees_with_stock_operations() {
        // Sequences longer than a block, of length one, and empty.
        let layout = layout(&[70, 1, 0, 9, 130], None);
        for columns in [8, 8 + TIME_BUCKETS] {
            let [qkv, bias] = inputs(210, 2, columns);
            let fused = pointwise_attention(&qkv, &bias, &layout, 8).unwrap();
            let stock = reference::pointwise_attention(&qkv, &bias, &layout, 8).unwrap();
            assert!(check::distance(&fused, &stock) < 1e-5);
        }
    }

    #[test]
    fn gradients_agree_with_stock_operations() {
        let keys = (0..140).map(|i| if i < 70 { (i / 3 + 1).min(i + 1) } else { (i - 70) / 2 + 1 }).collect();
        for layout in [layout(&[70, 70], None), layout(&[70, 70], Some(keys))] {
            let inputs =
                inputs(140, 2, 16 + TIME_BUCKETS).map(|t| candle_core::Var::from_tensor(&t).unwrap());
            let [qkv, bias] = &inputs;
            let weight = check::random((140, 8), 5);
            let fused = check::of(|| pointwise_attention(qkv, bias, &layout, 16)? * &weight);
            let stock = check::of(|| reference::pointwise_attention(qkv, bias, &layout, 16)? * &weight);
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
                (pointwise_attention(&t[0], &t[1], &layout, 4)? * &weight)?.sum_all()
            });
        }
    }

    #[test]
    fn a_row_does_not_depend_on_what_follows() {
        let all = layout(&[100], None);
        let [qkv, bias] = inputs(100, 2, 8 + TIME_BUCKETS);
        let rows = |qkv: &Tensor, layout: &Arc<AttentionLayout>| {
            pointwise_attention(qkv, &bias, layout, 8).unwrap().narrow(0, 0, 60).unwrap()
        };
        let other = Tensor::cat(&[qkv.narrow(0, 0, 60).unwrap(), check::random((40, 24), 9)], 0).unwrap();
        assert_eq!(rows(&qkv, &all).to_vec2::<f32>().unwrap(), rows(&other, &all).to_vec2::<f32>().unwrap());
        // Nor on how many rows follow: the divisor is the number of its own keys.
        let alone = rows(&qkv.narrow(0, 0, 60).unwrap(), &layout(&[60], None));
        assert!(check::distance(&rows(&qkv, &all), &alone) < 1e-5);
    }
}
