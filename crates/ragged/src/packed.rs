//! Operations with many parameters. A Candle operation takes at most three tensors, so the parameters are packed into one.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::{cpu_tensor, f32_slice, vector, with_f32};

/// Several tensors concatenated into one.
pub(super) struct Packed<const N: usize> {
    /// All elements.
    pub(super) flat: Tensor,
    /// Number of elements of each tensor.
    pub(super) parts: Parts<N>,
}

/// Numbers of elements of `N` packed tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts<const N: usize>([usize; N]);

impl<const N: usize> Packed<N> {
    pub(super) fn new(tensors: [&Tensor; N]) -> Result<Self> {
        let parts = Parts(tensors.map(Tensor::elem_count));
        let flat = tensors.iter().map(|t| t.flatten_all()).collect::<Result<Vec<_>>>()?;
        Ok(Self { flat: Tensor::cat(&flat, 0)?, parts })
    }
}

impl<const N: usize> Parts<N> {
    /// Returns the elements of each tensor.
    pub(super) fn split<'a>(&self, mut flat: &'a [f32]) -> [&'a [f32]; N] {
        self.0.map(|n| {
            let (part, rest) = flat.split_at(n);
            flat = rest;
            part
        })
    }

    /// Returns the elements of each tensor, mutable.
    pub(super) fn split_mut<'a>(&self, mut flat: &'a mut [f32]) -> [&'a mut [f32]; N] {
        self.0.map(|n| {
            let (part, rest) = std::mem::take(&mut flat).split_at_mut(n);
            flat = rest;
            part
        })
    }
}

/// Operation on tokens with packed parameters: `[T, d]` → `[T, d]`.
pub(super) trait PackedOp: Send + Sync + 'static {
    /// Name of the Candle operation.
    const NAME: &'static str;
    /// Results of the forward pass kept for the backward pass.
    type Kept: Send + Sync;
    /// Returns the result for `x`, and the results kept.
    fn forward(&self, x: &[f32], flat: &[f32]) -> (Vec<f32>, Self::Kept);
    /// Returns the gradients of `x` and of the packed parameters.
    fn backward(&self, x: &[f32], flat: &[f32], kept: &Self::Kept, dout: &[f32]) -> (Vec<f32>, Vec<f32>);
}

/// Applies `op` to `x`, contiguous or not.
pub(super) fn apply<O: PackedOp>(op: O, x: &Tensor, flat: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(flat, Applied { op, kept: OnceLock::new() })
}

/// One application of an operation, with the results kept.
struct Applied<O: PackedOp> {
    op: O,
    kept: OnceLock<O::Kept>,
}

impl<O: PackedOp> CustomOp2 for Applied<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, kept) = self.op.forward(f32_slice(s1, l1)?, f32_slice(s2, l2)?);
        let _ = self.kept.set(kept);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        flat: &Tensor,
        _out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else {
            candle_core::bail!("{}: backward before forward", O::NAME);
        };
        let (dx, dflat) = with_f32(x, |x| {
            with_f32(flat, |flat| with_f32(dout, |dout| Ok(self.op.backward(x, flat, kept, dout))))
        })?;
        Ok((Some(cpu_tensor(dx, x.shape())?), Some(cpu_tensor(dflat, flat.shape())?)))
    }
}

/// Maximum parts of a batch, and thus threads of a backward pass. Each part sums its share of the parameters' gradients into a
/// copy of its own.
const PARTS: usize = 16;

/// Returns how many of `rows` rows make one part, in whole blocks; independent of the number of threads.
pub(super) fn rows_a_part(rows: usize, block: usize) -> usize {
    rows.div_ceil(PARTS).next_multiple_of(block).max(2 * block)
}

/// Returns the sum of the parts' gradients, in their order; `n` zeros without parts.
pub(super) fn sum(parts: Vec<Vec<f32>>, n: usize) -> Vec<f32> {
    parts
        .into_iter()
        .reduce(|mut total, part| {
            vector::add_scaled(&mut total, 1.0, &part);
            total
        })
        .unwrap_or_else(|| vec![0f32; n])
}
