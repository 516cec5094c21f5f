//! One step of Adam (Kingma and Ba, 2015) for one parameter or some of its rows, and the clipping of a step's gradient: fused on
//! the CPU, by kernels on a GPU, and from stock operations.

#[cfg(any(feature = "cuda", feature = "emulator"))]
mod kernel;
mod reference;

use std::sync::Arc;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, InplaceOp3, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

use crate::fused;
#[cfg(any(feature = "cuda", feature = "emulator"))]
use crate::has_kernels;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f32 = 1e-8;
const CHUNK: usize = 1 << 12;

/// Norm of a step's gradient before clipping, a scalar on the device that computed it.
#[derive(Debug, Clone)]
pub struct GradientNorm(Tensor);

impl GradientNorm {
    /// Returns the norm of a step without a gradient: 0.
    pub fn zero() -> Result<Self> {
        Ok(Self(Tensor::new(0f32, &Device::Cpu)?))
    }

    /// Returns the values of `norms`, after waiting for the device.
    pub fn values(norms: &[Self]) -> Result<Vec<f64>> {
        let norms: Vec<&Tensor> = norms.iter().map(|norm| &norm.0).collect();
        if norms.is_empty() {
            return Ok(Vec::new());
        }
        Tensor::stack(&norms, 0)?.to_dtype(DType::F64)?.to_vec1()
    }

    /// Returns `norm` if it is finite.
    ///
    /// # Errors
    ///
    /// A norm that is not finite; such a step has changed nothing.
    pub fn checked(norm: f64) -> Result<f64> {
        if norm.is_finite() {
            return Ok(norm);
        }
        candle_core::bail!("the gradient is not finite; lower the learning rate")
    }
}

/// Norm of a gradient, and the factor that clips it.
pub struct Clipping {
    /// Norm before clipping.
    pub norm: GradientNorm,
    left: Left,
}

enum Left {
    /// Factor known to the CPU.
    Known(f32),
    /// Known only to the device: norm and factor, `[2]`.
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    OnDevice(Tensor),
}

impl Clipping {
    /// Computes the norm of the gradient that `gradients` make up, and the factor that clips it to `clip_norm`.
    ///
    /// # Errors
    ///
    /// On the CPU, a gradient that is not finite; on a GPU, only the norm shows it, once it is read.
    pub fn of(gradients: &[&Tensor], clip_norm: f64) -> Result<Self> {
        #[cfg(any(feature = "cuda", feature = "emulator"))]
        if gradients.first().is_some_and(|gradient| has_kernels(gradient)) {
            let both = kernel::clipping(gradients, clip_norm)?;
            return Ok(Self { norm: GradientNorm(both.get(0)?), left: Left::OnDevice(both) });
        }
        let squares = if gradients.iter().all(|gradient| fused(gradient)) {
            gradients.iter().map(|gradient| sum_of_squares(gradient)).sum::<Result<f64>>()
        } else {
            reference::sum_of_squares(gradients)
        }?;
        let norm = GradientNorm::checked(squares.sqrt())?;
        let left = if norm > clip_norm { (clip_norm / norm) as f32 } else { 1.0 };
        let norm = GradientNorm(Tensor::new(norm, &Device::Cpu)?);
        Ok(Self { norm, left: Left::Known(left) })
    }
}

/// Coefficients of one step.
#[derive(Debug, Clone, Copy)]
pub struct Update {
    /// Weight decay.
    decay: f32,
    /// Learning rate over the bias correction of the first moments.
    rate: f32,
    /// One over the root of the bias correction of the second moments.
    root: f32,
}

impl Update {
    /// Returns the coefficients of step `step` (from 1), with L2 regularisation as in `torch.optim.Adam`.
    pub fn new(step: u64, rate: f64, weight_decay: f64) -> Self {
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        Self {
            decay: weight_decay as f32,
            rate: (rate / correction(BETA1)) as f32,
            root: (1.0 / correction(BETA2).sqrt()) as f32,
        }
    }

