//! Attention of single rows: queries at some tokens of a ragged batch, each of which may have its own condition (CGSA, Eq. 5).
//!
//! A query at row `i` of its sequence attends to the keys that the row may see; under a condition only to the matching ones
//! (callers let the start token always match) and to the row's own, so that it always sees a key. For one head the score is
//!
//! ```text
//! s_j = q · k_j / T_h + b_pos(i − j) + b_time(τ_i − τ_j)
//! ```
//!
//! All queries of a sequence share its keys and values, which do not depend on the condition: `P` conditions cost `P` rows, not
//! `P` layers (§3.4.2). Scores of hidden keys are not computed. The backward pass keeps `log Σ exp s` of each query from the
//! forward pass and recomputes the scores.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::attention::scales;
use super::packed::{Packed, Parts, rows_a_part, sum};
use super::queries::{Queries, QueryPlan};
use super::ragged::{AttentionLayout, Ragged, time_bucket};
use super::{cpu_tensor, f32_slice, fused, reference, vector, with_f32};

/// Minimum tokens of a run of sequences, which one thread processes.
const TOKENS: usize = 128;

/// Returns `[R, d]`: the attention of queries `q` `[R, d]` to keys and values `kv` `[T, 2 d]`. `bias` is `[H, P]` or
/// `[H, P + TIME_BUCKETS]` with `P = max_distance`, `log_temperature` holds `log T_h` `[H]`.
///
/// # Errors
///
/// Tensors, layout and queries that do not fit each other; queries that do not ascend.
pub fn query_attention(
    q: &Tensor,
    kv: &Tensor,
    (bias, log_temperature): (&Tensor, &Tensor),
    (layout, queries): (&Arc<AttentionLayout>, &Arc<Queries>),
    max_distance: usize,
) -> Result<Tensor> {
    let (n, d) = q.dims2()?;
    let (tokens, width) = kv.dims2()?;
    let ragged = Ragged::new("query_attention", (tokens, width / 2 * 3), bias, layout, max_distance)?;
    if width != 2 * d || queries.tokens.len() != n || log_temperature.dims() != [ragged.heads] {
        candle_core::bail!("query_attention: {:?} asks {:?}", q.shape(), kv.shape());
    }
    if !queries.tokens.is_sorted() || queries.tokens.last().is_some_and(|&t| t as usize >= tokens) {
        candle_core::bail!("query_attention: queries stand in no order, or behind the last token");
    }
    let asked = QueryPlan::new(d, ragged, queries.clone())?;
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(q) && d / asked.ragged.heads <= super::kernels::QUERY_WIDTH {
        return super::kernels::query_attention(q, kv, (bias, log_temperature), asked);
    }
    if !fused(q) {
        let seen = (&queries.tokens[..], &asked.seen()[..]);
        return reference::query_attention(q, kv, bias, log_temperature, seen, layout, max_distance);
    }
    let Packed { flat, parts } = Packed::new([bias, log_temperature])?;
    q.contiguous()?.apply_op3(
        &kv.contiguous()?,
        &flat,
        QueryAttention { asked, parts, log_sum: OnceLock::new() },
    )
}

struct QueryAttention {
    asked: QueryPlan,
    parts: Parts<2>,
    /// `log Σ exp` of the scores, `[R, H]`.
    log_sum: OnceLock<Vec<f32>>,
}

/// Working memory of one thread, of the length of the keys that a query sees.
#[derive(Default)]
struct Scratch {
    keys: Vec<u32>,
    buckets: Vec<u8>,
    weights: Vec<f32>,
    dscores: Vec<f32>,
}

impl QueryAttention {
    /// Prepares `scratch` for query `r` of sequence `b`; returns the query's row.
    fn look(&self, b: usize, r: usize, scratch: &mut Scratch) -> usize {
        self.asked.keys(b, r, &mut scratch.keys);
        let start = self.asked.ragged.layout.offsets[b];
        let i = self.asked.queries.tokens[r] as usize - start;
        let times = &self.asked.ragged.layout.times;
        scratch.buckets.clear();
        if self.asked.ragged.time {
            let bucket = |&j: &u32| match j {
                0 => 0,
                j => time_bucket(times[start + i], times[start + j as usize]),
            };
            scratch.buckets.extend(scratch.keys.iter().map(bucket));
        }
        let n = scratch.keys.len();
        scratch.weights.resize(n, 0.0);
        scratch.dscores.resize(n, 0.0);
        i
    }

