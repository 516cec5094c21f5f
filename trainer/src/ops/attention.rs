//! Causal multi-head attention over ragged rows, with the position and time bias computed on the fly.
//!
//! For one head, row `i` attends to the keys `j` before `keys(i)` with the score
//!
//! ```text
//! s_ij = q_i · k_j / T_h + b_pos(i − j) + b_time(τ_i − τ_j)
//! ```
//!
//! Rows are worked through in blocks of [`BLOCK`]: one block of scores is all that is ever held, for one
//! sequence and one head a thread. The backward pass keeps `log Σ exp s` of each row from the forward pass
//! and computes the scores again.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Mat, cpu_tensor, f32_slice, gemm, reference, vector, with_f32};

/// Buckets of `b_time`: 0 for the start-of-sequence key, then half octaves of the seconds between two events.
pub const TIME_BUCKETS: usize = 64;

const BLOCK: usize = 64;

/// The shape of a ragged batch, as attention needs it; shared by all layers.
#[derive(Debug, Clone, Default)]
pub struct AttentionLayout {
    /// Where each sequence's tokens begin, and the end of the last: `B + 1` numbers.
    pub offsets: Vec<usize>,
    /// Time of each token in epoch milliseconds; the first token of a sequence is the start-of-sequence
    /// token and has none.
    pub times: Vec<i64>,
    /// How many keys of its sequence each token may attend to, from the first on; `None` is causal: a token
    /// attends to itself and everything before it.
    pub keys: Option<Vec<u32>>,
}

impl AttentionLayout {
    /// Keys of row `i` of the sequence whose tokens begin at `start`.
    #[inline]
    pub(super) fn keys(&self, start: usize, i: usize) -> usize {
        self.keys.as_ref().map_or(i + 1, |keys| keys[start + i] as usize)
    }
}

/// The bucket of `b_time` for an event at `later` that looks at one at `earlier` (epoch milliseconds).
#[inline]
pub fn time_bucket(later: i64, earlier: i64) -> u8 {
    let seconds = later.wrapping_sub(earlier).max(0) as f32 / 1000.0;
    // Exponent and first mantissa bit of 1 + seconds: two buckets an octave.
    let half_octaves = ((seconds + 1.0).to_bits() >> 22) - (127 << 1);
    (1 + half_octaves).min(TIME_BUCKETS as u32 - 1) as u8
}

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
    let (tokens, width) = qkv.dims2()?;
    let (heads, columns) = bias.dims2()?;
    if width % (3 * heads) != 0 || layout.offsets.last() != Some(&tokens) || layout.times.len() != tokens {
        candle_core::bail!("attention: {heads} heads over {tokens}×{width} do not fit the layout");
    }
    if columns != max_distance && columns != max_distance + TIME_BUCKETS {
        candle_core::bail!("attention: a bias of {columns} columns for max_distance {max_distance}");
    }
    if !qkv.device().is_cpu() {
        return reference::attention(qkv, bias, log_temperature, layout, max_distance);
    }
    let op = Attention {
        layout: layout.clone(),
        heads,
        max_distance,
        time: columns > max_distance,
        log_sum: OnceLock::new(),
    };
    qkv.contiguous()?.apply_op3(bias, log_temperature, op)
}

struct Attention {
    layout: Arc<AttentionLayout>,
    heads: usize,
    max_distance: usize,
    time: bool,
    /// `log Σ_j exp s_ij`, `[T, H]`.
    log_sum: OnceLock<Vec<f32>>,
}

/// One thread's working memory.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    weights: Vec<f32>,
    /// `b_pos` by key for the last row of the sequence: row `i` reads it from `n − 1 − i` on.
    positions: Vec<f32>,
    dpositions: Vec<f32>,
    buckets: Vec<u8>,
}

impl Scratch {
    /// For a sequence of `n` tokens. Buffers only grow; every use writes before it reads.
    fn fit(&mut self, n: usize) {
        let block = BLOCK * n;
        if self.scores.len() < block {
            self.scores.resize(block, 0.0);
            self.weights.resize(block, 0.0);
            self.buckets.resize(block, 0);
        }
        if self.positions.len() < n {
            self.positions.resize(n, 0.0);
            self.dpositions.resize(n, 0.0);
        }
    }
}