    /// Updates `weight` (`n` rows, `c` columns) and its `moments` `[n, 2 c]` in place: `weight -= rate · m̂ / (√v̂ + ε)`. With
    /// `rows`, which ascend, `gradient` holds only those rows, and only they change.
    ///
    /// # Errors
    ///
    /// Tensors that are not contiguous 32-bit floats of these shapes.
    pub fn apply(
        &self,
        clipping: &Clipping,
        (weight, moments): (&Tensor, &Tensor),
        gradient: &Tensor,
        rows: Option<Arc<Vec<u32>>>,
    ) -> Result<()> {
        let scale = match &clipping.left {
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            Left::OnDevice(clipping) => {
                let rows = rows.as_deref().map(Vec::as_slice);
                return kernel::apply(self, clipping, (weight, moments), gradient, rows);
            }
            &Left::Known(scale) => scale,
        };
        if !fused(weight) {
            let rows = rows.as_deref().map(Vec::as_slice);
            return reference::apply(self, scale, (weight, moments), gradient, rows);
        }
        let columns = matrix(weight).1;
        let op = UpdateMoments { columns, rows: rows.clone(), scale, decay: self.decay };
        moments.inplace_op3(gradient, weight, &op)?;
        weight.inplace_op2(moments, &UpdateWeights { columns, rows, rate: self.rate, root: self.root })
    }
}

/// Returns the rows and columns of a parameter; a vector is one row.
pub fn matrix(value: &Tensor) -> (usize, usize) {
    let columns = value.dims().last().copied().unwrap_or(1).max(1);
    (value.elem_count() / columns, columns)
}

/// Sums the squares in pieces of fixed size, so that the result does not depend on the number of threads.
fn sum_of_squares(tensor: &Tensor) -> Result<f64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        candle_core::bail!("the optimiser works on the CPU");
    };
    let sums: Vec<f64> = whole(storage, layout)?
        .par_chunks(CHUNK)
        .map(|chunk| chunk.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
        .collect();
    Ok(sums.iter().sum())
}

fn whole<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("the optimiser needs contiguous tensors"),
    }
}

fn whole_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("the optimiser needs contiguous tensors");
    };
    match storage {
        CpuStorage::F32(data) => Ok(&mut data[start..end]),
        _ => candle_core::bail!("the optimiser needs 32-bit floats"),
    }
}

/// Calls `f` with the index, the row number and the elements of each row of `data` (`width` wide) in `rows`, which ascend; `None`
/// stands for all rows.
fn for_rows(
    data: &mut [f32],
    width: usize,
    rows: Option<&[u32]>,
    f: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    match rows {
        None => {
            data.par_chunks_mut(width)
                .with_min_len(CHUNK.div_ceil(width))
                .enumerate()
                .for_each(|(r, row)| f(r, r, row));
        }
        Some(rows) => {
            let mut pieces = Vec::with_capacity(rows.len());
            let (mut rest, mut at) = (data, 0);
            for &row in rows {
                let (_, tail) = std::mem::take(&mut rest).split_at_mut((row as usize - at) * width);
                let (piece, tail) = tail.split_at_mut(width);
                pieces.push(piece);
                (rest, at) = (tail, row as usize + 1);
            }
            pieces
                .into_par_iter()
                .with_min_len(CHUNK.div_ceil(width))
                .enumerate()
                .for_each(|(i, piece)| f(i, rows[i] as usize, piece));
        }
    }
}

struct UpdateMoments {
    columns: usize,
    rows: Option<Arc<Vec<u32>>>,
    /// Factor that clips the gradient.
    scale: f32,
    /// Weight decay.
    decay: f32,
}

