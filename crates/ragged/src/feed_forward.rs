//! The feed-forward half of a Transformer layer as one operation: `x + dropout(W₂ GELU(W₁ norm(x) + b₁) + b₂)`.
//!
//! A block of rows passes through all steps while it is in one core's cache. Only `W₁ norm(x) + b₁`, `[T, f]`, is kept for the
//! backward pass; the rest is recomputed.

use candle_core::{Result, Tensor};
use rayon::prelude::*;
use schemas::config::Precision;

use super::activation::gelu;
use super::dropout::AddDropped;
use super::packed::{Packed, PackedOp, Parts, apply, rows_a_part, sum};
use super::{Dropout, Mat, add_dropped, fused, gemm, layer_norm, linear, vector};

/// Rows of a block.
const ROWS: usize = 128;

/// Parameters of [`feed_forward`], for rows of `d` columns.
#[derive(Debug, Clone, Copy)]
pub struct FeedForwardParameters<'a> {
    /// `γ` of the norm, `[d]`.
    pub gamma: &'a Tensor,
    /// `β` of the norm, `[d]`.
    pub beta: &'a Tensor,
    /// `W₁`, `[d, f]`.
    pub up: &'a Tensor,
    /// `b₁`, `[f]`.
    pub up_bias: &'a Tensor,
    /// `W₂`, `[f, d]`.
    pub down: &'a Tensor,
    /// `b₂`, `[d]`.
    pub down_bias: &'a Tensor,
    /// Number format of products on a GPU.
    pub precision: Precision,
}

/// Returns `x + dropout(W₂ GELU(W₁ norm(x) + b₁) + b₂)` for all tokens, `[T, d]` → `[T, d]`.
///
/// # Errors
///
/// Parameters whose shapes do not fit each other or `x`.
pub fn feed_forward(
    x: &Tensor,
    parameters: FeedForwardParameters<'_>,
    dropout: Option<Dropout>,
) -> Result<Tensor> {
    let FeedForwardParameters { gamma, beta, up, up_bias, down, down_bias, precision } = parameters;
    let (d, f) = up.dims2()?;
    let vectors = [(gamma, d), (beta, d), (up_bias, f), (down_bias, d)];
    if x.dim(1)? != d || down.dims() != [f, d] || vectors.iter().any(|(v, n)| v.dims() != [*n]) {
        candle_core::bail!("feed_forward: {:?} through {:?} and {:?}", x.shape(), up.shape(), down.shape());
    }
    let all = [gamma, beta, up, up_bias, down, down_bias];
    if fused(x) {
        let Packed { flat, parts } = Packed::new(all)?;
        let op = FeedForward { d, f, parts, dropout: AddDropped::new(dropout) };
        return apply(op, x, &flat);
    }
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(x) {
        let dropped = AddDropped::new(dropout);
        if let Some(y) = super::kernels::feed_forward(x, all, precision, dropped)? {
            return Ok(y);
        }
    }
    let inner = linear(&layer_norm(x, gamma, beta)?, up, Some(up_bias), precision)?;
    add_dropped(x, &linear(&inner.gelu()?, down, Some(down_bias), precision)?, dropout)
}

struct FeedForward {
    d: usize,
    f: usize,
    parts: Parts<6>,
    dropout: AddDropped,
}

/// Working memory of one thread: one block of rows.
struct Scratch {
    /// `normal` and `narrow`: `[ROWS, d]`.
    normal: Vec<f32>,
    narrow: Vec<f32>,
    /// `active` and `wide`: `[ROWS, f]`.
    active: Vec<f32>,
    wide: Vec<f32>,
}

impl FeedForward {
    fn scratch(&self) -> Scratch {
        let (narrow, wide) = (vec![0f32; ROWS * self.d], vec![0f32; ROWS * self.f]);
        Scratch { normal: narrow.clone(), narrow, active: wide.clone(), wide }
    }

    /// Computes the gradients of a block of rows, which begins at element `first` of the batch: fills `dx`, adds to `dflat`.
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

impl PackedOp for FeedForward {
    const NAME: &'static str = "feed-forward";
    /// `W₁ norm(x) + b₁`, `[T, f]`.
    type Kept = Vec<f32>;

    fn forward(&self, x: &[f32], flat: &[f32]) -> (Vec<f32>, Vec<f32>) {
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
        (out, inner)
    }

    fn backward(&self, x: &[f32], flat: &[f32], inner: &Vec<f32>, dout: &[f32]) -> (Vec<f32>, Vec<f32>) {
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
}

/// Adds the bias to `inner` and writes the GELU of the sum to `active`.
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

/// Writes the GELU of `inner` to `active`, and turns the gradient of the GELU in `gradient` into that of `inner`.
#[inline(always)]
fn activate_backward(inner: &[f32], active: &mut [f32], gradient: &mut [f32]) {
    for ((&inner, active), gradient) in inner.iter().zip(active).zip(gradient) {
        let slope;
        (*active, slope) = gelu(inner);
        *gradient *= slope;
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    fn run(t: &[Tensor], dropout: Option<Dropout>) -> Result<Tensor> {
        let [x, gamma, beta, up, up_bias, down, down_bias] = t else { unreachable!() };
        let precision = Precision::F32;
        feed_forward(
            x,
            FeedForwardParameters { gamma, beta, up, up_bias, down, down_bias, precision },
            dropout,
        )
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
        let inputs = inputs(5 * ROWS + 19, 8, 16);
        for dropout in [None, Some(Dropout { p: 0.4, seed: 3 })] {
            check::agrees_with_stock(&inputs, 2e-3, |t| run(t, dropout));
        }
    }
}