/// One sequence: where it lies, and the parameters.
struct Sequence<'a> {
    op: &'a Attention,
    start: usize,
    n: usize,
    /// Head width `d / H`.
    width: usize,
    qkv: &'a [f32],
    bias: &'a [f32],
    scale: &'a [f32],
}

impl Attention {
    fn columns(&self) -> usize {
        self.max_distance + if self.time { TIME_BUCKETS } else { 0 }
    }

    fn sequence<'a>(&'a self, b: usize, qkv: &'a [f32], bias: &'a [f32], scale: &'a [f32]) -> Sequence<'a> {
        let (start, end) = (self.layout.offsets[b], self.layout.offsets[b + 1]);
        let d = qkv.len() / self.layout.times.len() / 3;
        let qkv = &qkv[start * 3 * d..end * 3 * d];
        Sequence { op: self, start, n: end - start, width: d / self.heads, qkv, bias, scale }
    }

    /// Cuts a `[T, width]` slice into one piece a sequence.
    fn pieces<'a>(&self, mut data: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        self.layout
            .offsets
            .windows(2)
            .map(|ends| {
                let (piece, rest) = std::mem::take(&mut data).split_at_mut((ends[1] - ends[0]) * width);
                data = rest;
                piece
            })
            .collect()
    }

    fn forward(&self, qkv: &[f32], bias: &[f32], log_temperature: &[f32]) -> Vec<f32> {
        let (tokens, heads) = (self.layout.times.len(), self.heads);
        let d = qkv.len() / 3 / tokens.max(1);
        let scale: Vec<f32> = log_temperature.iter().map(|t| (-t).exp()).collect();
        let mut out = vec![0f32; tokens * d];
        let mut log_sum = vec![0f32; tokens * heads];
        self.pieces(&mut out, d)
            .into_par_iter()
            .zip(self.pieces(&mut log_sum, heads))
            .enumerate()
            .for_each_init(Scratch::default, |scratch, (b, (out, log_sum))| {
                self.sequence(b, qkv, bias, &scale).forward(scratch, out, log_sum);
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
        let (tokens, heads) = (self.layout.times.len(), self.heads);
        let d = out.len() / tokens.max(1);
        let scale: Vec<f32> = log_temperature.iter().map(|t| (-t).exp()).collect();
        let mut dqkv = vec![0f32; qkv.len()];
        let partial: Vec<(Vec<f32>, Vec<f32>)> = self
            .pieces(&mut dqkv, 3 * d)
            .into_par_iter()
            .enumerate()
            .map_init(Scratch::default, |scratch, (b, dqkv)| {
                let sequence = self.sequence(b, qkv, bias, &scale);
                let (start, end) = (sequence.start, sequence.start + sequence.n);
                let rows = |x: &'_ [f32], width: usize| start * width..(end * width).min(x.len());
                sequence.backward(
                    scratch,
                    &out[rows(out, d)],
                    &dout[rows(dout, d)],
                    &log_sum[rows(log_sum, heads)],
                    dqkv,
                )
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

impl Sequence<'_> {
    /// Queries (0), keys (1) or values (2) of `rows` rows from `from` on, for one head.
    fn part(&self, which: usize, head: usize, from: usize, rows: usize) -> Mat<'_> {
        let d = self.op.heads * self.width;
        let data = &self.qkv[from * 3 * d + which * d + head * self.width..];
        Mat::new(data, rows, self.width, 3 * d)
    }

    /// The row blocks: first row, end, and the largest number of keys of any of its rows.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..self.n).step_by(BLOCK).map(|from| {
            let to = (from + BLOCK).min(self.n);
            let keys = (from..to).map(|i| self.op.layout.keys(self.start, i)).max().unwrap_or(0);
            (from, to, keys)
        })
    }

    /// Fills the time buckets of a block, rows `keys` apart.
    fn time_buckets(&self, buckets: &mut [u8], from: usize, to: usize, keys: usize) {
        let times = &self.op.layout.times[self.start..self.start + self.n];
        for i in from..to {
            let row = &mut buckets[(i - from) * keys..][..keys];
            for (bucket, &earlier) in row.iter_mut().zip(&times[..keys]) {
                *bucket = time_bucket(times[i], earlier);
            }
            if let Some(first) = row.first_mut() {
                *first = 0;
            }
        }
    }

    /// Fills `positions` with `b_pos` of `head` by key, for the last row.
    fn position_biases(&self, positions: &mut [f32], head: usize) {
        let table = &self.bias[head * self.op.columns()..][..self.op.max_distance];
        for (m, p) in positions[..self.n].iter_mut().enumerate() {
            *p = table[(self.n - 1 - m).min(self.op.max_distance - 1)];
        }
    }

    fn time_biases(&self, head: usize) -> Option<&[f32; TIME_BUCKETS]> {
        let columns = self.op.columns();
        self.bias[head * columns..(head + 1) * columns][self.op.max_distance..].first_chunk()
    }

    /// Scores of a block: `scaled` gets `q·k / T_h`, rows `keys` apart.
    fn scaled_products(&self, scaled: &mut [f32], head: usize, from: usize, to: usize, keys: usize) {
        gemm(scaled, keys, false, self.part(0, head, from, to - from), self.part(1, head, 0, keys).t());
        for s in &mut scaled[..(to - from) * keys] {
            *s *= self.scale[head];
        }
    }

    fn add_bias(
        &self,
        row: &mut [f32],
        i: usize,
        positions: &[f32],
        time: Option<&[f32; TIME_BUCKETS]>,
        buckets: &[u8],
    ) {
        for (s, p) in row.iter_mut().zip(&positions[self.n - 1 - i..]) {
            *s += p;
        }
        if let Some(time) = time {
            for (s, &bucket) in row.iter_mut().zip(buckets) {
                *s += time[usize::from(bucket) % TIME_BUCKETS];
            }
        }
    }

    fn forward(&self, scratch: &mut Scratch, out: &mut [f32], log_sum: &mut [f32]) {
        scratch.fit(self.n);
        let (heads, d) = (self.op.heads, self.op.heads * self.width);
        for (from, to, keys) in self.blocks() {
            if self.op.time {
                self.time_buckets(&mut scratch.buckets, from, to, keys);
            }
            for head in 0..heads {
                self.position_biases(&mut scratch.positions, head);
                let time = self.time_biases(head);
                self.scaled_products(&mut scratch.scores, head, from, to, keys);
                for i in from..to {
                    let visible = self.op.layout.keys(self.start, i);
                    let at = (i - from) * keys;
                    let (row, hidden) = scratch.scores[at..at + keys].split_at_mut(visible);
                    self.add_bias(row, i, &scratch.positions, time, &scratch.buckets[at..at + keys]);
                    let max = vector::max(row);
                    vector::exp_shifted(row, max);
                    let sum = vector::sum(row);
                    for weight in row {
                        *weight /= sum;
                    }
                    hidden.fill(0.0);
                    log_sum[i * heads + head] = max + sum.ln();
                }
                let weights = Mat::new(&scratch.scores, to - from, keys, keys);
                gemm(
                    &mut out[from * d + head * self.width..],
                    d,
                    false,
                    weights,
                    self.part(2, head, 0, keys),
                );
            }
        }
    }

    /// Fills `dqkv`, and gives this sequence's share of the gradients of the biases and temperatures.
    fn backward(
        &self,
        scratch: &mut Scratch,
        out: &[f32],
        dout: &[f32],
        log_sum: &[f32],
        dqkv: &mut [f32],
    ) -> (Vec<f32>, Vec<f32>) {
        scratch.fit(self.n);
        let (heads, width, d) = (self.op.heads, self.width, self.op.heads * self.width);
        let columns = self.op.columns();
        let mut dbias = vec![0f32; heads * columns];
        let mut dlog_temperature = vec![0f32; heads];
        // Several tables, because consecutive keys often share a bucket and would wait for each other.
        let mut dtime = [[0f32; TIME_BUCKETS]; 4];
        for head in 0..heads {
            self.position_biases(&mut scratch.positions, head);
            let time = self.time_biases(head);
            scratch.dpositions[..self.n].fill(0.0);
            dtime.as_flattened_mut().fill(0.0);
            for (from, to, keys) in self.blocks() {
                let rows = to - from;
                if self.op.time {
                    self.time_buckets(&mut scratch.buckets, from, to, keys);
                }
                // The attention weights again, from the kept normalisers.
                self.scaled_products(&mut scratch.weights, head, from, to, keys);
                for i in from..to {
                    let visible = self.op.layout.keys(self.start, i);
                    let at = (i - from) * keys;
                    let (row, hidden) = scratch.weights[at..at + keys].split_at_mut(visible);
                    self.add_bias(row, i, &scratch.positions, time, &scratch.buckets[at..at + keys]);
                    vector::exp_shifted(row, log_sum[i * heads + head]);
                    hidden.fill(0.0);
                }
                let weights = Mat::new(&scratch.weights, rows, keys, keys);
                let dout_block = Mat::new(&dout[from * d + head * width..], rows, width, d);
                gemm(&mut dqkv[2 * d + head * width..], 3 * d, true, weights.t(), dout_block);

                // dS = P ∘ (dP − rowsum(dO ∘ O)), into `scores`.
                gemm(&mut scratch.scores, keys, false, dout_block, self.part(2, head, 0, keys).t());
                for i in from..to {
                    let at = (i - from) * keys;
                    let of_row = i * d + head * width..i * d + (head + 1) * width;
                    let mean = vector::dot(&dout[of_row.clone()], &out[of_row]);
                    let dscores = &mut scratch.scores[at..at + keys];
                    for (ds, &p) in dscores.iter_mut().zip(&scratch.weights[at..at + keys]) {
                        *ds = p * (*ds - mean);
                    }
                    let visible = self.op.layout.keys(self.start, i);
                    vector::add_scaled(
                        &mut scratch.dpositions[self.n - 1 - i..][..visible],
                        1.0,
                        &dscores[..visible],
                    );
                    if self.op.time {
                        for (j, (&ds, &bucket)) in
                            dscores[..visible].iter().zip(&scratch.buckets[at..at + visible]).enumerate()
                        {
                            dtime[j % 4][usize::from(bucket) % TIME_BUCKETS] += ds;
                        }
                    }
                }
                let dscores = Mat::new(&scratch.scores, rows, keys, keys);
                gemm(
                    &mut dqkv[from * 3 * d + head * width..],
                    3 * d,
                    false,
                    dscores,
                    self.part(1, head, 0, keys),
                );
                gemm(&mut dqkv[d + head * width..], 3 * d, true, dscores.t(), self.part(0, head, from, rows));
            }
            let table = &mut dbias[head * columns..(head + 1) * columns];
            for (m, dp) in scratch.dpositions[..self.n].iter().enumerate() {
                table[(self.n - 1 - m).min(self.op.max_distance - 1)] += dp;
            }
            for (bucket, d) in table[self.op.max_distance..].iter_mut().enumerate() {
                *d = dtime.iter().map(|t| t[bucket]).sum();
            }
            // Scores are (q · k) / T_h: so far the gradients of q and k lack the factor 1/T_h, and
            // Σ q · dq of the finished ones is −∂/∂ log T_h.
            for i in 0..self.n {
                let token = &mut dqkv[i * 3 * d..(i + 1) * 3 * d];
                for part in [0, d] {
                    for x in &mut token[part + head * width..][..width] {
                        *x *= self.scale[head];
                    }
                }
                let query = i * 3 * d + head * width..i * 3 * d + (head + 1) * width;
                dlog_temperature[head] -= vector::dot(&token[head * width..][..width], &self.qkv[query]);
            }
        }
        (dbias, dlog_temperature)
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
    use super::super::check;
    use super::*;

    fn layout(lengths: &[usize], keys: Option<Vec<u32>>) -> Arc<AttentionLayout> {
        let mut offsets = vec![0];
        let mut times = Vec::new();
        for &n in lengths {
            offsets.push(offsets[offsets.len() - 1] + n);
            times.extend((0..n as i64).map(|i| i * i * 1_700));
        }
        Arc::new(AttentionLayout { offsets, times, keys })
    }

    fn inputs(tokens: usize, heads: usize, columns: usize) -> [Tensor; 3] {
        [
            check::random((tokens, 3 * heads * 4), 1),
            check::random((heads, columns), 2),
            check::random(heads, 3),
        ]
    }

    #[test]
    fn time_buckets_are_half_octaves() {
        assert_eq!(time_bucket(0, 0), 1);
        assert_eq!(time_bucket(400, 0), 1);
        assert_eq!(time_bucket(500, 0), 2);
        assert_eq!(time_bucket(1_000, 0), 3);
        assert_eq!(time_bucket(900_000, 0), time_bucket(1_000_000, 0));
        assert!(time_bucket(i64::MAX, 0) < TIME_BUCKETS as u8);
        assert_eq!(time_bucket(0, 5), 1);
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
