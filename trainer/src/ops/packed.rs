//! What operations with many parameters share: a Candle operation takes at most three tensors, so the parameters travel
//! as one.

use candle_core::{Result, Tensor};

use super::vector;

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
