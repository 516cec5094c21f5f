//! Layer norm over the last dimension, with its gradients.

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::arguments::NORM_EPSILON;
use super::{cpu_tensor, f32_slice, fused, reference, vector, with_f32};

const ROWS: usize = 256;

/// Returns `x` normalised over the last dimension: `γ (x − mean) / √(variance + ε) + β`, with ε = [`NORM_EPSILON`].
///
/// `x` is `[T, d]`; `gamma` and `beta` are `[d]`.
///
/// # Errors
///
/// Parameters whose shapes do not fit `x`.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    let d = x.dim(D::Minus1)?;
    if gamma.dims() != [d] || beta.dims() != [d] {
        candle_core::bail!("layer_norm: {:?} by {:?} and {:?}", x.shape(), gamma.shape(), beta.shape());
    }
    if fused(x) {
        return x.contiguous()?.apply_op3(gamma, beta, LayerNorm);
    }
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(x)
        && let Some(y) = super::kernels::layer_norm(x, gamma, beta)?
    {
        return Ok(y);
    }
    reference::layer_norm(x, gamma, beta)
}

struct LayerNorm;

/// Returns mean and reciprocal standard deviation of a row.
#[inline(always)]
fn moments(x: &[f32]) -> (f32, f32) {
    let mean = vector::sum(x) / x.len() as f32;
    let variance = vector::sum_of_squares(x, mean) / x.len() as f32;
    (mean, 1.0 / (variance + NORM_EPSILON).sqrt())
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
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
        let (x, gamma, beta) = (f32_slice(s1, l1)?, f32_slice(s2, l2)?, f32_slice(s3, l3)?);
        let d = gamma.len();
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d)).for_each(|(y, x)| {
            vector::widest(
                #[inline(always)]
                || forward(x, gamma, beta, y),
            );
        });
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _beta: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dgamma, dbeta) =
            with_f32(x, |x| with_f32(gamma, |gamma| with_f32(dy, |dy| Ok(backward(x, gamma, dy)))))?;
        let d = gamma.dims1()?;
        Ok((Some(cpu_tensor(dx, x.shape())?), Some(cpu_tensor(dgamma, d)?), Some(cpu_tensor(dbeta, d)?)))
    }
}

/// Fills `y` with the normalised rows of `x`.
#[inline(always)]
pub(super) fn forward(x: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
    let d = gamma.len();
    for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
        let (mean, rstd) = moments(x);
        for (((y, &x), &g), &b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = ((x - mean) * rstd).mul_add(g, b);
        }
    }
}

/// Fills `dx`; adds to `dgamma` and `dbeta`.
#[inline(always)]
pub(super) fn backward_rows(
    x: &[f32],
    gamma: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let d = gamma.len();
    for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
        let (mean, rstd) = moments(x);
        // `dx` first holds γ dy.
        for ((dx, &dy), &g) in dx.iter_mut().zip(dy).zip(gamma) {
            *dx = dy * g;
        }
        for (((dgamma, dbeta), &dy), &x) in dgamma.iter_mut().zip(dbeta.iter_mut()).zip(dy).zip(x) {
            *dgamma = ((x - mean) * rstd).mul_add(dy, *dgamma);
            *dbeta += dy;
        }
        let (sum, product) = (vector::sum(dx), vector::dot(dx, x));
        let mean_dx = sum / d as f32;
        let slope = (product - mean * sum) * rstd * rstd / d as f32;
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = rstd * (*dx - mean_dx - (x - mean) * slope);
        }
    }
}

fn backward(x: &[f32], gamma: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let d = gamma.len();
    let mut dx = vec![0f32; x.len()];
    let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(ROWS * d)
        .zip(x.par_chunks(ROWS * d))
        .zip(dy.par_chunks(ROWS * d))
        .map(|((dx, x), dy)| {
            let (mut dgamma, mut dbeta) = (vec![0f32; d], vec![0f32; d]);
            vector::widest(
                #[inline(always)]
                || backward_rows(x, gamma, dy, dx, &mut dgamma, &mut dbeta),
            );
            (dgamma, dbeta)
        })
        .collect();
    let (mut dgamma, mut dbeta) = (vec![0f32; d], vec![0f32; d]);
    for (g, b) in &partial {
        vector::add_scaled(&mut dgamma, 1.0, g);
        vector::add_scaled(&mut dbeta, 1.0, b);
    }
    (dx, dgamma, dbeta)
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn agrees_with_stock_and_finite_differences() {
        let inputs = [check::random((5, 8), 1), check::random(8, 2), check::random(8, 3)];
        let [x, gamma, beta] = &inputs;
        let stock = reference::layer_norm(x, gamma, beta).unwrap();
        assert!(check::distance(&layer_norm(x, gamma, beta).unwrap(), &stock) < 1e-5);
        let weight = check::random((5, 8), 4);
        check::gradients(&inputs, |t| (layer_norm(&t[0], &t[1], &t[2])? * &weight)?.sum_all());
    }
}
