//! Residual sum with dropout, `x + dropout(y)`. The backward pass derives the mask from the seed again; none is stored.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::arguments::Dropout;
use super::{cpu_tensor, f32_slice, fused, reference, vector, with_f32};

const CHUNK: usize = 1 << 14;

/// Returns `x + dropout(y)`, the sum that a layer adds to the residual stream; `None` adds all of `y`.
///
/// # Errors
///
/// Tensors of different shapes.
pub fn add_dropped(x: &Tensor, y: &Tensor, dropout: Option<Dropout>) -> Result<Tensor> {
    if x.shape() != y.shape() {
        candle_core::bail!("add_dropped: {:?} and {:?}", x.shape(), y.shape());
    }
    let dropout = dropout.filter(|dropout| dropout.p > 0.0);
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    if super::has_kernels(x) {
        return super::kernels::add_dropped(x, y, AddDropped::new(dropout));
    }
    if !fused(x) {
        return match dropout {
            Some(dropout) => reference::add_dropped(x, y, factors(dropout, y.elem_count())),
            None => x + y,
        };
    }
    x.contiguous()?.apply_op2(&y.contiguous()?, AddDropped::new(dropout))
}

/// Returns the factor of each of `n` elements: 0 or `1 / (1 − p)`.
fn factors(dropout: Dropout, n: usize) -> Vec<f32> {
    AddDropped::new(Some(dropout)).apply_all(None, &vec![1f32; n])
}

pub(super) struct AddDropped {
    pub(super) threshold: u32,
    pub(super) scale: f32,
    pub(super) seed: u64,
}

impl AddDropped {
    pub(super) fn new(dropout: Option<Dropout>) -> Self {
        let Dropout { p, seed } = dropout.unwrap_or(Dropout { p: 0.0, seed: 0 });
        Self { threshold: (p * f64::from(u32::MAX)) as u32, scale: (1.0 / (1.0 - p)) as f32, seed }
    }

    /// Writes `x + dropout(y)` to `out`, or `dropout(y)` without `x`; the slices begin at element `first` of the whole tensor.
    pub(super) fn apply(&self, first: usize, x: Option<&[f32]>, y: &[f32], out: &mut [f32]) {
        let mut from = 0;
        while from < out.len() {
            let (chunk, place) = ((first + from) / CHUNK, (first + from) % CHUNK);
            let piece = from..(from + CHUNK - place).min(out.len());
            vector::widest(
                #[inline(always)]
                || {
                    self.piece(
                        chunk,
                        place,
                        x.map(|x| &x[piece.clone()]),
                        &y[piece.clone()],
                        &mut out[piece.clone()],
                    )
                },
            );
            from = piece.end;
        }
    }

    /// Processes the elements of a chunk from `place` on.
    #[inline(always)]
    fn piece(&self, chunk: usize, place: usize, x: Option<&[f32]>, y: &[f32], out: &mut [f32]) {
        let &Self { threshold, scale, seed } = self;
        let key = (schemas::hash::mix64(seed, chunk as u64) as u32).wrapping_add(place as u32);
        let dropped = |i: usize, y: f32| {
            if mix32(key.wrapping_add(i as u32)) >= threshold { y * scale } else { 0.0 }
        };
        let n = out.len();
        let y = &y[..n];
        match x {
            None => (0..n).for_each(|i| out[i] = dropped(i, y[i])),
            Some(x) => {
                let x = &x[..n];
                (0..n).for_each(|i| out[i] = x[i] + dropped(i, y[i]));
            }
        }
    }

    /// Returns `x + dropout(y)` of a whole tensor, computed in parallel.
    fn apply_all(&self, x: Option<&[f32]>, y: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; y.len()];
        out.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).enumerate().for_each(|(c, (out, y))| {
            let x = x.map(|x| &x[c * CHUNK..][..y.len()]);
            self.apply(c * CHUNK, x, y, out);
        });
        out
    }
}

/// Mixes the bits of `x` by the low-bias finaliser `lowbias32`, which vectorises.
#[inline(always)]
fn mix32(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

impl CustomOp2 for AddDropped {
    fn name(&self) -> &'static str {
        "add-dropped"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.apply_all(Some(f32_slice(s1, l1)?), f32_slice(s2, l2)?);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        y: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        if self.threshold == 0 {
            return Ok((Some(dout.clone()), Some(dout.clone())));
        }
        let dy = with_f32(dout, |dout| Ok(self.apply_all(None, dout)))?;
        Ok((Some(dout.clone()), Some(cpu_tensor(dy, y.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::check;
    use super::*;

    #[test]
    fn drops_the_share_and_keeps_the_mean() {
        let (x, y) =
            (check::random((200, 500), 1), Tensor::ones((200, 500), DType::F32, &Device::Cpu).unwrap());
        let dropped = |seed| (add_dropped(&x, &y, Some(Dropout { p: 0.3, seed })).unwrap() - &x).unwrap();
        let mean = dropped(7).mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        assert_eq!(check::distance(&dropped(7), &dropped(7)), 0.0);
        assert!(check::distance(&dropped(7), &dropped(8)) > 0.5);
        assert!(check::distance(&add_dropped(&x, &y, None).unwrap(), &(&x + &y).unwrap()) < 1e-6);
    }

    #[test]
    fn pieces_drop_what_the_whole_drops() {
        let y: Vec<f32> = (0..3 * CHUNK + 77).map(|i| i as f32).collect();
        let dropped = AddDropped::new(Some(Dropout { p: 0.3, seed: 5 }));
        let mut pieces = Vec::new();
        // Pieces that cross chunks and begin inside them.
        for piece in y.chunks(2 * CHUNK / 3 + 11) {
            let mut out = vec![0f32; piece.len()];
            dropped.apply(pieces.len(), None, piece, &mut out);
            pieces.extend(out);
        }
        assert_eq!(pieces, dropped.apply_all(None, &y));
    }

    #[test]
    fn gradient() {
        let weight = check::random((6, 9), 2);
        for dropout in [None, Some(Dropout { p: 0.4, seed: 3 })] {
            check::gradients(&[check::random((6, 9), 1), check::random((6, 9), 5)], |t| {
                (add_dropped(&t[0], &t[1], dropout)? * &weight)?.sum_all()
            });
        }
    }
}
