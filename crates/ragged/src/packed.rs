//! What operations with many parameters share: a Candle operation takes at most three tensors, so the parameters travel
//! as one.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::{cpu_tensor, f32_slice, vector, with_f32};

/// Several tensors behind each other in one.
pub(super) struct Packed<const N: usize> {
    /// All elements.
    pub(super) flat: Tensor,
    /// Where each tensor's are.
    pub(super) parts: Parts<N>,
}

/// The numbers of elements of `N` packed tensors.
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
    /// The tensors' elements.
    pub(super) fn split<'a>(&self, mut flat: &'a [f32]) -> [&'a [f32]; N] {
        self.0.map(|n| {
            let (part, rest) = flat.split_at(n);
            flat = rest;
            part
        })
    }

    /// The tensors' elements, to be written.
    pub(super) fn split_mut<'a>(&self, mut flat: &'a mut [f32]) -> [&'a mut [f32]; N] {
        self.0.map(|n| {
            let (part, rest) = std::mem::take(&mut flat).split_at_mut(n);
            flat = rest;
            part
        })
    }
}

/// An operation on tokens whose parameters travel packed: `[T, d]` → `[T, d]`.
pub(super) trait PackedOp: Send + Sync + 'static {
    /// What Candle calls it.
    const NAME: &'static str;
    /// What the backward pass needs of the forward pass.
    type Kept: Send + Sync;
    /// The result for `x`, and what is kept of it.
    fn forward(&self, x: &[f32], flat: &[f32]) -> (Vec<f32>, Self::Kept);
    /// The gradients of `x` and of the parameters.
    fn backward(&self, x: &[f32], flat: &[f32], kept: &Self::Kept, dout: &[f32]) -> (Vec<f32>, Vec<f32>);
}

/// Applies `op` to `x`, contiguous or not.
pub(super) fn apply<O: PackedOp>(op: O, x: &Tensor, flat: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op2(flat, Applied { op, kept: OnceLock::new() })
}

/// One application of an operation.
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

/// Parts of a large batch whose shares of the parameters' gradients are summed up apart, at most: each holds a copy of
/// the parameters. No more threads than that work on a backward pass.
const PARTS: usize = 16;

/// How many of `rows` rows make one such part, in whole blocks: the same for any number of threads.
pub(super) fn rows_a_part(rows: usize, block: usize) -> usize {
    rows.div_ceil(PARTS).next_multiple_of(block).max(2 * block)
}

/// The sum of the parts' gradients, in their order; `n` zeros where there are none.
pub(super) fn sum(parts: Vec<Vec<f32>>, n: usize) -> Vec<f32> {
    parts
        .into_iter()
        .reduce(|mut total, part| {
            vector::add_scaled(&mut total, 1.0, &part);
            total
        })
        .unwrap_or_else(|| vec![0f32; n])
}
