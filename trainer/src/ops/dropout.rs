use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{cpu_tensor, f32_slice, with_f32};

const CHUNK: usize = 1 << 14;

/// Dropout: each element is zeroed with probability `p`, the others are scaled by `1 / (1 − p)`.
///
/// Which ones follows from `seed` and the element's place alone, so that a resumed run drops the same and
/// the backward pass needs no stored mask.
pub fn dropout(x: &Tensor, p: f64, seed: u64) -> Result<Tensor> {
    if p == 0.0 {
        return Ok(x.clone());
    }
    if !x.device().is_cpu() {
        candle_core::bail!("seeded dropout is not available on {:?}", x.device());
    }
    let op = Dropout { threshold: (p * f64::from(u32::MAX)) as u32, scale: (1.0 / (1.0 - p)) as f32, seed };
    x.contiguous()?.apply_op1(op)
}

struct Dropout {
    threshold: u32,
    scale: f32,
    seed: u64,
}

impl Dropout {
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(c, (y, x))| {
            let key = schemas::hash::mix64(self.seed, c as u64) as u32;
            for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                *y = if mix32(key.wrapping_add(i as u32)) < self.threshold { 0.0 } else { x * self.scale };
            }
        });
        y
    }
}

/// A 32-bit finaliser of low bias (`lowbias32`), which vectorises.
#[inline(always)]
fn mix32(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.apply(f32_slice(storage, layout)?)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_f32(dy, |dy| Ok(self.apply(dy)))?;
        cpu_tensor(dx, x.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::check;
    use super::*;

    #[test]
    fn drops_the_share_and_keeps_the_mean() {
        let ones = Tensor::ones((200, 500), DType::F32, &Device::Cpu).unwrap();
        let y = dropout(&ones, 0.3, 7).unwrap();
        let mean = y.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        assert_eq!(check::distance(&y, &dropout(&ones, 0.3, 7).unwrap()), 0.0);
        assert!(check::distance(&y, &dropout(&ones, 0.3, 8).unwrap()) > 0.0);
    }

    #[test]
    fn gradient() {
        let weight = check::random((6, 9), 2);
        check::gradients(&[check::random((6, 9), 1)], |t| (dropout(&t[0], 0.4, 3)? * &weight)?.sum_all());
    }
}
