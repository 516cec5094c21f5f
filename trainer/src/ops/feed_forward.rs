//! The feed-forward half of a Transformer layer as one operation: `x + dropout(W₂ GELU(W₁ norm(x) + b₁) + b₂)`.
//!
//! A block of rows goes through all of it while it is in one core's cache. Between the passes only `W₁ norm(x) + b₁` is
//! kept; the rest is computed again.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::activation::gelu;
use super::dropout::AddDropped;
use super::packed::{Packed, Parts, rows_a_part, sum};
use super::{
    Dropout, Mat, add_dropped, cpu_tensor, f32_slice, fused, gemm, layer_norm, linear, vector, with_f32,
};

/// Rows that go through together.
const ROWS: usize = 128;

/// The parameters of [`feed_forward`]: `γ` and `β` of the norm `[d]`, `W₁` `[d, f]`, `b₁` `[f]`, `W₂` `[f, d]`, `b₂`
/// `[d]`.
#[derive(Debug, Clone, Copy)]
pub struct FeedForwardParameters<'a> {
    /// `γ`.
    pub gamma: &'a Tensor,
    /// `β`.
    pub beta: &'a Tensor,
    /// `W₁`.
    pub up: &'a Tensor,
    /// `b₁`.
    pub up_bias: &'a Tensor,
    /// `W₂`.
    pub down: &'a Tensor,
    /// `b₂`.
    pub down_bias: &'a Tensor,
}

/// `x + dropout(W₂ GELU(W₁ norm(x) + b₁) + b₂)` for all tokens: `x` is `[T, d]`.
pub fn feed_forward(
    x: &Tensor,
    parameters: FeedForwardParameters<'_>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let FeedForwardParameters { gamma, beta, up, up_bias, down, down_bias } = parameters;
    if !fused(x) {
        let inner = linear(&layer_norm(x, gamma, beta)?, up, Some(up_bias))?;
        return add_dropped(x, &linear(&inner.gelu()?, down, Some(down_bias))?, dropout);
    }
    let (d, f) = up.dims2()?;
    let vectors = [(gamma, d), (beta, d), (up_bias, f), (down_bias, d)];
    if x.dim(1)? != d || down.dims() != [f, d] || vectors.iter().any(|(v, n)| v.dims() != [*n]) {
        candle_core::bail!("feed_forward: {:?} through {:?} and {:?}", x.shape(), up.shape(), down.shape());
    }
    let Packed { flat, parts } = Packed::new([gamma, beta, up, up_bias, down, down_bias])?;
    let op = FeedForward { d, f, parts, dropout: AddDropped::new(dropout), inner: OnceLock::new() };
    x.contiguous()?.apply_op2(&flat, op)
}

struct FeedForward {
    d: usize,
    f: usize,
    parts: Parts<6>,
    dropout: AddDropped,
    /// `W₁ norm(x) + b₁`, `[T, f]`.
    inner: OnceLock<Vec<f32>>,
}

/// One thread's working memory: blocks of rows.
struct Scratch {
    /// `[ROWS, d]`, twice.
    normal: Vec<f32>,
    narrow: Vec<f32>,
    /// `[ROWS, f]`, twice.
    active: Vec<f32>,
    wide: Vec<f32>,
}

impl FeedForward {
    fn scratch(&self) -> Scratch {
        let (narrow, wide) = (vec![0f32; ROWS * self.d], vec![0f32; ROWS * self.f]);
        Scratch { normal: narrow.clone(), narrow, active: wide.clone(), wide }
    }

