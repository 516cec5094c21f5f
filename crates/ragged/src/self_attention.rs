//! The attention half of a Transformer layer as one operation: `x + dropout(W_o attention(W_qkv norm(x)))`.
//!
//! A run of whole sequences passes through all steps while it is in one core's cache. The backward pass keeps the queries, keys
//! and values `[T, 3 d]`, the output of the attention `[T, d]` and its normalisers `[T, H]`; the rest is recomputed.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use schemas::config::Precision;

use super::attention::{self, Forward, Gradients, scales};
use super::dropout::AddDropped;
use super::packed::{Packed, PackedOp, Parts, apply, rows_a_part, sum};
use super::ragged::{AttentionLayout, Ragged, Scratch};
use super::{Dropout, Mat, add_dropped, fused, gemm, layer_norm, linear, reference, vector};

/// Minimum tokens of a run of sequences.
const TOKENS: usize = 128;

/// Parameters of [`self_attention`], for rows of `d` columns and `H` heads.
#[derive(Debug, Clone, Copy)]
pub struct SelfAttentionParameters<'a> {
    /// `γ` of the norm, `[d]`.
    pub gamma: &'a Tensor,
    /// `β` of the norm, `[d]`.
    pub beta: &'a Tensor,
    /// `W_qkv`, `[d, 3 d]`.
    pub qkv: &'a Tensor,
    /// `W_o`, `[d, d]`.
    pub out: &'a Tensor,
    /// `b_pos` and `b_time`, `[H, P + TIME_BUCKETS]`, or `b_pos` alone, `[H, P]`.
    pub bias: &'a Tensor,
    /// `log T_h`, `[H]`.
    pub log_temperature: &'a Tensor,
    /// `P`: larger distances share the last column of `b_pos`.
    pub max_distance: usize,
    /// Number format of products and attention on a GPU.
    pub precision: Precision,
}

/// Returns `x + dropout(W_o attention(W_qkv norm(x)))` for all tokens, `[T, d]` → `[T, d]`.
///
/// # Errors
///
/// Parameters or a layout that do not fit `x`.
pub fn self_attention(
    x: &Tensor,
    parameters: SelfAttentionParameters<'_>,
    layout: &Arc<AttentionLayout>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let SelfAttentionParameters { gamma, beta, qkv, out, bias, log_temperature, max_distance, precision } =
        parameters;
    let d = x.dim(1)?;
    let vectors = [(gamma, d), (beta, d), (log_temperature, bias.dim(0)?)];
    let fit =
        qkv.dims() == [d, 3 * d] && out.dims() == [d, d] && vectors.iter().all(|(v, n)| v.dims() == [*n]);
    if !fit {
        candle_core::bail!("self_attention: {:?} through {:?} and {:?}", x.shape(), qkv.shape(), out.shape());
    }
    let ragged = Ragged::new("self_attention", (x.dim(0)?, 3 * d), bias, layout, max_distance)?;
    let all = [gamma, beta, qkv, out, bias, log_temperature];
    if fused(x) {
        let Packed { flat, parts } = Packed::new(all)?;
        let op = SelfAttention { d, ragged, parts, dropout: AddDropped::new(dropout) };
        return apply(op, x, &flat);
    }
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(x) {
        let dropped = AddDropped::new(dropout);
        if let Some(y) = super::kernels::self_attention(x, all, ragged, precision, dropped)? {
            return Ok(y);
        }
    }
    let qkv = linear(&layer_norm(x, gamma, beta)?, qkv, None, precision)?;
    let attended = reference::attention(&qkv, bias, log_temperature, layout, max_distance)?;
    add_dropped(x, &linear(&attended, out, None, precision)?, dropout)
}

struct SelfAttention {
    d: usize,
    ragged: Ragged,
    parts: Parts<6>,
    dropout: AddDropped,
}

/// Results of the forward pass kept for the backward pass.
struct Kept {
    /// `[T, 3 d]`.
    qkv: Vec<f32>,
    /// Output of the attention, `[T, d]`.
    attended: Vec<f32>,
    /// `log Σ exp` of the scores, `[T, H]`.
    log_sum: Vec<f32>,
}

/// Working memory of one thread for a run of `n` tokens: `dqkv` is `[n, 3 d]`, the other tensors `[n, d]`.
#[derive(Default)]
struct Buffers {
    normal: Vec<f32>,
    narrow: Vec<f32>,
    dattended: Vec<f32>,
    dqkv: Vec<f32>,
    attention: Scratch,
}

/// Returns the first `n` elements of `buffer`, which grows if it is shorter.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

impl SelfAttention {
    fn sequences(&self) -> Range<usize> {
        0..self.ragged.layout.offsets.len() - 1
    }

