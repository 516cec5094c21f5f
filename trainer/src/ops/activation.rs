use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{cpu_tensor, f32_slice, vector, with_f32};

const CHUNK: usize = 1 << 14;
/// `√(2/π)` and the cubic coefficient of the tanh form.
const A: f32 = 0.797_884_6;
const B: f32 = 0.044_715;

/// GELU in its tanh form: `x · σ(2 √(2/π) (x + 0.044715 x³))`, element by element.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { x.contiguous()?.apply_op1(Gelu) } else { x.gelu() }
}

struct Gelu;

#[inline(always)]
fn gate(x: f32) -> f32 {
    1.0 / (1.0 + vector::exp(-2.0 * A * (B * x * x * x + x)))
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x * gate(x);
            }
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_f32(x, |x| {
            with_f32(dy, |dy| {
                let mut dx = vec![0f32; x.len()];
                dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)).for_each(
                    |((dx, x), dy)| {
                        for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                            let g = gate(x);
                            *dx = dy * (g + x * g * (1.0 - g) * 2.0 * A * (3.0 * B * x * x + 1.0));
                        }
                    },
                );
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
        let x = (check::random((5, 7), 1) * 3.0).unwrap();
        assert!(check::distance(&gelu(&x).unwrap(), &x.gelu().unwrap()) < 1e-5);
        let weight = check::random((5, 7), 2);
        check::gradients(&[x], |t| (gelu(&t[0])? * &weight)?.sum_all());
    }
}