    fn forward(&self, x: &[f32], flat: &[f32]) -> Vec<f32> {
        let (d, f) = (self.d, self.f);
        let [gamma, beta, up, up_bias, down, down_bias] = self.parts.split(flat);
        let mut out = vec![0f32; x.len()];
        let mut inner = vec![0f32; x.len() / d * f];
        out.par_chunks_mut(ROWS * d)
            .zip(inner.par_chunks_mut(ROWS * f))
            .zip(x.par_chunks(ROWS * d))
            .enumerate()
            .for_each_init(
                || self.scratch(),
                |Scratch { normal, narrow, active, .. }, (block, ((out, inner), x))| {
                    let n = x.len() / d;
                    vector::widest(
                        #[inline(always)]
                        || layer_norm::forward(x, gamma, beta, &mut normal[..n * d]),
                    );
                    gemm(inner, f, false, Mat::new(normal, n, d, d), Mat::new(up, d, f, f));
                    vector::widest(
                        #[inline(always)]
                        || activate(inner, up_bias, active),
                    );
                    gemm(narrow, d, false, Mat::new(active, n, f, f), Mat::new(down, f, d, d));
                    vector::widest(
                        #[inline(always)]
                        || narrow.chunks_exact_mut(d).for_each(|row| vector::add_scaled(row, 1.0, down_bias)),
                    );
                    self.dropout.apply(block * ROWS * d, Some(x), &narrow[..n * d], out);
                },
            );
        let _ = self.inner.set(inner);
        out
    }

    /// The gradients of `x` and of the parameters.
    fn backward(&self, x: &[f32], flat: &[f32], inner: &[f32], dout: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (d, f) = (self.d, self.f);
        let mut dx = vec![0f32; x.len()];
        let part = rows_a_part(x.len() / d, ROWS);
        let gradients: Vec<Vec<f32>> = dx
            .par_chunks_mut(part * d)
            .zip(x.par_chunks(part * d))
            .zip(inner.par_chunks(part * f))
            .zip(dout.par_chunks(part * d))
            .enumerate()
            .map_init(
                || self.scratch(),
                |scratch, (p, (((dx, x), inner), dout))| {
                    let mut dflat = vec![0f32; flat.len()];
                    let blocks = (dx.chunks_mut(ROWS * d).zip(x.chunks(ROWS * d)))
                        .zip(inner.chunks(ROWS * f).zip(dout.chunks(ROWS * d)));
                    for (block, ((dx, x), (inner, dout))) in blocks.enumerate() {
                        let first = (p * part + block * ROWS) * d;
                        self.backward_block(scratch, first, flat, (x, inner, dout), dx, &mut dflat);
                    }
                    dflat
                },
            )
            .collect();
        (dx, sum(gradients, flat.len()))
    }

    /// One block of rows, whose first element is element `first` of the batch: fills `dx`, adds to `dflat`.
    fn backward_block(
        &self,
        Scratch { normal, narrow, active, wide }: &mut Scratch,
        first: usize,
        flat: &[f32],
        (x, inner, dout): (&[f32], &[f32], &[f32]),
        dx: &mut [f32],
        dflat: &mut [f32],
    ) {
        let (d, f) = (self.d, self.f);
        let n = x.len() / d;
        let [gamma, beta, up, _, down, _] = self.parts.split(flat);
        let [dgamma, dbeta, dup, dup_bias, ddown, ddown_bias] = self.parts.split_mut(dflat);
        let (normal, narrow) = (&mut normal[..n * d], &mut narrow[..n * d]);
        let (active, wide) = (&mut active[..n * f], &mut wide[..n * f]);
        self.dropout.apply(first, None, dout, narrow);
        let douter = Mat::new(narrow, n, d, d);
        gemm(wide, f, false, douter, Mat::new(down, f, d, d).t());
        vector::widest(
            #[inline(always)]
            || {
                narrow.chunks_exact(d).for_each(|row| vector::add_scaled(ddown_bias, 1.0, row));
                activate_backward(inner, active, wide);
                wide.chunks_exact(f).for_each(|row| vector::add_scaled(dup_bias, 1.0, row));
                layer_norm::forward(x, gamma, beta, normal);
            },
        );
        gemm(ddown, d, true, Mat::new(active, n, f, f).t(), douter);
        let dinner = Mat::new(wide, n, f, f);
        gemm(dup, f, true, Mat::new(normal, n, d, d).t(), dinner);
        gemm(normal, d, false, dinner, Mat::new(up, d, f, f).t());
        vector::widest(
            #[inline(always)]
            || {
                layer_norm::backward_rows(x, gamma, normal, dx, dgamma, dbeta);
                vector::add_scaled(dx, 1.0, dout);
            },
        );
    }
}