    /// Fills the scores of one head: `q` is the head's part of the query, `kv` the keys and values of the sequence.
    #[inline(always)]
    fn scores(
        &self,
        (head, i): (usize, usize),
        (q, kv, bias): (&[f32], &[f32], &[f32]),
        scale: f32,
        s: &mut Scratch,
    ) {
        let (d, width, max_distance) = (self.asked.d, q.len(), self.asked.ragged.max_distance);
        let bias = &bias[head * self.asked.ragged.columns()..][..self.asked.ragged.columns()];
        for (score, &j) in s.weights.iter_mut().zip(&s.keys) {
            let key = &kv[j as usize * 2 * d + head * width..][..width];
            *score = scale * vector::dot(q, key) + bias[(i - j as usize).min(max_distance - 1)];
        }
        for (score, &bucket) in s.weights.iter_mut().zip(&s.buckets) {
            *score += bias[max_distance + usize::from(bucket)];
        }
    }

    /// Computes the queries of sequence `b`: fills their part of `out` and `log_sum`.
    fn forward_sequence(
        &self,
        b: usize,
        scratch: &mut Scratch,
        (q, kv, flat): (&[f32], &[f32], &[f32]),
        (out, log_sum): (&mut [f32], &mut [f32]),
    ) {
        let (d, heads) = (self.asked.d, self.asked.ragged.heads);
        let width = d / heads;
        let [bias, log_temperature] = self.parts.split(flat);
        let scale = scales(log_temperature);
        let kv = &kv[self.asked.ragged.layout.offsets[b] * 2 * d..];
        for (place, r) in (self.asked.of_sequence[b]..self.asked.of_sequence[b + 1]).enumerate() {
            let i = self.look(b, r, scratch);
            for head in 0..heads {
                let q = &q[r * d + head * width..][..width];
                let out = &mut out[place * d + head * width..][..width];
                vector::widest(
                    #[inline(always)]
                    || {
                        self.scores((head, i), (q, kv, bias), scale[head], scratch);
                        let max = vector::max(&scratch.weights);
                        let sum = vector::exp_shifted(&mut scratch.weights, max);
                        for (&p, &j) in scratch.weights.iter().zip(&scratch.keys) {
                            let value = &kv[j as usize * 2 * d + d + head * width..][..width];
                            vector::add_scaled(out, p / sum, value);
                        }
                        log_sum[place * heads + head] = max + sum.ln();
                    },
                );
            }
        }
    }

    /// Computes the gradients of sequence `b`: fills its parts of `dq` and `dkv`, zero on entry, and adds to `dflat`.
    fn backward_sequence(
        &self,
        b: usize,
        scratch: &mut Scratch,
        (q, kv, flat, dout): (&[f32], &[f32], &[f32], &[f32]),
        (dq, dkv): (&mut [f32], &mut [f32]),
        dflat: &mut [f32],
    ) {
        let (d, heads, max_distance) =
            (self.asked.d, self.asked.ragged.heads, self.asked.ragged.max_distance);
        let (width, columns) = (d / heads, self.asked.ragged.columns());
        let [bias, log_temperature] = self.parts.split(flat);
        let [dbias, dlog_temperature] = self.parts.split_mut(dflat);
        let scale = scales(log_temperature);
        let Some(log_sum) = self.log_sum.get() else { return };
        let kv = &kv[self.asked.ragged.layout.offsets[b] * 2 * d..];
        for (place, r) in (self.asked.of_sequence[b]..self.asked.of_sequence[b + 1]).enumerate() {
            let i = self.look(b, r, scratch);
            for head in 0..heads {
                let of_query = r * d + head * width..r * d + (head + 1) * width;
                let (q, dout) = (&q[of_query.clone()], &dout[of_query]);
                let dq = &mut dq[place * d + head * width..][..width];
                let dbias = &mut dbias[head * columns..(head + 1) * columns];
                let dlog_temperature = &mut dlog_temperature[head];
                vector::widest(
                    #[inline(always)]
                    || {
                        self.scores((head, i), (q, kv, bias), scale[head], scratch);
                        let Scratch { keys, buckets, weights, dscores } = &mut *scratch;
                        vector::exp_shifted(weights, log_sum[r * heads + head]);
                        let mut mean = 0.0;
                        for ((ds, &p), &j) in dscores.iter_mut().zip(&*weights).zip(&*keys) {
                            let at = j as usize * 2 * d + head * width;
                            *ds = vector::dot(dout, &kv[at + d..][..width]);
                            mean += p * *ds;
                            vector::add_scaled(&mut dkv[at + d..][..width], p, dout);
                        }
                        for ((ds, &p), &j) in dscores.iter_mut().zip(&*weights).zip(&*keys) {
                            *ds = p * (*ds - mean);
                            let at = j as usize * 2 * d + head * width;
                            vector::add_scaled(dq, *ds * scale[head], &kv[at..][..width]);
                            vector::add_scaled(&mut dkv[at..][..width], *ds * scale[head], q);
                            dbias[(i - j as usize).min(max_distance - 1)] += *ds;
                        }
                        for (&ds, &bucket) in dscores.iter().zip(&*buckets) {
                            dbias[max_distance + usize::from(bucket)] += ds;
                        }
                        *dlog_temperature -= vector::dot(dq, q);
                    },
                );
            }
        }
    }

