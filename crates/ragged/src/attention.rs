//! Causal multi-head attention over ragged rows, with position and time biases computed on the fly.
//!
//! For one head, row `i` attends to the keys `j < keys(i)` with the score
//!
//! ```text
//! s_ij = q_i · k_j / T_h + b_pos(i − j) + b_time(τ_i − τ_j)
//! ```
//!
//! Rows are processed in blocks of 64: a thread holds two blocks of scores, `[64, n]` for a sequence of `n` tokens, of one head
//! at a time. The backward pass keeps `log Σ exp s` of each row from the forward pass and recomputes the scores.

use super::ragged::{Scratch, Sequence};
use super::{Mat, gemm, vector};

/// Returns `1 / T_h` of every head.
pub(super) fn scales(log_temperature: &[f32]) -> Vec<f32> {
    log_temperature.iter().map(|t| (-t).exp()).collect()
}

/// Writes `q·k / T_h` of a block, without biases, to `scaled`, with rows `keys` apart.
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

/// Computes the attention of one sequence: fills `out` `[n, d]` and `log_sum` `[n, H]`.
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

/// Results of the forward pass for one sequence: `[n, d]` and `[n, H]`.
pub(super) struct Forward<'a> {
    pub(super) out: &'a [f32],
    pub(super) log_sum: &'a [f32],
}

/// Gradients of one sequence, to be written.
pub(super) struct Gradients<'a> {
    /// `[n, 3 d]`, zero on entry.
    pub(super) qkv: &'a mut [f32],
    /// `[H, columns]`, added to.
    pub(super) bias: &'a mut [f32],
    /// `[H]`, added to.
    pub(super) log_temperature: &'a mut [f32],
}

/// Computes the gradients of one sequence from `dout`, `[n, d]`.
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
            // Recomputes the attention weights from the kept normalisers.
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
        // The score is (q · k) / T_h, so dq and dk still lack the factor 1 / T_h. With it, Σ q · dq is −∂/∂ log T_h.
        for i in 0..sequence.n {
            let token = &mut dqkv[i * 3 * d..(i + 1) * 3 * d];
            for part in [0, d] {
                vector::scale(&mut token[part + head * width..][..width], scale[head]);
            }
            dlog_temperature[head] -= vector::dot(&token[head * width..][..width], sequence.query(head, i));
        }
    }
}