    /// Returns the range of sequence `b` in a piece of `width` columns that covers `tokens`.
    fn within(&self, tokens: &Range<usize>, b: usize, width: usize) -> Range<usize> {
        let offsets = &self.ragged.layout.offsets;
        (offsets[b] - tokens.start) * width..(offsets[b + 1] - tokens.start) * width
    }

    /// Computes the gradients of one run of sequences: fills `dx`, adds to `dflat`.
    fn backward_run(
        &self,
        buffers: &mut Buffers,
        run: &Range<usize>,
        (x, flat, kept, dout): (&[f32], &[f32], &Kept, &[f32]),
        dx: &mut [f32],
        dflat: &mut [f32],
    ) {
        let (d, ragged) = (self.d, &self.ragged);
        let [gamma, beta, qkv, out, bias, log_temperature] = self.parts.split(flat);
        let [dgamma, dbeta, dqkv_weight, dout_weight, dbias, dlog_temperature] = self.parts.split_mut(dflat);
        let tokens = ragged.tokens_of(run);
        let n = tokens.len();
        let piece =
            |data: &'_ [f32], width: usize| tokens.start * width..(tokens.end * width).min(data.len());
        let (x, dout) = (&x[piece(x, d)], &dout[piece(dout, d)]);
        let attended = &kept.attended[piece(&kept.attended, d)];
        let narrow = sized(&mut buffers.narrow, n * d);
        self.dropout.apply(tokens.start * d, None, dout, narrow);
        let douter = Mat::new(narrow, n, d, d);
        gemm(dout_weight, d, true, Mat::new(attended, n, d, d).t(), douter);
        let dattended = sized(&mut buffers.dattended, n * d);
        gemm(dattended, d, false, douter, Mat::new(out, d, d, d).t());

        let scale = scales(log_temperature);
        let dqkv = sized(&mut buffers.dqkv, n * 3 * d);
        dqkv.fill(0.0);
        for b in run.clone() {
            let rows = |width| self.within(&tokens, b, width);
            let whole = |width| {
                let offsets = &ragged.layout.offsets;
                offsets[b] * width..offsets[b + 1] * width
            };
            let sequence = ragged.sequence_of(b, d, &kept.qkv[whole(3 * d)], bias);
            let forward = Forward { out: &attended[rows(d)], log_sum: &kept.log_sum[whole(ragged.heads)] };
            let gradients =
                Gradients { qkv: &mut dqkv[rows(3 * d)], bias: dbias, log_temperature: dlog_temperature };
            let dout = &dattended[rows(d)];
            attention::backward(&sequence, &scale, &mut buffers.attention, forward, dout, gradients);
        }
        let normal = sized(&mut buffers.normal, n * d);
        vector::widest(
            #[inline(always)]
            || layer_norm::forward(x, gamma, beta, normal),
        );
        let dqkv = Mat::new(dqkv, n, 3 * d, 3 * d);
        gemm(dqkv_weight, 3 * d, true, Mat::new(normal, n, d, d).t(), dqkv);
        gemm(normal, d, false, dqkv, Mat::new(qkv, d, 3 * d, 3 * d).t());
        vector::widest(
            #[inline(always)]
            || {
                layer_norm::backward_rows(x, gamma, normal, dx, dgamma, dbeta);
                vector::add_scaled(dx, 1.0, dout);
            },
        );
    }
}

impl PackedOp for SelfAttention {
    const NAME: &'static str = "self-attention";
    type Kept = Kept;

    fn forward(&self, x: &[f32], flat: &[f32]) -> (Vec<f32>, Kept) {
        let (d, ragged) = (self.d, &self.ragged);
        let [gamma, beta, qkv, out, bias, log_temperature] = self.parts.split(flat);
        let scale = scales(log_temperature);
        let mut y = vec![0f32; x.len()];
        let mut kept = Kept {
            qkv: vec![0f32; 3 * x.len()],
            attended: vec![0f32; x.len()],
            log_sum: vec![0f32; ragged.tokens() * ragged.heads],
        };
        let runs = ragged.runs(self.sequences(), TOKENS);
        ragged
            .pieces_of(&runs, &mut y, d)
            .into_par_iter()
            .zip(ragged.pieces_of(&runs, &mut kept.qkv, 3 * d))
            .zip(ragged.pieces_of(&runs, &mut kept.attended, d))
            .zip(ragged.pieces_of(&runs, &mut kept.log_sum, ragged.heads))
            .zip(&runs)
            .for_each_init(Buffers::default, |buffers, ((((y, qkv_rows), attended), log_sum), run)| {
                let tokens = ragged.tokens_of(run);
                let (n, first) = (tokens.len(), tokens.start * d);
                let x = &x[first..tokens.end * d];
                let normal = sized(&mut buffers.normal, n * d);
                vector::widest(
                    #[inline(always)]
                    || layer_norm::forward(x, gamma, beta, normal),
                );
                gemm(qkv_rows, 3 * d, false, Mat::new(normal, n, d, d), Mat::new(qkv, d, 3 * d, 3 * d));
                for b in run.clone() {
                    let rows = |width| self.within(&tokens, b, width);
                    let sequence = ragged.sequence_of(b, d, &qkv_rows[rows(3 * d)], bias);
                    let (out, log_sum) = (&mut attended[rows(d)], &mut log_sum[rows(ragged.heads)]);
                    attention::forward(&sequence, &scale, &mut buffers.attention, out, log_sum);
                }
                let narrow = sized(&mut buffers.narrow, n * d);
                gemm(narrow, d, false, Mat::new(attended, n, d, d), Mat::new(out, d, d, d));
                self.dropout.apply(first, Some(x), narrow, y);
            });
        (y, kept)
    }

