//! SiLU and GELU with their gradients, fused on the CPU.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{cpu_tensor, f32_slice, fused, vector, with_f32};

const CHUNK: usize = 1 << 14;
/// `√(2/π)`: the scale in GELU's tanh form.
pub const A: f32 = 0.797_884_6;
/// Coefficient of `x³` in GELU's tanh form.
pub const B: f32 = 0.044_715;

/// Returns GELU in its tanh form, `x · σ(2 √(2/π) (x + 0.044715 x³))`, and its derivative.
#[inline(always)]
pub(super) fn gelu(x: f32) -> (f32, f32) {
    let g = vector::sigmoid(2.0 * A * (B * x * x * x + x));
    (x * g, g + x * g * (1.0 - g) * 2.0 * A * (3.0 * B * x * x + 1.0))
}

/// Returns SiLU, `x · σ(x)`, of each element.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if fused(x) { x.contiguous()?.apply_op1(Silu) } else { x.silu() }
}

struct Silu;

#[inline(always)]
fn forward(x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = x * vector::sigmoid(x);
    }
}

#[inline(always)]
fn backward(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
        let g = vector::sigmoid(x);
        *dx = dy * g * (x * (1.0 - g) + 1.0);
    }
}

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vector::widest(
                #[inline(always)]
                || forward(x, y),
            );
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_f32(x, |x| {
            with_f32(dy, |dy| {
                let mut dx = vec![0f32; x.len()];
                let pieces = x.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK));
                dx.par_chunks_mut(CHUNK).zip(pieces).for_each(|(dx, (x, dy))| {
                    vector::widest(
                        #[inline(always)]
                        || backward(x, dy, dx),
                    );
                });
                Ok(dx)
            })
        })?;
        cpu_tensor(dx, x.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn silu_agrees_with_stock_and_finite_differences() {
        let x = (check::random((5, 7), 1) * 3.0).unwrap();
        assert!(check::distance(&silu(&x).unwrap(), &x.silu().unwrap()) < 1e-5);
        let weight = check::random((5, 7), 2);
        check::gradients(&[x], |t| (silu(&t[0])? * &weight)?.sum_all());
    }

    #[test]
    fn gelu_agrees_with_stock() {
        let x = (check::random(200, 1) * 6.0).unwrap();
        let stock = x.gelu().unwrap().to_vec1::<f32>().unwrap();
        for (x, stock) in x.to_vec1::<f32>().unwrap().into_iter().zip(stock) {
            let difference = (gelu(x + 1e-2).0 - gelu(x - 1e-2).0) / 2e-2;
            let (value, slope) = gelu(x);
            assert!((value - stock).abs() < 1e-5 && (slope - difference).abs() < 1e-3, "{x}");
        }
    }
}