impl InplaceOp3 for UpdateMoments {
    fn name(&self) -> &'static str {
        "adam-moments"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        let (gradient, weights) = (whole(s2, l2)?, whole(s3, l3)?);
        let c = self.columns;
        let (beta1, beta2) = (BETA1 as f32, BETA2 as f32);
        for_rows(whole_mut(s1, l1)?, 2 * c, self.rows.as_deref().map(Vec::as_slice), |i, row, moments| {
            let (first, second) = moments.split_at_mut(c);
            let gradient = gradient[i * c..(i + 1) * c].iter().zip(&weights[row * c..(row + 1) * c]);
            for ((m, v), (&g, &w)) in first.iter_mut().zip(second).zip(gradient) {
                let g = self.decay.mul_add(w, self.scale * g);
                *m = beta1.mul_add(*m, (1.0 - beta1) * g);
                *v = beta2.mul_add(*v, (1.0 - beta2) * g * g);
            }
        });
        Ok(())
    }
}

struct UpdateWeights {
    columns: usize,
    rows: Option<Arc<Vec<u32>>>,
    /// Learning rate over the bias correction of the first moments.
    rate: f32,
    /// One over the root of the bias correction of the second moments.
    root: f32,
}

impl InplaceOp2 for UpdateWeights {
    fn name(&self) -> &'static str {
        "adam-weights"
    }

    fn cpu_fwd(&self, s1: &mut CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<()> {
        let moments = whole(s2, l2)?;
        let c = self.columns;
        for_rows(whole_mut(s1, l1)?, c, self.rows.as_deref().map(Vec::as_slice), |_, row, weights| {
            let (first, second) = moments[row * 2 * c..(row + 1) * 2 * c].split_at(c);
            for ((w, m), v) in weights.iter_mut().zip(first).zip(second) {
                *w -= self.rate * m / (v.sqrt() * self.root + EPSILON);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::with_stock_operations;

    /// Gradients of five steps, for `[2, 2]` weights.
    const GRADIENTS: [[f32; 4]; 5] = [
        [0.1, -0.2, 0.0, 0.3],
        [-0.4, 0.5, 2.0, -0.1],
        [0.0, 0.0, 1e-3, -1e-3],
        [5.0, -5.0, 0.2, 0.2],
        [0.3, -0.1, -0.7, 0.4],
    ];

    /// Weight decay, and the weights after each step of `torch.optim.Adam([[0.5, -1.2], [3, 0]], lr=1e-2, weight_decay=…)` of
    /// PyTorch 2.15 in 64 bits.
    const PYTORCH: [(f64, [[f64; 4]; 5]); 2] = [
        (
            0.0,
            [
                [0.490000001, -1.19, 3.0, -0.01],
                [0.495595036, -1.194422153, 2.992558632, -0.014002185],
                [0.499920014, -1.19784049, 2.986803238, -0.017075651],
                [0.494419206, -1.192362079, 2.981533395, -0.022311997],
                [0.489452298, -1.187623984, 2.979124089, -0.029319533],
            ],
        ),
        (
            0.1,
            [
                [0.490000001, -1.19, 2.99, -0.01],
                [0.494211229, -1.191391184, 2.981754536, -0.013974647],
                [0.496618829, -1.190948392, 2.974615284, -0.016998545],
                [0.490974045, -1.18512982, 2.96768486, -0.022185079],
                [0.485838902, -1.179984634, 2.962817701, -0.02916286],
            ],
        ),
    ];

    #[test]
    fn steps_are_those_of_pytorch() {
        let trace = || {
            for (weight_decay, expected) in PYTORCH {
                let weight = Tensor::new(&[[0.5f32, -1.2], [3.0, 0.0]], &Device::Cpu).unwrap();
                let moments = Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap();
                for (step, (gradient, expected)) in (1..).zip(GRADIENTS.iter().zip(expected)) {
                    let gradient = Tensor::from_slice(gradient, (2, 2), &Device::Cpu).unwrap();
                    let clipping = Clipping::of(&[&gradient], 1e9).unwrap();
                    let update = Update::new(step, 1e-2, weight_decay);
                    update.apply(&clipping, (&weight, &moments), &gradient, None).unwrap();
                    let found = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    for (found, expected) in found.iter().zip(expected) {
                        let apart = (f64::from(*found) - expected).abs();
                        assert!(apart < 2e-6, "step {step}, decay {weight_decay}: {found} {expected}");
                    }
                }
            }
        };
        trace();
        with_stock_operations(trace);
    }
}