    fn backward(&self, x: &[f32], flat: &[f32], kept: &Kept, dout: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (d, ragged) = (self.d, &self.ragged);
        let mut dx = vec![0f32; x.len()];
        let parts = ragged.runs(self.sequences(), rows_a_part(ragged.tokens(), TOKENS));
        let gradients: Vec<Vec<f32>> = ragged
            .pieces_of(&parts, &mut dx, d)
            .into_par_iter()
            .zip(&parts)
            .map_init(Buffers::default, |buffers, (mut dx, part)| {
                let mut dflat = vec![0f32; flat.len()];
                for run in ragged.runs(part.clone(), TOKENS) {
                    let elements = ragged.tokens_of(&run).len() * d;
                    let (of_run, rest) = std::mem::take(&mut dx).split_at_mut(elements);
                    self.backward_run(buffers, &run, (x, flat, kept, dout), of_run, &mut dflat);
                    dx = rest;
                }
                dflat
            })
            .collect();
        (dx, sum(gradients, flat.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::TIME_BUCKETS;
    use super::super::check::{self, layout};
    use super::*;

    fn run(t: &[Tensor], layout: &Arc<AttentionLayout>, dropout: Option<Dropout>) -> Result<Tensor> {
        let [x, gamma, beta, qkv, out, bias, log_temperature] = t else { unreachable!() };
        let precision = Precision::F32;
        let parameters = SelfAttentionParameters {
            gamma,
            beta,
            qkv,
            out,
            bias,
            log_temperature,
            max_distance: 4,
            precision,
        };
        self_attention(x, parameters, layout, dropout)
    }

    fn inputs(tokens: usize, d: usize) -> [Tensor; 7] {
        [
            check::random((tokens, d), 1),
            check::random(d, 2),
            check::random(d, 3),
            check::random((d, 3 * d), 4),
            check::random((d, d), 5),
            check::random((2, 4 + TIME_BUCKETS), 6),
            check::random(2, 7),
        ]
    }

    #[test]
    fn gradients_are_finite_differences() {
        let weight = check::random((8, 4), 9);
        for (keys, dropout) in
            [(None, Some(Dropout { p: 0.4, seed: 3 })), (Some(vec![1, 1, 2, 2, 5, 1, 2, 1]), None)]
        {
            let layout = layout(&[5, 3], keys);
            check::gradients(&inputs(8, 4), |t| (run(t, &layout, dropout)? * &weight)?.sum_all());
        }
    }

    #[test]
    fn agrees_with_stock_operations() {
        // Several runs and parts; sequences longer than a block and a run, of length one, and empty ones.
        let lengths = [70, 1, 0, 9, 130, 3, 64, 64, 200, 0];
        let tokens = lengths.iter().sum::<usize>();
        let positions = lengths.iter().flat_map(|&n| 0..n as u32);
        let fewer = positions.map(|i| (i / 3 + 1).min(i + 1)).collect();
        for (keys, dropout, columns) in
            [(None, Some(Dropout { p: 0.4, seed: 3 }), 4), (Some(fewer), None, 4 + TIME_BUCKETS)]
        {
            let layout = layout(&lengths, keys);
            let mut inputs = inputs(tokens, 8);
            inputs[5] = inputs[5].narrow(1, 0, columns).unwrap();
            check::agrees_with_stock(&inputs, 5e-3, |t| run(t, &layout, dropout));
        }
    }

    #[test]
    fn what_follows_cannot_change_a_row() {
        let layout = layout(&[100], None);
        let inputs = inputs(100, 8);
        let mut others = inputs.clone();
        let later = check::random((40, 8), 19);
        others[0] = Tensor::cat(&[inputs[0].narrow(0, 0, 60).unwrap(), later], 0).unwrap();
        let rows =
            |t: &[Tensor]| run(t, &layout, None).unwrap().narrow(0, 0, 60).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(rows(&inputs), rows(&others));
    }
}