    /// Splits `[R, width]` into one piece for each run of sequences; the runs cover all sequences.
    fn pieces<'a>(&self, runs: &[Range<usize>], mut data: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        runs.iter()
            .map(|run| {
                let n = self.asked.of_sequence[run.end] - self.asked.of_sequence[run.start];
                let (piece, rest) = std::mem::take(&mut data).split_at_mut(n * width);
                data = rest;
                piece
            })
            .collect()
    }

    /// Returns the range of the queries of sequence `b` in a piece of `width` columns that begins with sequence `first`.
    fn within(&self, first: usize, b: usize, width: usize) -> Range<usize> {
        let from = self.asked.of_sequence[first];
        (self.asked.of_sequence[b] - from) * width..(self.asked.of_sequence[b + 1] - from) * width
    }

    fn backward(&self, q: &[f32], kv: &[f32], flat: &[f32], dout: &[f32]) -> [Vec<f32>; 3] {
        let (d, ragged) = (self.asked.d, &self.asked.ragged);
        let (mut dq, mut dkv) = (vec![0f32; q.len()], vec![0f32; kv.len()]);
        let runs = ragged.runs(0..self.asked.of_sequence.len() - 1, rows_a_part(ragged.tokens(), TOKENS));
        let parts: Vec<Vec<f32>> = self
            .pieces(&runs, &mut dq, d)
            .into_par_iter()
            .zip(ragged.pieces_of(&runs, &mut dkv, 2 * d))
            .zip(&runs)
            .map_init(Scratch::default, |scratch, ((dq, dkv), run)| {
                let mut dflat = vec![0f32; flat.len()];
                let first_token = ragged.layout.offsets[run.start];
                for b in run.clone() {
                    let dq = &mut dq[self.within(run.start, b, d)];
                    let dkv = &mut dkv[(ragged.layout.offsets[b] - first_token) * 2 * d..];
                    self.backward_sequence(b, scratch, (q, kv, flat, dout), (dq, dkv), &mut dflat);
                }
                dflat
            })
            .collect();
        [dq, dkv, sum(parts, flat.len())]
    }
}

