//! The operations of the model, on ragged batches: fused, with hand-written gradients, on the CPU; from
//! gradient-safe stock operations elsewhere ([`reference`]).
//!
//! A ragged batch of `B` sequences is one `[T, d]` tensor of all tokens, sequence after sequence, and `B + 1`
//! offsets into it; there is no padding anywhere. Candle's own fused layer norm and softmax cut gradients
//! without a word, and its embedding gradients are slow; these operations replace them.
//!
//! Every operation is deterministic: how work is cut into pieces depends on its size alone, never on the number of
//! threads, and partial sums are added in a fixed order.

mod activation;
mod attention;
mod bag;
mod cross_entropy;
mod dropout;
mod feed_forward;
mod layer_norm;
mod linear;
mod matrix;
mod packed;
mod pointwise_attention;
mod query_attention;
mod ragged;
pub mod reference;
mod self_attention;
mod unit_rows;
pub(crate) mod vector;

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor};

pub use activation::silu;
pub(crate) use activation::{A as GELU_SCALE, B as GELU_CUBIC};
pub use bag::{Bags, bag_mean};
pub use cross_entropy::{Candidates, Targets, cross_entropy};
pub use dropout::{Dropout, add_dropped};
pub use feed_forward::{FeedForwardParameters, feed_forward};
pub(crate) use layer_norm::EPSILON as NORM_EPSILON;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub(crate) use matrix::{Mat, gemm};
pub use pointwise_attention::pointwise_attention;
pub use query_attention::{Queries, query_attention};
pub use ragged::{AttentionLayout, TIME_BUCKETS, time_bucket};
pub use self_attention::{SelfAttentionParameters, self_attention};
pub(crate) use unit_rows::EPSILON as UNIT_EPSILON;
pub use unit_rows::unit_rows;

/// Whether the device of `tensor` has the fused operations; on the others, stock operations take their place.
pub(crate) fn fused(tensor: &Tensor) -> bool {
    #[cfg(test)]
    if STOCK.get() {
        return false;
    }
    tensor.device().is_cpu()
}

#[cfg(test)]
thread_local! {
    static STOCK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Calls `f` with the CPU treated like a device that has no fused operations, on this thread.
#[cfg(test)]
pub(crate) fn with_stock_operations<R>(f: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            STOCK.set(self.0);
        }
    }
    let _restore = Restore(STOCK.replace(true));
    f()
}

/// The elements of a contiguous `f32` tensor on the CPU.
fn f32_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a fused operation needs contiguous input, got {layout:?}"),
    }
}

/// Calls `f` with the elements of `tensor`, made contiguous where it is not.
fn with_f32<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(f32_slice(storage, layout)?),
        _ => candle_core::bail!("a fused CPU operation was given a tensor of another device"),
    }
}

fn cpu_tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

#[cfg(test)]
mod check {
    //! Finite differences: the judge of every hand-written gradient.

    use std::sync::Arc;

    use candle_core::{Result, Tensor, Var};

    use super::AttentionLayout;

    /// Sequences of these lengths, with growing gaps between their tokens.
    pub(super) fn layout(lengths: &[usize], keys: Option<Vec<u32>>) -> Arc<AttentionLayout> {
        let mut offsets = vec![0];
        let mut times = Vec::new();
        for &n in lengths {
            offsets.push(offsets[offsets.len() - 1] + n);
            times.extend((0..n as i64).map(|i| i * i * 1_700));
        }
        Arc::new(AttentionLayout { offsets, times, keys })
    }

    /// Compares the gradients of the scalar `f(inputs)` with central differences at every element.
    pub(super) fn gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let gradients = f(&tensors).unwrap().backward().unwrap();
        let value = |inputs: &[Tensor]| f64::from(f(inputs).unwrap().to_scalar::<f32>().unwrap());
        for (i, tensor) in tensors.iter().enumerate() {
            let gradient = gradients.get(tensor).unwrap_or_else(|| panic!("no gradient reached input {i}"));
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let at = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (e, &exact) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut moved = at.clone();
                    moved[e] += by;
                    let mut inputs: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
                    inputs[i] = Tensor::from_vec(moved, tensor.shape(), tensor.device()).unwrap();
                    value(&inputs)
                };
                let step = 1e-2f32;
                let difference = (moved(step) - moved(-step)) / f64::from(2.0 * step);
                let error = (difference - f64::from(exact)).abs();
                assert!(
                    error <= 2e-3 + 1e-2 * difference.abs(),
                    "input {i}, element {e}: gradient {exact}, finite difference {difference}"
                );
            }
        }
    }

    /// Compares `f(inputs)`, to 1e-4, and all gradients of a weighted sum of it, to `tolerance`, with what stock
    /// operations give.
    pub(super) fn agrees_with_stock(
        inputs: &[Tensor],
        tolerance: f32,
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) {
        let vars: Vec<Var> = inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let fused = f(&tensors).unwrap();
        let stock = super::with_stock_operations(|| f(&tensors)).unwrap();
        assert!(distance(&fused, &stock) < 1e-4);
        let weight = random(fused.shape(), 9);
        let gradients = |out: Tensor| (out * &weight).unwrap().backward().unwrap();
        let (fused, stock) = (gradients(fused), gradients(stock));
        for (i, var) in vars.iter().enumerate() {
            let distance = distance(fused.get(var).unwrap(), stock.get(var).unwrap());
            assert!(distance < tolerance, "input {i}: {distance}");
        }
    }

    /// Values in `[-1, 1)` that differ from call to call of `seed`.
    pub(super) fn random(shape: impl Into<candle_core::Shape>, seed: u64) -> Tensor {
        let shape = shape.into();
        let values: Vec<f32> = (0..shape.elem_count() as u64)
            .map(|i| (schemas::hash::mix64(seed, i) >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            .collect();
        Tensor::from_vec(values, shape, &candle_core::Device::Cpu).unwrap()
    }

    /// The largest difference between two tensors.
    pub(super) fn distance(a: &Tensor, b: &Tensor) -> f32 {
        assert_eq!(a.dims(), b.dims());
        let differences = (a - b).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        differences.into_iter().fold(0.0, |most, difference| {
            assert!(difference.is_finite(), "{a} and {b}");
            f32::max(most, difference.abs())
        })
    }
}