/// Adds the bias to `inner`; `active` becomes its GELU.
#[inline(always)]
fn activate(inner: &mut [f32], bias: &[f32], active: &mut [f32]) {
    let f = bias.len();
    for (inner, active) in inner.chunks_exact_mut(f).zip(active.chunks_exact_mut(f)) {
        for ((inner, active), &bias) in inner.iter_mut().zip(active).zip(bias) {
            *inner += bias;
            *active = gelu(*inner).0;
        }
    }
}

/// `active` becomes the GELU of `inner`, and `gradient`, that of the GELU, that of `inner`.
#[inline(always)]
fn activate_backward(inner: &[f32], active: &mut [f32], gradient: &mut [f32]) {
    for ((&inner, active), gradient) in inner.iter().zip(active).zip(gradient) {
        let slope;
        (*active, slope) = gelu(inner);
        *gradient *= slope;
    }
}

impl CustomOp2 for FeedForward {
    fn name(&self) -> &'static str {
        "feed-forward"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(f32_slice(s1, l1)?, f32_slice(s2, l2)?);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        flat: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(inner) = self.inner.get() else {
            candle_core::bail!("feed_forward: backward before forward");
        };
        let (dx, dflat) = with_f32(x, |x| {
            with_f32(flat, |flat| with_f32(dout, |dout| Ok(self.backward(x, flat, inner, dout))))
        })?;
        Ok((Some(cpu_tensor(dx, x.shape())?), Some(cpu_tensor(dflat, flat.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{check, with_stock_operations};
    use super::*;

    fn run(t: &[Tensor], dropout: Option<Dropout>) -> Result<Tensor> {
        let [x, gamma, beta, up, up_bias, down, down_bias] = t else { unreachable!() };
        feed_forward(x, FeedForwardParameters { gamma, beta, up, up_bias, down, down_bias }, dropout)
    }

    fn inputs(rows: usize, d: usize, f: usize) -> [Tensor; 7] {
        [
            check::random((rows, d), 1),
            check::random(d, 2),
            check::random(d, 3),
            check::random((d, f), 4),
            check::random(f, 5),
            check::random((f, d), 6),
            check::random(d, 7),
        ]
    }

    #[test]
    fn gradients_are_finite_differences() {
        let weight = check::random((5, 4), 9);
        for dropout in [None, Some(Dropout { p: 0.4, seed: 3 })] {
            check::gradients(&inputs(5, 4, 6), |t| (run(t, dropout)? * &weight)?.sum_all());
        }
    }

    #[test]
    fn agrees_with_stock_operations() {
        // More rows than a block and a part; the last block is short.
        let rows = 5 * ROWS + 19;
        let weight = check::random((rows, 8), 9);
        for dropout in [None, Some(Dropout { p: 0.4, seed: 3 })] {
            let vars = inputs(rows, 8, 16).map(|t| candle_core::Var::from_tensor(&t).unwrap());
            let tensors = vars.clone().map(|v| v.as_tensor().clone());
            let fused = run(&tensors, dropout).unwrap();
            let stock = with_stock_operations(|| run(&tensors, dropout)).unwrap();
            assert!(check::distance(&fused, &stock) < 1e-4);
            let gradients = |out: Tensor| (out * &weight).unwrap().backward().unwrap();
            let (fused, stock) = (gradients(fused), gradients(stock));
            for var in &vars {
                let (a, b) = (fused.get(var).unwrap(), stock.get(var).unwrap());
                assert!(check::distance(a, b) < 2e-3, "{}", check::distance(a, b));
            }
        }
    }
}