impl CustomOp3 for QueryAttention {
    fn name(&self) -> &'static str {
        "query-attention"
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
        let (q, kv, flat) = (f32_slice(s1, l1)?, f32_slice(s2, l2)?, f32_slice(s3, l3)?);
        let (d, heads) = (self.asked.d, self.asked.ragged.heads);
        let mut out = vec![0f32; q.len()];
        let mut log_sum = vec![0f32; q.len() / d * heads];
        let runs = self.asked.ragged.runs(0..self.asked.of_sequence.len() - 1, TOKENS);
        self.pieces(&runs, &mut out, d)
            .into_par_iter()
            .zip(self.pieces(&runs, &mut log_sum, heads))
            .zip(&runs)
            .for_each_init(Scratch::default, |scratch, ((out, log_sum), run)| {
                for b in run.clone() {
                    let out = &mut out[self.within(run.start, b, d)];
                    let log_sum = &mut log_sum[self.within(run.start, b, heads)];
                    self.forward_sequence(b, scratch, (q, kv, flat), (out, log_sum));
                }
            });
        let _ = self.log_sum.set(log_sum);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        flat: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dkv, dflat] = with_f32(q, |q| {
            with_f32(kv, |kv| {
                with_f32(flat, |flat| with_f32(dout, |dout| Ok(self.backward(q, kv, flat, dout))))
            })
        })?;
        let tensor = |values, like: &Tensor| cpu_tensor(values, like.shape()).map(Some);
        Ok((tensor(dq, q)?, tensor(dkv, kv)?, tensor(dflat, flat)?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::TIME_BUCKETS;
    use super::super::check::{self, layout};
    use super::*;

    /// Returns queries at every `every`-th token, two at even tokens; under a condition, every third token of a sequence matches.
    fn queries(layout: &AttentionLayout, every: usize, condition: bool) -> Arc<Queries> {
        let mut queries = Queries { matches: condition.then(Vec::new), ..Queries::default() };
        for (token, i) in layout.positions().enumerate().filter(|(token, _)| token % every == 0) {
            for shift in 0..1 + usize::from(token % 2 == 0) {
                queries.tokens.push(token as u32);
                if let Some(matches) = &mut queries.matches {
                    matches.extend((0..=i).map(|j| (j + shift) % 3 == 0));
                }
            }
        }
        Arc::new(queries)
    }

    fn inputs(queries: usize, tokens: usize, d: usize) -> [Tensor; 4] {
        [
            check::random((queries, d), 1),
            check::random((tokens, 2 * d), 2),
            check::random((2, 4 + TIME_BUCKETS), 3),
            check::random(2, 4),
        ]
    }

    fn run(t: &[Tensor], layout: &Arc<AttentionLayout>, queries: &Arc<Queries>) -> Result<Tensor> {
        query_attention(&t[0], &t[1], (&t[2], &t[3]), (layout, queries), 4)
    }

    #[test]
    fn gradients_are_finite_differences() {
        for condition in [false, true] {
            let layout = layout(&[5, 3, 1], None);
            let queries = queries(&layout, 2, condition);
            let n = queries.tokens.len();
            let weight = check::random((n, 4), 9);
            check::gradients(&inputs(n, 9, 4), |t| (run(t, &layout, &queries)? * &weight)?.sum_all());
        }
    }

    #[test]
    fn agrees_with_stock_operations() {
        let lengths = [70, 1, 0, 9, 130, 3, 64, 200, 0];
        let tokens = lengths.iter().sum::<usize>();
        let fewer: Vec<u32> = lengths.iter().flat_map(|&n| 0..n as u32).map(|i| i / 3 + 1).collect();
        for (keys, every, condition, columns) in [
            (None, 1, false, 4),
            (None, 3, true, 4 + TIME_BUCKETS),
            (Some(fewer.clone()), 2, false, 4),
            (Some(fewer), 2, true, 4 + TIME_BUCKETS),
        ] {
            let layout = layout(&lengths, keys);
            let queries = queries(&layout, every, condition);
            let mut inputs = inputs(queries.tokens.len(), tokens, 8);
            inputs[2] = inputs[2].narrow(1, 0, columns).unwrap();
            check::agrees_with_stock(&inputs, 5e-3, |t| run(t, &layout, &queries));
        }
    }

    #[test]
    fn what_does_not_match_is_not_looked_at() {
        let layout = layout(&[100, 7], None);
        let queries = queries(&layout, 1, true);
        let inputs = inputs(queries.tokens.len(), 107, 8);
        let rows = |t: &[Tensor]| run(t, &layout, &queries).unwrap().to_vec2::<f32>().unwrap();
        let before = rows(&inputs);
        let matches = queries.matches.as_ref().unwrap();
        // Changes token 50 of the first sequence.
        let mut others = inputs.clone();
        let at = |token: usize| if token == 50 { 1f32 } else { 0.0 };
        let other =
            Tensor::from_vec((0..107).map(at).collect(), (107, 1), &candle_core::Device::Cpu).unwrap();
        others[1] = inputs[1].broadcast_add(&other).unwrap();
        let mut flags = 0;
        for (r, &token) in queries.tokens.iter().enumerate() {
            let i = if token < 100 { token } else { token - 100 } as usize;
            let looks = token < 100 && i >= 50 && (matches[flags + 50] || i == 50);
            assert_eq!(before[r] != rows(&others)[r], looks, "query {r} at token {token}");
            flags += i + 1;
        }
    }

    #[test]
    fn queries_that_do_not_fit_are_errors() {
        let layout = layout(&[3], None);
        for (tokens, matches) in [(vec![1, 0], None), (vec![0, 3], None), (vec![0, 1], Some(vec![true]))] {
            let queries = Arc::new(Queries { tokens, matches });
            assert!(run(&inputs(2, 3, 8), &layout, &queries).is_err());
        }
    }
}
