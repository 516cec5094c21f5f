//! Rows scaled to length 1, for cosines.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::arguments::UNIT_EPSILON;
use super::{cpu_tensor, f32_slice, fused, reference, vector, with_f32};

const ROWS: usize = 256;

/// Returns the rows of `x` (`[n, d]`) scaled to length 1, so that inner products are cosines.
pub fn unit_rows(x: &Tensor) -> Result<Tensor> {
    if fused(x) { x.contiguous()?.apply_op1(UnitRows) } else { reference::unit_rows(x) }
}

struct UnitRows;

/// Returns one over a row's length.
#[inline(always)]
fn reciprocal_length(row: &[f32]) -> f32 {
    1.0 / (vector::dot(row, row) + UNIT_EPSILON).sqrt()
}

#[inline(always)]
fn forward(x: &[f32], y: &mut [f32], d: usize) {
    for (x, y) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)) {
        y.copy_from_slice(x);
        vector::scale(y, reciprocal_length(x));
    }
}

/// Fills `dx = (dy − y (y · dy)) / |x|`.
#[inline(always)]
fn backward(x: &[f32], dy: &[f32], dx: &mut [f32], d: usize) {
    for ((x, dy), dx) in x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
        let scale = reciprocal_length(x);
        dx.copy_from_slice(dy);
        vector::add_scaled(dx, -vector::dot(x, dy) * scale * scale, x);
        vector::scale(dx, scale);
    }
}

impl CustomOp1 for UnitRows {
    fn name(&self) -> &'static str {
        "unit-rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, d) = (f32_slice(storage, layout)?, layout.shape().dims2()?.1);
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d)).for_each(|(y, x)| {
            vector::widest(
                #[inline(always)]
                || forward(x, y, d),
            );
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let d = x.dim(1)?;
        let dx = with_f32(x, |x| {
            with_f32(dy, |dy| {
                let mut dx = vec![0f32; x.len()];
                dx.par_chunks_mut(ROWS * d)
                    .zip(x.par_chunks(ROWS * d).zip(dy.par_chunks(ROWS * d)))
                    .for_each(|(dx, (x, dy))| {
                        vector::widest(
                            #[inline(always)]
                            || backward(x, dy, dx, d),
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
    fn agrees_with_stock_and_finite_differences() {
        let x = check::random((ROWS + 7, 20), 1);
        assert!(check::distance(&unit_rows(&x).unwrap(), &reference::unit_rows(&x).unwrap()) < 1e-6);
        let weight = check::random((5, 20), 2);
        let x = [x.narrow(0, 0, 5).unwrap()];
        check::gradients(&x, |t| (unit_rows(&t[0])? * &weight)?.sum_all());
    }
}
