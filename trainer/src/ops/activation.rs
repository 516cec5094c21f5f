use std::marker::PhantomData;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{cpu_tensor, f32_slice, fused, vector, with_f32};

const CHUNK: usize = 1 << 14;
/// `√(2/π)` and the cubic coefficient of the tanh form.
const A: f32 = 0.797_884_6;
const B: f32 = 0.044_715;

/// GELU in its tanh form: `x · σ(2 √(2/π) (x + 0.044715 x³))`, element by element.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if fused(x) { apply::<Gelu>(x) } else { x.gelu() }
}

/// SiLU: `x · σ(x)`, element by element.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    if fused(x) { apply::<Silu>(x) } else { x.silu() }
}

/// A function of one number, and its derivative.
pub(super) trait Activation: Send + Sync + 'static {
    const NAME: &'static str;
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

pub(super) struct Gelu;

impl Gelu {
    #[inline(always)]
    fn gate(x: f32) -> f32 {
        vector::sigmoid(2.0 * A * (B * x * x * x + x))
    }

    /// Value and derivative.
    #[inline(always)]
    pub(super) fn both(x: f32) -> (f32, f32) {
        let g = Self::gate(x);
        (x * g, g + x * g * (1.0 - g) * 2.0 * A * (3.0 * B * x * x + 1.0))
    }
}

impl Activation for Gelu {
    const NAME: &'static str = "gelu";

    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * Self::gate(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        Self::both(x).1
    }
}

struct Silu;

impl Activation for Silu {
    const NAME: &'static str = "silu";

    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * vector::sigmoid(x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let g = vector::sigmoid(x);
        g * (x * (1.0 - g) + 1.0)
    }
}

fn apply<A: Activation>(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Elementwise::<A>(PhantomData))
}

struct Elementwise<A>(PhantomData<A>);

impl<A: Activation> CustomOp1 for Elementwise<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = f32_slice(storage, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            vector::widest(
                #[inline(always)]
                || {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = A::value(x);
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_f32(x, |x| {
            with_f32(dy, |dy| {
                let mut dx = vec![0f32; x.len()];
                dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)).for_each(
                    |((dx, x), dy)| {
                        vector::widest(
                            #[inline(always)]
                            || {
                                for ((dx, &x), &dy) in dx.iter_mut().zip(x).zip(dy) {
                                    *dx = dy * A::slope(x);
                                }
                            },
                        );
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
        assert!(check::distance(&silu(&x).unwrap(), &x.silu().unwrap()) < 1e-5);
        let weight = check::random((5, 7), 2);
        let x = [x];
        check::gradients(&x, |t| (gelu(&t[0])? * &weight)?.sum_all());
        check::gradients(&x, |t| (silu(&t[0])? * &weight)?.sum_all());
    }
}
